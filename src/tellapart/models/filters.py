"""Filters for the first layer that nobody has to learn: edges, stripes, spots, or the user's own."""

import difflib
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import RecipeError

FloatArray = NDArray[np.float64]

_SETTING = "first_layer_filters"


def first_layer_filters(spec: str, *, filters: int, size: int, channels: int) -> NDArray[np.float32]:
    """Make, or read, the first convolution's filters.

    A bank holds different directions and scales, the most different ones first; when more filters are asked for than it
    has, it begins again. Each of its filters gives 0 where the image is even, has a root of its summed squares of 1, which
    is about that of a filter drawn by Glorot's rule, and is the same on every channel.

    Args:
        spec: ``sobel`` (edges), ``gabor`` (stripes and edges), ``laplacian`` (spots), or the path of a ``.npy`` file.
        filters: how many.
        size: side in pixels.
        channels: of the image.

    Returns:
        (filters, channels, size, size).

    Raises:
        RecipeError: bad-setting.
    """
    if spec.lower().endswith(".npy"):
        return _read_filters(Path(spec), (filters, channels, size, size))
    if spec not in _BANKS:
        near = difflib.get_close_matches(spec.lower(), ("learned", *_BANKS), n=1)
        message = f"{_SETTING} must be learned, {', '.join(_BANKS)} or a .npy file, got {spec!r}"
        raise RecipeError("bad-setting", message, hint=f"did you mean {near[0]!r}?" if near else "")
    if size < 3:
        message = f"{_SETTING}: {spec} needs filters of at least 3 px, and the first layer's have {size}"
        raise RecipeError("bad-setting", message)
    bank = [_unit(pattern) for pattern in _BANKS[spec](size)]
    chosen = np.stack([bank[i % len(bank)] for i in range(filters)])
    everywhere = np.repeat(chosen[:, None], channels, axis=1) / math.sqrt(channels)
    return everywhere.astype(np.float32)


def _unit(pattern: FloatArray) -> FloatArray:
    """Mean 0 and summed squares 1."""
    centered = pattern - pattern.mean()
    unit: FloatArray = centered / np.sqrt(np.square(centered).sum())
    return unit


def _sobel(size: int) -> list[FloatArray]:
    """Edges in eight directions, at every odd scale up to the filter's; large ones first.

    Source: the operator of Sobel and Feldman 1968; larger ones are the smaller ones smoothed again.
    """
    bank = []
    for inner in range(size, 2, -2):
        smooth = _binomial(inner)
        slope = np.convolve(_binomial(inner - 1), [-1.0, 1.0])
        across, down = _embed(np.outer(smooth, slope), size), _embed(np.outer(slope, smooth), size)
        bank += [math.cos(angle) * across + math.sin(angle) * down for angle in _TURNS]
    return bank


def _gabor(size: int) -> list[FloatArray]:
    """Stripes (even) and edges (odd) of both signs in four directions, at two wavelengths.

    Source: Jain and Farrokhnia 1991, "Unsupervised Texture Segmentation Using Gabor Filters", section 2.
    """
    x, y = _grid(size)
    bank = []
    for wavelength, phase, angle in itertools.product((size, 0.6 * size), _QUARTERS, _HALF_TURNS):
        along = x * math.cos(angle) + y * math.sin(angle)
        envelope = np.exp(-(x**2 + y**2) / (2 * (size / 4) ** 2))
        bank.append(envelope * np.cos(2 * math.pi * along / wavelength + phase))
    return bank


def _laplacian(size: int) -> list[FloatArray]:
    """Bright and dark spots at every odd scale up to the filter's; large ones first.

    They are the Laplacians of 4 and of 8 neighbours, of an image that was smoothed before.

    Source: Marr and Hildreth 1980, "Theory of Edge Detection".
    """
    of_four, of_eight = [], []
    for inner in range(size, 2, -2):
        smooth = _binomial(inner - 2)
        middle, bend, box = (np.convolve(smooth, kernel) for kernel in ([0, 1, 0], [1, -2, 1], [1, 1, 1]))
        four = _embed(np.outer(bend, middle) + np.outer(middle, bend), size)
        eight = _embed(np.outer(box, box) - 9 * np.outer(middle, middle), size)
        of_four += [-four, four]
        of_eight += [-eight, eight]
    return of_four + of_eight


def _binomial(length: int) -> FloatArray:
    return np.array([math.comb(length - 1, i) for i in range(length)], dtype=np.float64)


def _embed(pattern: FloatArray, size: int) -> FloatArray:
    """The pattern in the middle of zeros."""
    border = (size - len(pattern)) // 2
    return np.pad(pattern, border)


def _grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Coordinates x and y of the pixels, 0 in the middle."""
    at = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(at, at, indexing="ij")
    return x, y


# Angles in an order in which a few are as different as can be. After a ReLU an edge and its opposite are two things.
_TURNS = tuple(math.radians(angle) for angle in (0, 90, 180, 270, 45, 135, 225, 315))
_HALF_TURNS = tuple(math.radians(angle) for angle in (0, 90, 45, 135))
_QUARTERS = tuple(math.radians(angle) for angle in (0, 90, 180, 270))

_BANKS: Mapping[str, Callable[[int], list[FloatArray]]] = MappingProxyType(
    {"sobel": _sobel, "gabor": _gabor, "laplacian": _laplacian}
)


def _read_filters(path: Path, expected: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        # Mapped, not loaded: the shape is checked before a file that claims to be huge takes any memory.
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise RecipeError("bad-setting", f"{_SETTING}: {path}: {error.strerror}") from error
    except (ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise RecipeError("bad-setting", f"{_SETTING}: {path} is not a .npy file of plain numbers") from error
    if array.shape != expected:
        message = f"{_SETTING}: {path}: expected the shape {expected}, got {array.shape}"
        hint = "the shape is filters, channels, height and width of the first 'conv' in layers"
        raise RecipeError("bad-setting", message, hint=hint)
    if array.dtype.kind not in "fiu":
        raise RecipeError("bad-setting", f"{_SETTING}: {path}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise RecipeError("bad-setting", f"{_SETTING}: {path} holds values that are not finite")
    return values
