"""Embeddings of image files, each computed once: kept in the cache by the content of the image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import ImageError
from tellapart.imaging.decode import DECODE_REVISION, Pixels, StoredImage
from tellapart.imaging.thumbnail import THUMBNAIL_REVISION
from tellapart.inference.engine import OpenVINOEngine, Precision, WithThumbnails, best_precision, iter_outputs
from tellapart.records import Backbone, Preprocess, Progress, no_progress
from tellapart.storage import CachedRows, cache_folder, sha256

Embeddings = dict[str, NDArray[np.float32]]
"""(D,) embeddings by content hash."""

_SHARD_IMAGES = 2_000  # what an interruption may cost, and a file's size: 10 MB at 1,280 numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """What is known of images, all by content hash.

    Attributes:
        embeddings: (D,) float32 each.
        thumbnails: (32, 32) uint8 each, of the backbone's input.
        errors: why an image cannot be decoded.
    """

    embeddings: Embeddings
    thumbnails: dict[str, Pixels]
    errors: dict[str, ImageError]


def embed_files(
    files: Mapping[str, str | StoredImage],
    backbone: Backbone,
    preprocess: Preprocess,
    progress: Progress = no_progress,
) -> Embedded:
    """Compute, or take from the cache, the embeddings and thumbnails of image files.

    What was computed is in the cache when this function is left, by the end, an error or Ctrl-C.

    Args:
        files: what to read, for each content hash.
        backbone: from ``images`` to ``embedding``.
        preprocess: how an image becomes the backbone's input.
        progress: called with the number of images done, cached ones included.
    """
    precision = best_precision()
    embeddings = CachedRows(embeddings_folder(backbone, preprocess, precision), files, rows_a_shard=_SHARD_IMAGES)
    thumbnails = CachedRows(thumbnails_folder(preprocess), files, rows_a_shard=_SHARD_IMAGES)
    missing = list(dict.fromkeys([*embeddings.missing(), *thumbnails.missing()]))
    cached = len(files) - len(missing)
    errors: dict[str, ImageError] = {}
    progress("features", cached, len(files))
    if missing:
        engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=preprocess.input_size_px, precision=precision)
        answers = iter_outputs(WithThumbnails(engine), preprocess, (files[content] for content in missing))
        try:
            for done, (content, answer) in enumerate(zip(missing, answers, strict=True), start=cached + 1):
                if isinstance(answer, ImageError):
                    errors[content] = answer
                else:
                    embeddings.add(content, answer["embedding"])
                    thumbnails.add(content, answer["thumbnail"])
                progress("features", done, len(files))
        finally:
            answers.close()
            embeddings.save()
            thumbnails.save()
    return Embedded(embeddings=embeddings.found, thumbnails=thumbnails.found, errors=errors)


def thumbnails_folder(preprocess: Preprocess) -> Path:
    """One folder for all thumbnails that may be compared."""
    key = sha256(f"{preprocess} {DECODE_REVISION} {THUMBNAIL_REVISION}".encode())
    return cache_folder() / "thumbnails" / key[:32]


def embeddings_folder(backbone: Backbone, preprocess: Preprocess, precision: Precision) -> Path:
    """One folder for all embeddings that may be compared; anything that changes them is in its name."""
    key = sha256(f"{backbone.sha256} {preprocess} {precision} {DECODE_REVISION}".encode())
    return cache_folder() / "embeddings" / key[:32]
