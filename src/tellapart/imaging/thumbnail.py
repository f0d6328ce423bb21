"""Thumbnails of the model's input: small enough to keep one of every image, large enough to know it again."""

import numpy as np
from PIL import Image

from tellapart.imaging.decode import Pixels

THUMBNAIL_PX = 32
THUMBNAIL_REVISION = 1  # part of the cache key: raised when the same pixels give another thumbnail


def make_thumbnail(pixels: Pixels) -> Pixels:
    """Reduce an image, (H, W, 3) uint8, to (32, 32) uint8 gray, its shape given up."""
    image = Image.fromarray(pixels)
    small = image.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return np.asarray(small.convert("L"))


def make_thumbnails(images: Pixels) -> Pixels:
    """The same for (N, H, W, 3), as (N, 32, 32)."""
    thumbnails = np.empty((len(images), THUMBNAIL_PX, THUMBNAIL_PX), dtype=np.uint8)
    for i, pixels in enumerate(images):
        thumbnails[i] = make_thumbnail(pixels)
    return thumbnails
