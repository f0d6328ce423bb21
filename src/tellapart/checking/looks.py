"""One look at every image: what the checks need to know of its pixels, from the same decoding as its embedding."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from tellapart.data.quality import make_preview, measure_quality
from tellapart.errors import ImageError
from tellapart.imaging.decode import (
    DECODE_REVISION,
    READABLE_FORMATS,
    Pixels,
    StoredImage,
    decode_image,
    identify,
    read_image_bytes,
)
from tellapart.imaging.pool import batched, map_ordered
from tellapart.imaging.preprocess import preprocess_image
from tellapart.imaging.thumbnail import make_thumbnail
from tellapart.inference.embed import Embeddings, embeddings_folder, thumbnails_folder
from tellapart.inference.engine import OpenVINOEngine, best_precision, iter_outputs
from tellapart.records import Backbone, Preprocess, Progress, no_progress
from tellapart.storage import CachedRows, cache_folder, sha256

Files = Mapping[str, str | StoredImage]
"""What to read, for each content hash."""

LOOK = np.dtype(
    [
        ("quality", "<f4", (8,)),  # a row for quality_of
        ("size_px", "<i4", (2,)),  # width and height of the upright image, as stored
        ("format", "u1"),  # place in READABLE_FORMATS
    ]
)
"""What is kept of an image beside thumbnail and embedding: 41 bytes."""

_REVISION = 2  # raised when the same pixels give another look
_IMAGES_A_TASK = 4


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen in the images, all by content hash.

    Attributes:
        looks: scalars of ``LOOK``.
        thumbnails: (32, 32) uint8 each, of the model's input.
        embeddings: (D,) each; none without a backbone.
        errors: why an image cannot be decoded.
    """

    looks: dict[str, NDArray[Any]]
    thumbnails: dict[str, Pixels]
    embeddings: Embeddings
    errors: dict[str, ImageError]

    def table(self, contents: list[str]) -> NDArray[Any]:
        """(N,) looks of the given images."""
        return np.array([self.looks[content] for content in contents], dtype=LOOK)

    def matrix(self, contents: list[str]) -> NDArray[np.float32]:
        """(N, D) embeddings of the given images."""
        return np.stack([self.embeddings[content] for content in contents])


def look_at(
    files: Files, preprocess: Preprocess, backbone: Backbone | None = None, progress: Progress = no_progress
) -> Seen:
    """Decode images, each once, measure and embed them; what the cache holds is taken from there.

    What was computed is in the cache when this function is left, by the end, an error or Ctrl-C.

    Args:
        files: what to read.
        preprocess: how an image becomes the backbone's input; JPEG files are decoded no larger than it needs.
        backbone: from ``images`` to ``embedding``; None for looks alone.
        progress: called with the number of images done, cached ones included.
    """
    kept = _Kept(
        looks=CachedRows(_looks_folder(preprocess), files),
        thumbnails=CachedRows(thumbnails_folder(preprocess), files),
    )
    embeddings = CachedRows(None, {})
    if backbone is not None:
        embeddings = CachedRows(embeddings_folder(backbone, preprocess, best_precision()), files)
    errors: dict[str, ImageError] = {}

    def report() -> None:
        found = min(len(rows.found) for rows in ([kept.looks, embeddings] if backbone else [kept.looks]))
        progress("looking", found + len(errors), len(files))

    report()
    missing = embeddings.missing()
    try:
        if backbone is not None and missing:
            engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=preprocess.input_size_px)
            decoded = _decode(files, missing, preprocess, kept, errors)
            for content, embedding in _embed(engine, preprocess, decoded):
                embeddings.add(content, embedding)
                report()
        left = [content for content in kept.missing() if content not in errors]
        for _ in _decode(files, left, preprocess, kept, errors):
            report()
    finally:
        kept.save()
        embeddings.save()
    return Seen(
        looks=kept.looks.found, thumbnails=kept.thumbnails.found, embeddings=embeddings.found, errors=errors
    )


def decode_damaged(image: str | StoredImage) -> Pixels | None:
    """As much of a truncated JPEG as there is, the rest gray; None for what holds no picture at all.

    Only to be shown: training and prediction refuse such a file, for the missing part would be made up.
    """
    try:
        data = read_image_bytes(image)
        if identify(data) != "JPEG":
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False)
    except (ImageError, ValueError):
        return None
    return pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What is kept of every decoded image."""

    looks: CachedRows
    thumbnails: CachedRows

    def missing(self) -> list[str]:
        """The images that lack either."""
        return list(dict.fromkeys([*self.looks.missing(), *self.thumbnails.missing()]))

    def save(self) -> None:
        self.looks.save()
        self.thumbnails.save()


def _decode(
    files: Files, contents: Iterable[str], preprocess: Preprocess, kept: _Kept, errors: dict[str, ImageError]
) -> Iterator[tuple[str, Pixels]]:
    """Decode images in threads; yield them as the model's input, and keep their looks or errors."""

    def work(batch: list[str]) -> list[tuple[str, _Decoded | ImageError]]:
        return [(content, _decode_one(files[content], preprocess)) for content in batch]

    for batch in map_ordered(work, batched(contents, _IMAGES_A_TASK)):
        for content, decoded in batch:
            if isinstance(decoded, ImageError):
                errors[content] = decoded
                continue
            kept.looks.add(content, decoded.look)
            kept.thumbnails.add(content, decoded.thumbnail)
            yield content, decoded.pixels


@dataclass(frozen=True, slots=True)
class _Decoded:
    """The model's input, (S, S, 3), its thumbnail, and the look of the image it was made from."""

    pixels: Pixels
    thumbnail: Pixels
    look: NDArray[Any]


def _decode_one(image: str | StoredImage, preprocess: Preprocess) -> _Decoded | ImageError:
    try:
        data = read_image_bytes(image)
        image_format = identify(data)
        pixels = decode_image(data, target_px=preprocess.input_size_px)
    except ImageError as error:
        return error
    preview = make_preview(pixels)
    look = np.zeros((), LOOK)
    look["quality"] = measure_quality(preview)
    look["size_px"] = _size(data, image_format, pixels)
    look["format"] = READABLE_FORMATS.index(image_format)
    inputs = preprocess_image(pixels, preprocess)
    return _Decoded(inputs, make_thumbnail(inputs), look)


def _size(data: bytes, image_format: str, pixels: Pixels) -> tuple[int, int]:
    """Width and height of the upright image: only a JPEG is decoded smaller than it is stored."""
    height, width = pixels.shape[:2]
    if image_format != "JPEG":
        return width, height
    try:
        stored_height, stored_width = simplejpeg.decode_jpeg_header(data, strict=False)[:2]
    except (KeyError, ValueError):  # a header that only Pillow understands, and then the size is the file's own
        return width, height
    turned = (height > width) != (stored_height > stored_width)
    return (stored_height, stored_width) if turned else (stored_width, stored_height)


def _embed(
    engine: OpenVINOEngine, preprocess: Preprocess, decoded: Iterator[tuple[str, Pixels]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Content hash and embedding of each image, in order."""
    under_way: deque[str] = deque()

    def inputs() -> Iterator[Pixels]:
        for content, pixels in decoded:
            under_way.append(content)
            yield pixels

    for answer in iter_outputs(engine, preprocess, inputs()):
        if isinstance(answer, ImageError):
            raise answer  # cannot be: the pixels come from the decoder
        yield under_way.popleft(), answer["embedding"]


def _looks_folder(preprocess: Preprocess) -> Path:
    """One folder for all looks that may be compared; anything that changes them is in its name."""
    key = sha256(f"{preprocess.input_size_px} {LOOK} {DECODE_REVISION} {_REVISION}".encode())
    return cache_folder() / "looks" / key[:32]
