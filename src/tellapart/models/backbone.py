"""Pretrained networks of timm as ONNX backbones: what ``inference.bundled`` does for its own weights without PyTorch."""

import difflib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxscript  # noqa: F401  the exporter needs it, and it should be missed here and not in its midst
import safetensors
import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors.torch import load
from torch import Tensor, nn

from tellapart.errors import ModelError, RecipeError
from tellapart.records import LOCAL, TIMM, Backbone, Interpolation, Preprocess, ResizeMode, Weights
from tellapart.storage import cache_folder, read_checked, sha256, write_checked

WEIGHTS_FILE = "model.safetensors"

_EXPORT_REVISION = 2  # part of the cache key: raise it when the same weights would give another graph
_LISTED = 5
_RESIZE: Mapping[str, ResizeMode] = {"center": "crop", "squash": "squash", "border": "pad"}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network with its weights, ready to give features.

    Attributes:
        network: from (B, 3, S, S) float32, normalised, to (B, D); in evaluation mode.
        preprocess: as the weights' own record says, or as it was asked for.
        mean: of each color channel, in 0-1.
        std: of each color channel, in 0-1.
        weights: where they came from.
    """

    network: nn.Module = field(repr=False)
    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Weights


def open_timm(name: str, *, weights_file: str = "", input_size_px: int = 0) -> tuple[Backbone, Preprocess]:
    """Take a network of timm from the cache, or export it there.

    Args:
        name: ``timm/ARCHITECTURE`` or ``timm/ARCHITECTURE.TAG``: weights from the hub's cache, or from the hub;
            ``local-dir:FOLDER``: a folder as timm writes it, with ``config.json`` and ``model.safetensors``.
        weights_file: a ``.safetensors`` file in place of the hub's weights.
        input_size_px: side of the square the network sees; 0 takes what the weights' record says.

    Returns:
        The backbone, with normalisation inside, for images of the preprocessing's size; and that preprocessing.

    Raises:
        RecipeError: bad-setting.
        ModelError: offline, weights-missing, weights-mismatch, not-exportable.
    """
    pretrained = load_pretrained(name, weights_file=weights_file, input_size_px=input_size_px)
    key = sha256(
        f"{name if name.startswith(TIMM) else ''} {pretrained.weights.sha256} {pretrained.preprocess.input_size_px} "
        f"{pretrained.mean} {pretrained.std} {_EXPORT_REVISION} {torch.__version__} {timm.__version__}".encode()
    )
    path = cache_folder() / "backbones" / f"{key}.onnx.checked"
    content = read_checked(path)
    if content is None:
        content = export(pretrained).SerializeToString()
        write_checked(path, content)
    outputs = onnx.load_model_from_string(content).graph.output
    backbone = Backbone(
        onnx_bytes=content,
        sha256=sha256(content),
        embedding_dim=outputs[0].type.tensor_type.shape.dim[1].dim_value,
        weights=pretrained.weights,
    )
    return backbone, pretrained.preprocess


def pretrained_names(pattern: str) -> list[str]:
    """Names ``timm/NAME`` of the weights that timm knows and this program can use, in which the pattern occurs."""
    words = pattern.removeprefix(TIMM)
    return [f"{TIMM}{name}" for name in timm.list_pretrained(f"*{words}*")]


def load_pretrained(name: str, *, weights_file: str = "", input_size_px: int = 0) -> Pretrained:
    """Build a network and load its weights; arguments and errors are those of ``open_timm``."""
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL)).expanduser()
        network = _from_folder(folder)
        path, source = folder / WEIGHTS_FILE, f"folder {folder.name}"
    else:
        network = _from_name(name)
        path, source = Path(weights_file), f"file {Path(weights_file).name}"
    record = network.pretrained_cfg
    license_name = str(record.get("license") or "not stated")
    if weights_file or name.startswith(LOCAL):
        data, described = _read_weights(path)
        _load_fitting(network, load(data), record, path.name, name)
        if weights_file:  # the record is that of other weights
            license_name = described.get("license", "not stated")
    else:
        path = _hub_file(name, record)
        data = path.read_bytes()
        network = _load_as_timm(name, path, record["num_classes"])
        source = f"Hugging Face hub, {record['hf_hub_id']}"
    preprocess = _preprocess(record, input_size_px)
    _set_input_size(network, record, preprocess.input_size_px, name)
    return Pretrained(
        network=network.eval(),
        preprocess=preprocess,
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        weights=Weights(name=_name(record), source=source, license=license_name, sha256=sha256(data)),
    )


def export(pretrained: Pretrained) -> onnx.ModelProto:
    """The network as an ONNX graph from ``images`` (uint8 [N, S, S, 3]) to ``embedding`` (float32 [N, D]).

    Raises:
        ModelError: not-exportable.
    """
    side = pretrained.preprocess.input_size_px
    module = _FromPixels(pretrained).eval()
    images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    try:
        with _quiet(), torch.inference_mode():
            if module(images).ndim != 2:
                raise ValueError("its features are no vector")
            program = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"{pretrained.weights.name} at {side} px cannot be made an ONNX graph: {reason}"
        hint = "another size may do (--set input_size_px=...), or another backbone"
        raise ModelError("not-exportable", message, hint=hint) from error
    model: onnx.ModelProto = program.model_proto if program else onnx.ModelProto()
    _strip(model)
    return model


class _FromPixels(nn.Module):
    """A network with what comes before it: from uint8 pixels to features."""

    center: Tensor
    spread: Tensor

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        self.register_buffer("center", 255 * torch.tensor(pretrained.mean))
        self.register_buffer("spread", 255 * torch.tensor(pretrained.std))
        self.network = pretrained.network
        _pool_by_mean(self.network)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() - self.center) / self.spread
        features: Tensor = self.network(pixels.permute(0, 3, 1, 2))
        return features


class _Mean(nn.Module):
    """Average pooling to one place, in the words the exporter has a single node for."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3), keepdim=True)


def _pool_by_mean(network: nn.Module) -> None:
    """Put means in place of adaptive pooling to one place, whose export gathers by computed indices.

    No class map can be read out of such a graph.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, _Mean())


def _strip(model: onnx.ModelProto) -> None:
    """Leave out what describes the machine that exported it: stack traces with paths."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    model.producer_name, model.producer_version, model.graph.name = "tellapart", "", "backbone"


def _from_name(name: str) -> Any:
    """The network ``timm/NAME`` without a classifier, its weights not yet loaded."""
    model = name.removeprefix(TIMM)
    architecture = model.partition(".")[0]
    if not re.fullmatch(r"[\w.-]+", model) or not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = (
            f"such as {', '.join(TIMM + word for word in close)}" if close else "timm.list_models() has them all"
        )
        raise RecipeError("bad-setting", f"timm has no architecture {architecture!r}", hint=hint)
    try:
        return _create(model)
    except RuntimeError as error:  # an unknown tag
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        message = f"timm knows no weights {model!r}"
        raise RecipeError("bad-setting", message, hint=f"it has {tags}") from error


def _from_folder(folder: Path) -> Any:
    """The network that a folder's ``config.json`` describes, its weights not yet loaded."""
    for file in (folder / "config.json", folder / WEIGHTS_FILE):
        if not file.is_file():
            hint = (
                "timm writes such a folder: timm.models.save_for_hf(network, FOLDER, safe_serialization=True); "
                "weights in pickles (.bin, .pth) are not read"
            )
            raise ModelError("weights-missing", f"there is no {file}", hint=hint)
    try:
        return _create(f"{LOCAL}{folder}")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        message = f"{folder / 'config.json'} describes no network of timm: {error}"
        raise ModelError(
            "weights-mismatch", message, hint="write it again with timm.models.save_for_hf"
        ) from error


def _create(name: str, **settings: Any) -> Any:
    """A network of timm: a module with a record of its weights, and methods that PyTorch's know nothing of."""
    with torch.random.fork_rng(devices=[]), _quiet():
        return timm.create_model(name, **{"pretrained": False, "num_classes": 0, **settings})


def _hub_file(name: str, record: Mapping[str, Any]) -> Path:
    """The file of a model's weights: in the hub's cache, or fetched into it.

    Raises:
        ModelError: offline.
    """
    repository = record.get("hf_hub_id")
    file = record.get("hf_hub_filename") or WEIGHTS_FILE
    if not repository or not file.endswith(".safetensors"):
        message = f"the hub has no weights for {name} in a .safetensors file"
        hint = "bring some of your own: --set weights=FILE.safetensors"
        raise ModelError("weights-missing", message, hint=hint)
    found = try_to_load_from_cache(repository, file)
    if isinstance(found, str):
        return Path(found)
    hint = (
        f"where there is a network: hf download {repository} {file} config.json --local-dir FOLDER; "
        f"bring the folder here and say --backbone {LOCAL}FOLDER"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").casefold() in ("1", "true", "yes", "on"):
        message = (
            f"{file} of {repository} is not on this machine, and may not be fetched (--offline, HF_HUB_OFFLINE)"
        )
        raise ModelError("offline", message, hint=hint)
    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError, RuntimeError) as error:  # the hub's and the network's are kinds of these
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{file} of {repository} is not on this machine and could not be fetched: {reason}"
        raise ModelError("offline", message, hint=hint) from error


def _load_as_timm(name: str, path: Path, num_classes: int) -> Any:
    """The network with the hub's weights, which timm knows how to read even where they were trained elsewhere."""
    model = name.removeprefix(TIMM)
    try:
        # With all its classes the load is strict; without, timm would let pass whatever does not fit.
        loaded = _create(
            model,
            pretrained=True,
            num_classes=num_classes,
            pretrained_cfg_overlay={"file": str(path)},
        )
    except (RuntimeError, KeyError, ValueError) as error:
        hint = f"delete {path}, so that it is fetched again"
        raise ModelError("weights-mismatch", f"{path.name} does not fit {name}: {error}", hint=hint) from error
    loaded.reset_classifier(0)
    return loaded


def _read_weights(path: Path) -> tuple[bytes, Mapping[str, str]]:
    """The bytes of a ``.safetensors`` file, and its notes about itself."""
    if path.suffix != ".safetensors":
        message = f"{path} is not a .safetensors file; other kinds are pickles, which can run code"
        hint = (
            "convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            "'weights.safetensors')"
        )
        raise RecipeError("bad-setting", message, hint=hint)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
        return path.read_bytes(), described
    except OSError as error:
        raise ModelError("weights-missing", f"{path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ModelError("weights-mismatch", f"{path} is damaged: {error}", hint="copy it here again") from error


def _load_fitting(
    network: Any, given: Mapping[str, Tensor], record: Mapping[str, Any], file: str, name: str
) -> None:
    """Load weights that fit the network, all of it but its classifier; raise with a list of what does not."""
    classifiers = record.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    expected = network.state_dict()
    weights = {
        key: value
        for key, value in given.items()
        if key in expected or not key.startswith(tuple(f"{word}." for word in classifiers))
    }
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        first = {key.partition(".")[0] for key in given}
        hint = (
            f"every name begins with '{first.pop()}.': save the weights without it"
            if len(first) == 1 and first.isdisjoint(key.partition(".")[0] for key in expected)
            else "is it the architecture they were trained with, in timm's names?"
        )
        message = f"{file} does not fit {name}: {'; '.join(faults)}"
        raise ModelError("weights-mismatch", message, hint=hint)
    network.load_state_dict(weights)


def _preprocess(record: Mapping[str, Any], input_size_px: int) -> Preprocess:
    channels, height, width = record["input_size"]
    if channels != 3 or (height != width and not input_size_px):
        raise RecipeError(
            "bad-setting", f"the weights see images of {width} x {height} x {channels}, not squares in RGB"
        )
    interpolation: Interpolation = "bilinear" if record.get("interpolation") == "bilinear" else "bicubic"
    mode: ResizeMode = _RESIZE.get(record.get("crop_mode") or "center", "crop")
    return Preprocess(
        input_size_px=input_size_px or height,
        resize=mode,
        interpolation=interpolation,
        crop_share=float(record.get("crop_pct") or 1) if mode == "crop" else 1.0,
    )


def _set_input_size(network: Any, record: Mapping[str, Any], side: int, name: str) -> None:
    """Make a network of fixed input size fit another one, where it knows how: position embeddings are resampled."""
    if side == record["input_size"][1]:
        return
    try:
        if hasattr(network, "set_input_size"):
            network.set_input_size(img_size=(side, side))
        elif record.get("fixed_input_size"):
            raise ValueError("its input size is fixed")
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        message = f"{name} cannot see images of {side} px: {error}"
        hint = f"leave input_size_px out: it is {record['input_size'][1]}"
        raise RecipeError("bad-setting", message, hint=hint) from error


def _name(record: Mapping[str, Any]) -> str:
    return TIMM + ".".join(word for word in (record["architecture"], record.get("tag") or "") if word)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own future, and of operators of torchvision it does without."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "timm", "onnxscript")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
