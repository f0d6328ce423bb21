"""The backbone a recipe names, wherever its weights come from; and which there are."""

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx

from tellapart.errors import ModelError, TrainingError
from tellapart.imaging.pool import cpu_count, map_ordered
from tellapart.inference.bundled import BUNDLED, is_installed, open_backbone
from tellapart.inference.engine import OpenVINOEngine
from tellapart.inference.model import require_safe
from tellapart.records import TIMM, Backbone
from tellapart.training.probe_recipe import ProbeRecipe


def open_features(recipe: ProbeRecipe) -> tuple[Backbone, ProbeRecipe]:
    """Open a recipe's backbone. PyTorch is imported here, and only for weights that are not bundled.

    Returns:
        The backbone, and the recipe with what it left to the weights filled in.

    Raises:
        TrainingError: package-missing.
        RecipeError: bad-setting.
        ModelError: offline, weights-missing, weights-mismatch, not-exportable.
    """
    if recipe.backbone in BUNDLED:
        return open_backbone(recipe.backbone, recipe.feature_stages, recipe.feature_pooling), recipe
    try:
        from tellapart.models.backbone import open_timm
    except ModuleNotFoundError as error:
        message = (
            f"the backbone {recipe.backbone!r} needs PyTorch, timm and onnxscript; {error.name} is not installed"
        )
        raise TrainingError("package-missing", message, hint="pip install 'tellapart[train]'") from error
    backbone, preprocess = open_timm(
        recipe.backbone, weights_file=recipe.weights, input_size_px=recipe.input_size_px
    )
    try:
        require_safe(onnx.load_model_from_string(backbone.onnx_bytes))
    except ModelError as error:
        raise ModelError("not-exportable", f"{recipe.backbone}: {error.message}") from error
    resize = preprocess.resize if recipe.resize == "auto" else recipe.resize
    return backbone, replace(
        recipe,
        input_size_px=preprocess.input_size_px,
        resize=resize,
        interpolation=preprocess.interpolation if recipe.interpolation == "auto" else recipe.interpolation,
        crop_share=recipe.crop_share or (preprocess.crop_share if resize == "crop" else 1.0),
    )


Place = Literal["bundled", "not installed", "cached", "downloadable"]

_TIMED_SECONDS = 0.5
_BATCH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownBackbone:
    """A backbone that can be had.

    Attributes:
        name: what a recipe calls it.
        place: ``bundled``: its package is installed; ``not installed``: a package of the extra ``backbones``; ``cached``: on this
            machine, of the hub; ``downloadable``: on the hub.
        size_mb: of the weights, in 10^6 bytes; None where it is not known before they are fetched.
        input_size_px: side it was trained at; None as above.
        accuracy: on ImageNet, 0-1, as published; None as above.
        images_per_s: measured on this machine, without decoding; None where it is not here.
        license: of the weights; empty where it is not known.
        hint: what to type.
    """

    name: str
    place: Place
    size_mb: float | None = None
    input_size_px: int | None = None
    accuracy: float | None = None
    images_per_s: float | None = None
    license: str = ""
    hint: str = ""


def list_backbones(pattern: str = "", *, measure: bool = True) -> list[KnownBackbone]:
    """List the bundled backbones, the hub's that are on this machine, and those that can be fetched.

    Args:
        pattern: part of a name; without one, timm's thousand names are left out unless they are cached.
        measure: whether to time those that are bundled.

    Raises:
        TrainingError: package-missing, for a pattern without timm.
    """
    found = [_bundled(name, measure=measure) for name in BUNDLED if pattern in name]
    cached = {name: size for name, size in _cached_sizes().items() if pattern in name}
    found += [
        KnownBackbone(name=name, place="cached", size_mb=size / 1e6, hint=f"--backbone {name}")
        for name, size in cached.items()
    ]
    if not pattern:
        return found
    try:
        from tellapart.models.backbone import pretrained_names
    except ModuleNotFoundError as error:
        message = f"timm's backbones are listed by timm, and {error.name} is not installed"
        raise TrainingError("package-missing", message, hint="pip install 'tellapart[train]'") from error
    names = (name for name in pretrained_names(pattern) if name not in cached)
    return found + [KnownBackbone(name=name, place="downloadable", hint=f"--backbone {name}") for name in names]


def _bundled(name: str, *, measure: bool) -> KnownBackbone:
    bundled = BUNDLED[name]
    installed = is_installed(name)
    return KnownBackbone(
        name=name,
        place="bundled" if installed else "not installed",
        size_mb=bundled.size_mb,
        input_size_px=bundled.input_size_px,
        accuracy=bundled.accuracy,
        images_per_s=_images_per_s(open_backbone(name), bundled.input_size_px) if installed and measure else None,
        license="Apache-2.0",
        hint=f"--backbone {name}" if installed else "pip install 'tellapart[backbones]'",
    )


def _images_per_s(backbone: Backbone, side_px: int) -> float:
    """Of all processors together, over half a second after one batch each."""
    engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=side_px)
    images = np.random.default_rng(0).integers(0, 256, (_BATCH, side_px, side_px, 3), dtype=np.uint8)
    for _ in map_ordered(engine.run, [images] * cpu_count()):
        pass
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < _TIMED_SECONDS:
        done += sum(len(outputs["embedding"]) for outputs in map_ordered(engine.run, [images] * cpu_count()))
    return done / (time.perf_counter() - begun)


def _cached_sizes() -> dict[str, int]:
    """Bytes of timm's weights in the hub's cache, by ``timm/NAME``."""
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ModuleNotFoundError:  # then nothing of the hub can be used
        return {}
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    weights = {
        repository.repo_id: max(
            (
                file.size_on_disk
                for revision in repository.revisions
                for file in revision.files
                if file.file_name.endswith(".safetensors")
            ),
            default=0,
        )
        for repository in repositories
        if repository.repo_id.startswith(TIMM)
    }
    return {name: size for name, size in sorted(weights.items()) if size}
