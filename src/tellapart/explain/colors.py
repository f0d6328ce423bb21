"""From numbers to colours: equal steps of a number are equal steps to the eye."""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tellapart.imaging.decode import Pixels

FloatArray = NDArray[np.float32]
Palette = Literal["sequential", "diverging", "gray"]

_LEVELS = 256
_BLUE_HUE, _ORANGE_HUE = 255.0, 48.0  # degrees; told apart with every common colour blindness
_HEAT_LIGHTNESS, _HEAT_CHROMA = 0.68, 0.17  # bright enough to be seen on a dark photo
_MAX_OPACITY = 0.85  # the strongest place of a heat map still shows the image
_SCALE_QUANTILE = 0.995  # a few extreme numbers would leave all others pale
# OKLab to linear sRGB. Source: Ottosson 2020, "A perceptual color space for image processing".
_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Which colour stands for which number.

    Attributes:
        low: what the palette's first colour stands for; ``-high`` for all but ``sequential``.
        high: what its last colour stands for.
        beyond: whether there are numbers further out, which get the same colours.
    """

    palette: Palette
    low: float
    high: float
    beyond: bool = False

    def paint(self, values: FloatArray) -> Pixels:
        """(..., 3) uint8 colours of numbers; those beyond an end get the end's colour."""
        span = self.high - self.low or 1.0
        level = np.clip((values.astype(np.float64) - self.low) / span, 0, 1) * (_LEVELS - 1)
        return palette_colors(self.palette)[np.rint(level).astype(np.int64)]


def common_scale(values: FloatArray) -> Scale:
    """One scale for all maps of a layer: diverging around 0 where there are negative numbers, from 0 up otherwise."""
    sizes = np.abs(values)
    largest = float(sizes.max(initial=0))
    end = float(np.quantile(sizes, _SCALE_QUANTILE)) or largest
    if values.min(initial=0) < 0:
        return Scale(palette="diverging", low=-end, high=end, beyond=end < largest)
    return Scale(palette="sequential", low=0.0, high=end, beyond=end < largest)


@functools.cache
def palette_colors(palette: Palette) -> Pixels:
    """(256, 3) uint8.

    ``sequential`` climbs evenly in lightness from near black over violet and orange to pale yellow; ``diverging`` falls evenly
    from near white at its middle to blue and to orange; ``gray`` goes from black to white.
    """
    t = np.linspace(0, 1, _LEVELS)
    if palette == "sequential":
        lightness, chroma, hue = 0.17 + 0.80 * t, 0.19 * np.sin(np.pi * (0.12 + 0.78 * t)), 290 + 175 * t
    elif palette == "diverging":
        away = np.abs(2 * t - 1)
        lightness, chroma = 0.97 - 0.45 * away, 0.145 * away**0.9
        hue = np.where(t < 0.5, _BLUE_HUE, _ORANGE_HUE)
    else:
        lightness, chroma, hue = t, np.zeros(_LEVELS), np.zeros(_LEVELS)
    return oklch_to_srgb(lightness, chroma, hue)


def oklch_to_srgb(lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]) -> Pixels:
    """Colours from lightness 0-1, chroma from 0 and hue in degrees, each (N,), as (N, 3) uint8 sRGB.

    Chroma is lowered where a screen has no such colour; lightness and hue stay.

    Source: Ottosson 2020, "A perceptual color space for image processing"; IEC 61966-2-1.
    """
    angle = np.deg2rad(hue)
    low, high = np.zeros_like(chroma), chroma.astype(np.float64)
    for _halving in range(20):
        middle = (low + high) / 2
        linear = _linear(lightness, middle, angle)
        shown = ((linear >= -1e-4) & (linear <= 1 + 1e-4)).all(axis=1)
        low, high = np.where(shown, middle, low), np.where(shown, high, middle)
    linear = np.clip(_linear(lightness, low, angle), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colors: Pixels = np.rint(255 * encoded).astype(np.uint8)
    return colors


def _linear(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], angle: NDArray[np.float64]
) -> NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)
    linear: NDArray[np.float64] = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    return linear


def overlay(values: FloatArray, scale: Scale, image: Pixels) -> Pixels:
    """Lay a diverging heat map over the image in gray: the further from 0, the more it covers.

    Args:
        values: (H, W).
        scale: diverging.
        image: (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    gray = (image @ np.array([0.2126, 0.7152, 0.0722]))[..., None] * 0.75 + 48
    opacity = np.clip(np.abs(values) / (scale.high or 1.0), 0, 1)[..., None] * _MAX_OPACITY
    blue, orange = oklch_to_srgb(
        np.full(2, _HEAT_LIGHTNESS), np.full(2, _HEAT_CHROMA), np.array([_BLUE_HUE, _ORANGE_HUE])
    )
    color = np.where(values[..., None] < 0, blue, orange)
    painted: Pixels = np.rint(gray * (1 - opacity) + color * opacity).clip(0, 255).astype(np.uint8)
    return painted
