"""Images of nothing, and images unlike the rest in size or shape, from a few numbers an image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tellapart.imaging.decode import Pixels

FloatArray = NDArray[np.float32]

PREVIEW_PX = 96
"""Side of a preview: sharpness depends on the scale it is measured at, and a blur that is gone here hurts no model."""

_SATURATED = 3  # gray levels from either end
_BLANK_CONTRAST = 3.0  # gray levels
_DARK_PERCENTILE = 40.0  # gray level that 95 % of the pixels stay below
_BRIGHT_PERCENTILE = 225.0  # gray level that 95 % of the pixels lie above
_BLURRED = 0.006  # variance of the Laplacian over that of the image
_MIN_SIDE_PX = 16  # of the preview: below it there are too few pixels to call an image blurred
_FAR = 5.0  # robust standard deviations
_SIZE_FACTOR = 4.0  # times the usual side
_SHAPE_FACTOR = 2.5  # times the usual width over height
_LEVELS = np.arange(256)
_ROUNDING_NOISE = 20 / 12  # variance of the Laplacian of whole gray levels where there is nothing else
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something wrong with one image, or between several.

    Attributes:
        kind: as in ``Issue``.
        indices: rows of the arrays that were searched.
        severity: 0-1.
        evidence: the numbers behind it.
    """

    kind: str
    indices: tuple[int, ...]
    severity: float
    evidence: Mapping[str, object]

    def __post_init__(self) -> None:
        if not self.indices or not 0 <= self.severity <= 1:
            raise ValueError(f"a finding needs an image and a severity of 0 to 1: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """What N images look like in numbers; (N,) each, of gray levels 0-255 unless said otherwise.

    Attributes:
        brightness: mean.
        contrast: standard deviation.
        low: 5th percentile.
        high: 95th percentile.
        saturated: share of pixels at either end of the range, 0-1.
        entropy: of the gray levels, 0-8 bits.
        sharpness: variance of the Laplacian, without what rounding adds, over the variance of the image: 20 for pure noise,
            0.2 for a photo.
        side_px: shorter side of the preview.
    """

    brightness: FloatArray
    contrast: FloatArray
    low: FloatArray
    high: FloatArray
    saturated: FloatArray
    entropy: FloatArray
    sharpness: FloatArray
    side_px: FloatArray


def make_preview(pixels: Pixels) -> Pixels:
    """Reduce an image, (H, W, 3) uint8, to gray of at most 96 x 96 pixels, its shape given up; never enlarges.

    Previews may be compared when their images were decoded alike: whole, or all as the model's input.
    """
    image = Image.fromarray(pixels).convert("L")
    size = min(image.width, PREVIEW_PX), min(image.height, PREVIEW_PX)
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def measure_quality(preview: Pixels) -> FloatArray:
    """Measure one image by its preview: a row for ``quality_of``."""
    share = np.bincount(preview.ravel(), minlength=256) / preview.size
    mean = float(share @ _LEVELS)
    variance = float(share @ np.square(_LEVELS - mean))
    low, high = np.searchsorted(np.cumsum(share), (0.05, 0.95))
    saturated = share[:_SATURATED].sum() + share[-_SATURATED:].sum()
    entropy = -float(share @ np.log2(share + np.finfo(np.float64).tiny))
    sharpness = max(0.0, _laplacian_variance(preview) - _ROUNDING_NOISE) / max(variance, 1.0)
    side = min(preview.shape)
    return np.array(
        [mean, np.sqrt(variance), low, high, saturated, max(0.0, entropy), sharpness, side], dtype=np.float32
    )


def quality_of(rows: FloatArray) -> Quality:
    """The (N, 8) rows of ``measure_quality``, by name."""
    columns = rows.reshape(-1, len(fields(Quality))).T
    return Quality(**{field.name: column for field, column in zip(fields(Quality), columns, strict=True)})


def find_odd(quality: Quality, sizes: NDArray[np.int64]) -> list[Finding]:
    """Find images of nothing, and sizes and shapes unlike the others'.

    Dark, bright and blurred images, odd sizes and shapes must be so by themselves and far from the others of the same data
    set: in a set of X-rays or scans nothing is dark or bright. An image is called one of blank, dark, bright and blurred.

    Args:
        quality: of N images.
        sizes: (N, 2) width and height in pixels, as stored.

    Returns:
        One finding an image and kind, worst first: ``blank``, ``dark``, ``bright``, ``blurred``, ``odd-size``, ``odd-shape``.
    """
    if not len(sizes):
        return []
    found = [*_of_nothing(quality), *_unlike_the_rest(sizes)]
    return sorted(found, key=lambda finding: (-finding.severity, finding.indices))


def _laplacian_variance(gray: Pixels) -> float:
    if min(gray.shape) < 3:
        return 0.0
    values = gray.astype(np.float32)
    laplacian = -4 * values[1:-1, 1:-1]
    for neighbor in (values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:]):
        laplacian += neighbor
    flat = laplacian.ravel()
    return float(flat @ flat) / flat.size - float(flat.mean()) ** 2


def _of_nothing(quality: Quality) -> Iterator[Finding]:
    blank = quality.contrast < _BLANK_CONTRAST
    dark = ~blank & (quality.high < _DARK_PERCENTILE) & (_deviation(quality.high, floor=8.0) < -_FAR / 2)
    bright = ~blank & (quality.low > _BRIGHT_PERCENTILE) & (_deviation(quality.low, floor=8.0) > _FAR / 2)
    detail = np.log(np.maximum(quality.sharpness, 1e-6))
    blurred = (quality.sharpness < _BLURRED) & (_deviation(detail, floor=0.2) < -_FAR / 2)
    blurred &= ~(blank | dark | bright) & (quality.side_px >= _MIN_SIDE_PX)
    for i in np.flatnonzero(blank):
        yield _finding("blank", i, 1 - quality.contrast[i] / (2 * _BLANK_CONTRAST), contrast=quality.contrast[i])
    for i in np.flatnonzero(dark):
        yield _finding("dark", i, 1 - quality.high[i] / (2 * _DARK_PERCENTILE), percentile_95=quality.high[i])
    for i in np.flatnonzero(bright):
        severity = 1 - (255 - quality.low[i]) / (2 * (255 - _BRIGHT_PERCENTILE))
        yield _finding("bright", i, severity, percentile_5=quality.low[i])
    for i in np.flatnonzero(blurred):
        yield _finding("blurred", i, 1 - quality.sharpness[i] / (2 * _BLURRED), sharpness=quality.sharpness[i])


def _unlike_the_rest(sizes: NDArray[np.int64]) -> Iterator[Finding]:
    logs = np.log(sizes.astype(np.float32))
    for kind, value, factor in (
        ("odd-size", logs.mean(axis=1), _SIZE_FACTOR),
        ("odd-shape", logs[:, 0] - logs[:, 1], _SHAPE_FACTOR),
    ):
        usual = np.median(value)
        away = np.abs(value - usual)
        odd = (away > np.log(factor)) & (np.abs(_deviation(value, floor=0.02)) > _FAR)
        for i in np.flatnonzero(odd):
            # Half at the limit, near 1 far beyond it.
            severity = 1 - np.log(factor) / (2 * away[i])
            size = tuple(sizes[i].tolist())
            yield _finding(kind, i, severity, size_px=size, times_usual=np.exp(value[i] - usual))


def _deviation(values: FloatArray, *, floor: float) -> FloatArray:
    """(N,) distances from the median in robust standard deviations, which are ``floor`` at least.

    Source: Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation", section 1.
    """
    center = np.median(values)
    spread = _MAD_TO_SIGMA * np.median(np.abs(values - center))
    deviation: FloatArray = (values - center) / max(float(spread), floor)
    return deviation


def _finding(kind: str, i: np.signedinteger[Any], severity: float, **evidence: object) -> Finding:
    plain = {key: float(value) if isinstance(value, np.floating) else value for key, value in evidence.items()}
    return Finding(kind=kind, indices=(int(i),), severity=float(np.clip(severity, 0.0, 1.0)), evidence=plain)
