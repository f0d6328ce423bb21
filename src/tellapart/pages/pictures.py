"""Pictures as part of a page, so that nothing is fetched."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def jpeg_uri(pixels: NDArray[np.uint8], *, quality: int) -> str:
    """A photo, (H, W, 3) uint8, as the address of an ``img``."""
    return _uri(pixels, "JPEG", quality=quality)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """A drawing, (H, W, 3) uint8, exact to the pixel."""
    return _uri(pixels, "PNG", optimize=True)


def thumbnail(pixels: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The image, made small enough to fit into a square, its shape kept; one that fits already is left alone."""
    small = Image.fromarray(np.ascontiguousarray(pixels))
    small.thumbnail((side_px, side_px))
    return np.asarray(small)


def _uri(pixels: NDArray[np.uint8], kind: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
