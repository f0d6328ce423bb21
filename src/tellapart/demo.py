"""The demonstration: real handwriting that comes with scikit-learn, as PNG class folders."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tellapart.storage import writing


def write_digits(folder: Path) -> int:
    """Write scikit-learn's 1,797 digits as ``folder/0 ... folder/9``, 8 x 8 gray PNG files.

    Returns:
        Number of images.
    """
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    with writing(folder):
        for i, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            path = folder / str(label) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return len(pixels)
