"""Images that a model for cats and dogs has never seen the like of; see bench/trust.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

SIDE_PX = 224
Strange = list[np.ndarray | Path]


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """(S, S) positions from 0 to 1 along a direction drawn at random."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    return (along - along.min()) / np.ptp(along)


def _between(share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    first, second = rng.integers(0, 256, (2, 3))
    return first + (second - first) * share[..., None]


def gradients(rng: np.random.Generator) -> np.ndarray:
    return _between(_ramp(rng), rng)


def stripes(rng: np.random.Generator) -> np.ndarray:
    return _between((np.sin(2 * np.pi * rng.uniform(3, 30) * _ramp(rng)) > 0).astype(float), rng)


def checkerboards(rng: np.random.Generator) -> np.ndarray:
    cells = (np.arange(SIDE_PX) * int(rng.integers(3, 30))) // SIDE_PX
    return _between(((cells[:, None] + cells) % 2).astype(float), rng)


def filtered_noise(rng: np.random.Generator) -> np.ndarray:
    blurred = gaussian_filter(rng.standard_normal((SIDE_PX, SIDE_PX, 3)), (rng.uniform(1, 12),) * 2 + (0,))
    return 128 + 60 * (blurred - blurred.mean()) / blurred.std()


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3))


def flat(rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(rng.integers(0, 256, 3), (SIDE_PX, SIDE_PX, 3))


KINDS: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (
    gradients,
    stripes,
    checkerboards,
    filtered_noise,
    noise,
    flat,
)


def generated(n: int, seed: int = 0) -> dict[str, Strange]:
    """Of each kind n (S, S, 3) uint8."""
    rng = np.random.default_rng(seed)
    return {
        kind.__name__.replace("_", " "): [kind(rng).clip(0, 255).astype(np.uint8) for _ in range(n)]
        for kind in KINDS
    }


def patches(photos: list[Path], seed: int = 1) -> Strange:
    """Squares of 24 px out of photos: fur, grass, wall."""
    rng = np.random.default_rng(seed)
    found: Strange = []
    for path in photos:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        top, left = (int(rng.integers(0, side - 24)) for side in pixels.shape[:2])
        found.append(np.ascontiguousarray(pixels[top : top + 24, left : left + 24]))
    return found


def handwriting() -> Strange:
    """scikit-learn's digits, (8, 8, 3) uint8."""
    pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    return list(np.repeat(pixels[..., None], 3, axis=3))


def scenes(data: Path) -> Strange:
    return sorted((data / "multilabel/images").iterdir())


def all_strange(data: Path, n: int = 100) -> dict[str, Strange]:
    photos = sorted((data / "cats_dogs/test").rglob("*.jpg"))
    return {
        **generated(n),
        "patches of the photos": patches(photos[::8]),
        "digits": handwriting(),
        "scenes": scenes(data),
    }
