"""From decoded pixels to the square that the model sees."""

import math

import numpy as np
from PIL import Image

from tellapart.imaging.decode import DEFAULT_LIMITS, DecodeLimits, ImageFile, Pixels, decode_image
from tellapart.records import Preprocess

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PAD_GRAY = 128  # the middle of the range: close to 0 after normalisation


def preprocess_image(pixels: Pixels, spec: Preprocess) -> Pixels:
    """Resize an image to the model's input.

    No step makes an image larger than the input itself, whatever the image's shape.

    Args:
        pixels: (H, W, 3) uint8 sRGB.
        spec: input size S and how to reach it.

    Returns:
        (S, S, 3) uint8.
    """
    side = spec.input_size_px
    height, width = pixels.shape[:2]
    if (height, width) == (side, side) and (spec.resize != "crop" or spec.crop_share == 1):
        return pixels
    image = Image.fromarray(pixels)
    kernel = _FILTERS[spec.interpolation]
    if spec.resize == "crop":
        short = min(height, width) * spec.crop_share
        left, top = (width - short) / 2, (height - short) / 2
        return np.asarray(image.resize((side, side), kernel, box=(left, top, left + short, top + short)))
    if spec.resize == "pad":
        scale = side / max(height, width)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        result = np.full((side, side, 3), _PAD_GRAY, dtype=np.uint8)
        top, left = (side - inner[1]) // 2, (side - inner[0]) // 2
        result[top : top + inner[1], left : left + inner[0]] = np.asarray(image.resize(inner, kernel))
        return result
    return np.asarray(image.resize((side, side), kernel))


def load_input(source: ImageFile, spec: Preprocess, limits: DecodeLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode a file or its bytes straight to the model's input, (S, S, 3) uint8.

    Raises:
        ImageError: as ``decode_image``.
    """
    target_px = math.ceil(spec.input_size_px / (spec.crop_share if spec.resize == "crop" else 1))
    return preprocess_image(decode_image(source, target_px=target_px, limits=limits), spec)
