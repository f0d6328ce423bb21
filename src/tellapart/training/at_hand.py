"""What is at hand: how large the images are, and how fast this machine takes them."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from tellapart.errors import ImageError
from tellapart.imaging.decode import Pixels, StoredImage, stored_size
from tellapart.inference.engine import OpenVINOEngine, iter_outputs
from tellapart.records import Backbone, Preprocess

_ASKED_IMAGES = 64
_FIRST_IMAGES = 8  # that are not timed: the first ones fill caches
_UNKNOWN_SIDE_PX = 64
_FITTED_ROWS, _FITTED_TIMES = 4_000, 3  # too much for the processor's caches, as what is fitted is


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
    """Look at the shapes of some images, drawn at random."""
    shapes = _some_shapes(images)
    return TypicalShape(
        side_px=round(float(np.median([(height * width) ** 0.5 for height, width in shapes]))) or 1,
        stretch=float(np.median([max(shape) / min(shape) for shape in shapes])),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Seconds an image, all processors working.

    Attributes:
        decoding: from its file to the model's input.
        engine: from there to the answer.
        fitting: once through its features while a head is fitted, there and back.
    """

    decoding: float
    engine: float
    fitting: float = 0.0


def measure_speed(
    backbone: Backbone, preprocess: Preprocess, images: Sequence[str | StoredImage], classes: int
) -> Speed:
    """Measure how long images take."""
    side = preprocess.input_size_px
    engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=side, outputs=["embedding"])
    drawn = _shuffled(images)[:_ASKED_IMAGES]
    pixels = np.zeros((_ASKED_IMAGES, side, side, 3), dtype=np.uint8)
    for source in (drawn[:_FIRST_IMAGES], pixels[:_FIRST_IMAGES]):
        _seconds_each(engine, preprocess, source)
    alone = _seconds_each(engine, preprocess, pixels)
    together = _seconds_each(engine, preprocess, drawn)
    return Speed(
        decoding=max(0.0, together - alone),
        engine=min(together, alone),
        fitting=_fitting_each(backbone.embedding_dim, classes),
    )


def _fitting_each(features: int, classes: int) -> float:
    """What an iteration of a solver takes, an image."""
    matrix = np.random.default_rng(0).random((_FITTED_ROWS, features), dtype=np.float32)
    weights = np.ones((features, classes), dtype=np.float32)
    with threadpool_limits(1, user_api="blas"):
        matrix.T @ (matrix @ weights)  # warms up
        begun = time.perf_counter()
        for _ in range(_FITTED_TIMES):
            matrix.T @ (matrix @ weights)
        return (time.perf_counter() - begun) / (_FITTED_ROWS * _FITTED_TIMES)


def _seconds_each(
    engine: OpenVINOEngine, preprocess: Preprocess, images: Sequence[str | StoredImage] | Pixels
) -> float:
    begun = time.perf_counter()
    for _ in iter_outputs(engine, preprocess, images):
        pass
    return (time.perf_counter() - begun) / len(images)


def _some_shapes(images: Sequence[str | StoredImage]) -> list[tuple[int, int]]:
    """Height and width of some images, drawn at random, of those that can be read."""
    shapes: list[tuple[int, int]] = []
    for image in _shuffled(images):
        try:
            shapes.append(stored_size(image))
        except ImageError:
            continue
        if len(shapes) == _ASKED_IMAGES:
            break
    return shapes or [(_UNKNOWN_SIDE_PX, _UNKNOWN_SIDE_PX)]


def _shuffled(images: Sequence[str | StoredImage]) -> list[str | StoredImage]:
    return random.Random(0).sample(list(images), len(images))  # noqa: S311  a sample, not a secret
