"""Embeddings of image files, each computed once: kept in the cache by the content of the image."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import ImageError
from tellapart.imaging.decode import DECODE_REVISION, StoredImage
from tellapart.inference.bundled import Backbone
from tellapart.inference.engine import OpenVINOEngine, Precision, best_precision, iter_outputs
from tellapart.records import Preprocess, Progress, no_progress
from tellapart.storage import ArrayCache, cache_folder, sha256

Embeddings = dict[str, NDArray[np.float32]]
"""(D,) embeddings by content hash."""

_SHARD_IMAGES = 2_000  # what an interruption may cost, and a file's size: 10 MB at 1,280 numbers


def embed_files(
    files: Mapping[str, str | StoredImage],
    backbone: Backbone,
    preprocess: Preprocess,
    progress: Progress = no_progress,
) -> tuple[Embeddings, dict[str, ImageError]]:
    """Compute, or take from the cache, the embeddings of image files.

    What was computed is in the cache when this function is left, by the end, an error or Ctrl-C.

    Args:
        files: what to read, for each content hash.
        backbone: from ``images`` to ``embedding``.
        preprocess: how an image becomes the backbone's input.
        progress: called with the number of images done, cached ones included.

    Returns:
        The embeddings, and the errors of the images that cannot be decoded, both by content hash.
    """
    precision = best_precision()
    store = ArrayCache(embeddings_folder(backbone, preprocess, precision))
    embeddings: Embeddings = {
        content: row
        for contents, rows in store.shards()
        for content, row in zip(contents, rows, strict=True)
        if content in files
    }
    missing = [content for content in files if content not in embeddings]
    errors: dict[str, ImageError] = {}
    progress("features", len(embeddings), len(files))
    if not missing:
        return embeddings, errors
    engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=preprocess.input_size_px, precision=precision)
    fresh: Embeddings = {}
    answers = iter_outputs(engine, preprocess, (files[content] for content in missing))
    try:
        for content, answer in zip(missing, answers, strict=True):
            if isinstance(answer, ImageError):
                errors[content] = answer
            else:
                fresh[content] = answer["embedding"]
            progress("features", len(embeddings) + len(fresh) + len(errors), len(files))
            if len(fresh) == _SHARD_IMAGES:
                store.add(fresh)
                embeddings |= fresh
                fresh = {}
    finally:
        answers.close()
        store.add(fresh)
    return embeddings | fresh, errors


def embeddings_folder(backbone: Backbone, preprocess: Preprocess, precision: Precision) -> Path:
    """One folder for all embeddings that may be compared; anything that changes them is in its name."""
    key = sha256(f"{backbone.sha256} {preprocess} {precision} {DECODE_REVISION}".encode())
    return cache_folder() / "embeddings" / key[:32]
