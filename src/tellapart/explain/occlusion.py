"""Occlusion sensitivity: cover each place of an image in turn, and see how much the answer depends on it."""

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import RecipeError
from tellapart.imaging.decode import Pixels
from tellapart.imaging.pool import batched, map_ordered
from tellapart.inference.engine import BATCH_SIZE, Engine
from tellapart.records import Progress, no_progress

MAX_PATCHES_A_SIDE = 28
"""28 x 28 = 784 forward passes an image: two to three seconds with EfficientNet-Lite0 at 224 px on two cores."""

_PATCH_GRAY = 128  # the middle of the range: close to 0 after normalisation
# Of the side. A smaller patch leaves enough of an ear to know it by; a larger one says little about where it was.
_PATCH_SHARE = 1 / 7


def default_patch(side_px: int) -> tuple[int, int]:
    """Side and stride, in pixels, of the patch for an image of ``side_px``.

    The patch is a seventh of the side, at least 2 pixels; the stride a fourth of the patch, or more where the limit
    of ``MAX_PATCHES_A_SIDE`` asks for it.
    """
    patch_px = max(2, round(side_px * _PATCH_SHARE))
    stride_px = max(1, patch_px // 4)
    while len(_starts(side_px, patch_px, stride_px)) > MAX_PATCHES_A_SIDE:
        stride_px += 1
    return patch_px, stride_px


def occlusion_map(
    engine: Engine,
    pixels: Pixels,
    class_index: int,
    *,
    patch_px: int,
    stride_px: int,
    progress: Progress = no_progress,
) -> NDArray[np.float32]:
    """Measure how much a class's probability falls when a gray patch covers each place.

    Args:
        engine: runs the model; only its output ``probs`` is read.
        pixels: (S, S, 3) uint8, the model's input.
        class_index: the class in question, 0..K-1.
        patch_px: side of the square patch, 1..S. Patches at the edges hang over it, so all places are covered equally often.
        stride_px: distance between neighbouring patches, 1..patch_px.
        progress: called with the stage ``occlusion`` as patches are done.

    Returns:
        (S, S) float32, -1 to 1: the mean fall over the patches that cover a pixel. Positive where the class needs what is there,
        negative where it speaks against the class.

    Raises:
        RecipeError: bad-setting, when a size is out of range.

    Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.
    """
    side = len(pixels)
    if not (1 <= patch_px <= side and 1 <= stride_px <= patch_px):
        message = (
            f"expected 1 <= stride_px <= patch_px <= {side}, got stride_px {stride_px} and patch_px {patch_px}"
        )
        raise RecipeError("bad-setting", message)
    starts = _starts(side, patch_px, stride_px)
    spans = [slice(max(start, 0), start + patch_px) for start in starts]
    windows = [(rows, columns) for rows in spans for columns in spans]

    def covered_probs(batch: list[tuple[slice, slice]]) -> NDArray[np.float32]:
        covered = np.repeat(pixels[None], len(batch), axis=0)
        for image, window in zip(covered, batch, strict=True):
            image[window] = _PATCH_GRAY
        return engine.run(covered)["probs"][:, class_index]

    whole = engine.run(pixels[None])["probs"][0, class_index]
    fall = np.zeros((side, side))
    patches = np.zeros((side, side))
    done = 0
    for batch, probs in zip(
        batched(windows, BATCH_SIZE), map_ordered(covered_probs, batched(windows, BATCH_SIZE)), strict=True
    ):
        for window, prob in zip(batch, probs, strict=True):
            fall[window] += whole - prob
            patches[window] += 1
        done += len(batch)
        progress("occlusion", done, len(windows))
    return (fall / patches).astype(np.float32)


def _starts(side_px: int, patch_px: int, stride_px: int) -> range:
    return range(stride_px - patch_px, side_px, stride_px)
