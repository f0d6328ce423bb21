"""From pixels to the numbers that a network sees; what must be known for it is fitted on the training images."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from tellapart.errors import RecipeError

Color = Literal["rgb", "gray"]
FloatArray = NDArray[np.float32]

COLORS = ("rgb", "gray")
WORDS = ("samplewise_center", "samplewise_std", "featurewise_center", "featurewise_std", "zca")
"""The words of ``normalize``, in the order in which they act."""

GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Shares of red, green and blue in the brightness. Source: ITU-R BT.601, section 2.5.1."""

STD_EPSILON = 1e-6
"""Added to standard deviations, as in Keras, so that none is 0."""

MAX_ZCA_VALUES = 3_072
"""Most values of an image, S x S x C, for which the whitening matrix is made."""

_ZCA_EPSILON = 1e-6
_ZCA_FLOOR = 1e-8  # of the variance; with less, the training images do not move
MAX_FITTED_IMAGES = 10_000
_BLOCK_VALUES = 2**21  # 16 MiB in 64 bits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InputTransform:
    """How (N, S, S, 3) uint8 becomes the first layer's input, in the order in which it is done.

    1. ``color`` gray: red, green and blue become one channel; ``GRAY_WEIGHTS`` says how.
    2. Scale to 0-1. With nothing in ``normalize`` that is all.
    3. ``samplewise_center``: subtract the mean of the image over all its values.
    4. ``samplewise_std``: divide by the standard deviation of the image; centres, too.
    5. ``featurewise_center``: subtract the mean of the training images, channel by channel.
    6. ``featurewise_std``: divide by their standard deviation, channel by channel; centres, too.
    7. ``zca``: multiply by a matrix after which the values of the training images are uncorrelated and have variance 1;
       centres, too.

    Attributes:
        color: what the network sees.
        normalize: words of ``WORDS``.
        mean: (C,) in 0-1 units, where a featurewise word or ``zca`` asks for it.
        std: (C,) likewise.
        zca: (C * S * S, C * S * S), symmetric; values of an image run channel by channel, each row by row.

    Source: Keras, ``ImageDataGenerator.standardize``. Keras fits step 5 to 7 on images that it has neither scaled nor
    taken through steps 3 and 4; here they are fitted on what they will be given.
    """

    color: Color
    normalize: tuple[str, ...]
    mean: FloatArray | None = None
    std: FloatArray | None = None
    zca: FloatArray | None = None

    @property
    def channels(self) -> int:
        """Of the first layer's input: 1 or 3."""
        return 1 if self.color == "gray" else 3

    @property
    def samplewise_center(self) -> bool:
        """Whether step 3 is done."""
        return "samplewise_center" in self.normalize or self.samplewise_std

    @property
    def samplewise_std(self) -> bool:
        """Whether step 4 is done."""
        return "samplewise_std" in self.normalize

    def apply(self, images: NDArray[np.uint8]) -> FloatArray:
        """(N, S, S, 3) uint8 to (N, C, S, S); networks and files do the same."""
        scaled = images.astype(np.float32) / np.float32(255)
        if self.color == "gray":
            scaled = scaled @ GRAY_WEIGHTS[:, None]
        x: FloatArray = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
        if self.samplewise_center:
            x -= x.mean(axis=(1, 2, 3), keepdims=True)
        if self.samplewise_std:
            x /= np.sqrt(np.square(x).mean(axis=(1, 2, 3), keepdims=True)) + np.float32(STD_EPSILON)
        if self.mean is not None:
            x -= self.mean[:, None, None]
        if self.std is not None:
            x /= self.std[:, None, None] + np.float32(STD_EPSILON)
        if self.zca is not None:
            x = (x.reshape(len(x), -1) @ self.zca).reshape(x.shape)
        return x

    def arrays(self) -> dict[str, FloatArray]:
        """What was fitted, by name, to be saved; none where nothing was fitted."""
        fitted = {"transform.mean": self.mean, "transform.std": self.std, "transform.zca": self.zca}
        return {name: array for name, array in fitted.items() if array is not None}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, FloatArray], *, color: Color, normalize: tuple[str, ...]
    ) -> "InputTransform":
        """The way back from ``arrays``; what else is among them is left alone."""
        return cls(
            color=color,
            normalize=normalize,
            mean=arrays.get("transform.mean"),
            std=arrays.get("transform.std"),
            zca=arrays.get("transform.zca"),
        )


def fit_transform(images: NDArray[np.uint8], *, color: Color, normalize: tuple[str, ...]) -> InputTransform:
    """Fit what the words of ``normalize`` need.

    Args:
        images: (N, S, S, 3), training images; may be a memory map. Of more than 10,000, so many are used, evenly spaced.
        color: what the network sees.
        normalize: words of ``WORDS`` in any order.

    Raises:
        RecipeError: bad-setting: an unknown word or colour, or images too large for ``zca``.
    """
    require_normalize(normalize, color=color, input_size_px=images.shape[1])
    transform = InputTransform(color=color, normalize=normalize)
    if not {"featurewise_center", "featurewise_std", "zca"} & set(normalize):
        return transform
    mean, std = _channel_moments(transform, images)
    transform = replace(transform, mean=mean, std=std if "featurewise_std" in normalize else None)
    return replace(transform, zca=_whitening(transform, images)) if "zca" in normalize else transform


def require_normalize(normalize: tuple[str, ...], *, color: str, input_size_px: int) -> None:
    """Refuse what ``fit_transform`` could not fit; needs no images.

    Raises:
        RecipeError: bad-setting.
    """
    if color not in COLORS:
        raise RecipeError("bad-setting", f"color must be rgb or gray, got {color!r}")
    for word in normalize:
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise RecipeError("bad-setting", f"normalize takes {', '.join(WORDS)}, got {word!r}", hint=hint)
    if len(set(normalize)) < len(normalize):
        raise RecipeError("bad-setting", f"normalize must be different words, got {', '.join(normalize)}")
    if "zca" not in normalize:
        return
    if "featurewise_std" in normalize:
        message = "normalize: featurewise_std and zca exclude each other, as zca makes every variance 1 itself"
        raise RecipeError("bad-setting", message)
    channels = 1 if color == "gray" else 3
    values = input_size_px**2 * channels
    if values > MAX_ZCA_VALUES:
        found = f"{input_size_px} x {input_size_px} x {channels} = {values:,}"
        message = f"normalize: zca is for images of at most {MAX_ZCA_VALUES:,} values, and these have {found}"
        raise RecipeError("bad-setting", message, hint="make input_size_px smaller, for example 32")


def _channel_moments(transform: InputTransform, images: NDArray[np.uint8]) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each channel, summed in 64 bits."""
    total, squares, count = np.zeros(transform.channels), np.zeros(transform.channels), 0
    for block in _blocks(transform, images):
        values = block.astype(np.float64)
        total += values.sum(axis=(0, 2, 3))
        squares += np.square(values).sum(axis=(0, 2, 3))
        count += len(values) * values.shape[2] * values.shape[3]
    mean = total / count
    variance = np.maximum(squares / count - np.square(mean), 0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def _whitening(transform: InputTransform, images: NDArray[np.uint8]) -> FloatArray:
    """The symmetric matrix that makes the second moments of the centred images the identity.

    Directions in which no training image moves are dropped, where Keras makes them a thousand times larger: new images do
    move there, and their rounding would be all that the network sees.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images", appendix A. Its epsilon, added to the
    eigenvalues as Keras did, is about the variance of rounding to 256 levels, so what is only rounding stays small.
    """
    values = transform.channels * images.shape[1] ** 2
    moments, count = np.zeros((values, values)), 0
    for block in _blocks(transform, images):
        flat = block.reshape(len(block), -1).astype(np.float64)  # in 32 bits the error is larger than the epsilon
        moments += flat.T @ flat
        count += len(flat)
    eigenvalues, vectors = eigh(moments / count, overwrite_a=True, check_finite=False)
    moving = eigenvalues > _ZCA_FLOOR
    vectors = vectors[:, moving]
    matrix: FloatArray = ((vectors / np.sqrt(eigenvalues[moving] + _ZCA_EPSILON)) @ vectors.T).astype(np.float32)
    return matrix


def _blocks(transform: InputTransform, images: NDArray[np.uint8]) -> Iterator[FloatArray]:
    """The images that are used, transformed as far as is known, a few at a time."""
    rows = np.linspace(0, len(images) - 1, min(len(images), MAX_FITTED_IMAGES)).astype(np.int64)
    step = max(1, _BLOCK_VALUES // (3 * images.shape[1] ** 2))
    for start in range(0, len(rows), step):
        yield transform.apply(images[rows[start : start + step]])
