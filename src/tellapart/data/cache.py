"""Decoded images, each computed once: kept in the cache by the content of the image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import ImageError
from tellapart.imaging.decode import DECODE_REVISION, Pixels, StoredImage
from tellapart.imaging.pool import batched, map_ordered
from tellapart.imaging.preprocess import load_input
from tellapart.records import Preprocess, Progress, no_progress
from tellapart.storage import ArrayCache, cache_folder, room_for, sha256

MAX_MEMORY_BYTES = 2 * 2**30
"""More pixels than this are kept in a memory map, not in memory."""

_SHARD_BYTES = 64 * 2**20
_IMAGES_A_TASK = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelTable:
    """Decoded images.

    Attributes:
        pixels: (N, S, S, 3) uint8, in memory or a memory map.
        rows: row of each content hash.
    """

    pixels: Pixels
    rows: Mapping[str, int]

    def indices(self, contents: list[str]) -> NDArray[np.int64]:
        """Rows of the given images."""
        return np.array([self.rows[content] for content in contents], dtype=np.int64)


def decode_files(
    files: Mapping[str, str | StoredImage], preprocess: Preprocess, progress: Progress = no_progress
) -> tuple[PixelTable, dict[str, ImageError]]:
    """Decode image files to the model's input size, or take them from the cache.

    What was decoded is in the cache when this function is left, by the end, an error or Ctrl-C.

    Args:
        files: what to read, for each content hash.
        preprocess: how an image becomes the model's input, of side S.
        progress: called with the number of images done, cached ones included.

    Returns:
        The images, and the errors of those that cannot be decoded by content hash.
    """
    side = preprocess.input_size_px
    pixels = room_for((len(files), side, side, 3), np.uint8, memory_bytes=MAX_MEMORY_BYTES)
    rows: dict[str, int] = {}
    key = sha256(f"{preprocess} {DECODE_REVISION}".encode())
    cache = ArrayCache(cache_folder() / "pixels" / key[:32])
    for contents, images in cache.shards():
        for content, image in zip(contents, images, strict=True):
            if content in files and content not in rows:
                pixels[len(rows)] = image
                rows[content] = len(rows)
    progress("decoding", len(rows), len(files))
    missing = [content for content in files if content not in rows]
    errors = _decode_missing(files, missing, preprocess, cache, pixels, rows, progress)
    return PixelTable(pixels=pixels[: len(rows)], rows=rows), errors


def _decode_missing(
    files: Mapping[str, str | StoredImage],
    missing: list[str],
    preprocess: Preprocess,
    cache: ArrayCache,
    pixels: Pixels,
    rows: dict[str, int],
    progress: Progress,
) -> dict[str, ImageError]:
    """Fill ``pixels`` and ``rows`` with what was not in the cache."""
    errors: dict[str, ImageError] = {}
    fresh: dict[str, Pixels] = {}
    images_a_shard = max(1, _SHARD_BYTES // pixels[0].nbytes) if len(pixels) else 1

    def decode(contents: list[str]) -> list[Pixels | ImageError]:
        return [_load(files[content], preprocess) for content in contents]

    batches = batched(missing, _IMAGES_A_TASK)
    try:
        for contents, images in zip(batched(missing, _IMAGES_A_TASK), map_ordered(decode, batches), strict=True):
            for content, image in zip(contents, images, strict=True):
                if isinstance(image, ImageError):
                    errors[content] = image
                    continue
                pixels[len(rows)] = fresh[content] = image
                rows[content] = len(rows)
                if len(fresh) == images_a_shard:
                    cache.add(fresh)
                    fresh = {}
            progress("decoding", len(rows) + len(errors), len(files))
    finally:
        cache.add(fresh)
    return errors


def _load(image: str | StoredImage, preprocess: Preprocess) -> Pixels | ImageError:
    try:
        return load_input(image, preprocess)
    except ImageError as error:
        return error
