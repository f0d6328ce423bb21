"""Heat maps of the images a report shows: the model file's own class maps, or what covering each place does to the answer."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from tellapart.errors import ImageError
from tellapart.evaluation.task import RULES
from tellapart.explain.occlusion import occlusion_map
from tellapart.imaging.decode import StoredImage
from tellapart.imaging.preprocess import load_input
from tellapart.inference.engine import OpenVINOEngine, iter_outputs
from tellapart.inference.heatmap import HEATMAP, class_evidence
from tellapart.inference.model import ModelFile

OCCLUSION_SECONDS = 1.5
"""For all images together, the engine's start aside; those that come later have no heat map."""

_PATCHES_A_SIDE = 7  # 49 passes an image; ``explain`` makes up to 784

HeatMaps = dict[str, NDArray[np.float32]]
"""(h, w) evidence for one class of each image, above 0 for it and below 0 against it; by path."""


def has_class_maps(model: ModelFile) -> bool:
    """Whether the file has the output ``heatmap``."""
    return any(output.name == HEATMAP for output in onnx.load_model_from_string(model.onnx_bytes).graph.output)


def class_maps(model: ModelFile, images: Mapping[str, str | StoredImage], about: Mapping[str, int]) -> HeatMaps:
    """What a file with class maps says itself; images that cannot be read have none.

    Args:
        model: the file.
        images: by path.
        about: index of the class, by path.
    """
    card = model.card
    engine = OpenVINOEngine(
        model.onnx_bytes, input_size_px=card.preprocess.input_size_px, outputs=("probs", HEATMAP)
    )
    exclusive = RULES[card.task].activation == "Softmax"
    answers = zip(images, iter_outputs(engine, card.preprocess, images.values()), strict=True)
    return {
        path: class_evidence(answer, about[path], exclusive=exclusive)
        for path, answer in answers
        if not isinstance(answer, ImageError)
    }


def occlusion_maps(
    model: ModelFile,
    images: Mapping[str, str | StoredImage],
    about: Mapping[str, int],
    *,
    seconds: float = OCCLUSION_SECONDS,
) -> HeatMaps:
    """How much the probability falls where a gray patch lies, on a coarse grid; for as many images as there is time for.

    Args:
        model: any file.
        images: by path, the most wanted first.
        about: index of the class, by path.
        seconds: no image is begun later.
    """
    card, found = model.card, {}
    side_px = card.preprocess.input_size_px
    engine = OpenVINOEngine(model.onnx_bytes, input_size_px=side_px, outputs=("probs",))
    patch_px = -(-side_px // _PATCHES_A_SIDE)
    end = time.monotonic() + seconds
    for path, image in images.items():
        if time.monotonic() >= end:
            break
        try:
            pixels = load_input(image, card.preprocess)
        except ImageError:
            continue
        fall = occlusion_map(engine, pixels, about[path], patch_px=patch_px, stride_px=patch_px)
        found[path] = fall[::patch_px, ::patch_px]  # one number a patch: the page draws what lies between
    return found


def in_turns(kinds: Sequence[Sequence[str]]) -> list[str]:
    """The first of each kind, then the second of each, and so on; every path once."""
    longest = max(map(len, kinds), default=0)
    return list(dict.fromkeys(kind[i] for i in range(longest) for kind in kinds if i < len(kind)))
