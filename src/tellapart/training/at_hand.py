"""What is at hand: how large the images are, and how fast this machine takes them."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tellapart.errors import ImageError
from tellapart.imaging.decode import StoredImage, decode_image
from tellapart.inference.engine import OpenVINOEngine, iter_outputs
from tellapart.records import Backbone, Preprocess

_ASKED_IMAGES = 64
_FIRST_IMAGES = 8  # that are not timed: the first ones fill caches
_UNKNOWN_SIDE_PX = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TypicalShape:
    """What images are like, by the median of some.

    Attributes:
        side_px: of a square with as many pixels.
        stretch: longer side over shorter, at least 1.
    """

    side_px: int
    stretch: float


def typical_shape(images: Sequence[str | StoredImage]) -> TypicalShape:
    """Decode some images, drawn at random, and look at their shapes."""
    shapes = _some_shapes(images)
    return TypicalShape(
        side_px=round(float(np.median([(height * width) ** 0.5 for height, width in shapes]))) or 1,
        stretch=float(np.median([max(shape) / min(shape) for shape in shapes])),
    )


def seconds_per_image(backbone: Backbone, preprocess: Preprocess, images: Sequence[str | StoredImage]) -> float:
    """Measure how long an image takes from its file to the backbone's answer, all processors working."""
    engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=preprocess.input_size_px, outputs=["embedding"])
    drawn = _shuffled(images)[:_ASKED_IMAGES]
    for _ in iter_outputs(engine, preprocess, drawn[:_FIRST_IMAGES]):
        pass
    begun = time.perf_counter()
    for _ in iter_outputs(engine, preprocess, drawn):
        pass
    return (time.perf_counter() - begun) / len(drawn)


def _some_shapes(images: Sequence[str | StoredImage]) -> list[tuple[int, int]]:
    """Height and width of some images, drawn at random, of those that can be read."""
    shapes: list[tuple[int, int]] = []
    for image in _shuffled(images):
        try:
            height, width = decode_image(image).shape[:2]
        except ImageError:
            continue
        shapes.append((height, width))
        if len(shapes) == _ASKED_IMAGES:
            break
    return shapes or [(_UNKNOWN_SIDE_PX, _UNKNOWN_SIDE_PX)]


def _shuffled(images: Sequence[str | StoredImage]) -> list[str | StoredImage]:
    return random.Random(0).sample(list(images), len(images))  # noqa: S311  a sample, not a secret
