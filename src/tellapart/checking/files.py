"""Issues of the files as files: unreadable, misnamed, or with names that clash."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import polars as pl
from numpy.typing import NDArray

from tellapart.checking.looks import decode_damaged
from tellapart.checking.severity import rated
from tellapart.data.dataset import Dataset
from tellapart.imaging.decode import READABLE_FORMATS
from tellapart.records import Issue

_FORMAT_OF_SUFFIX: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
        **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
        **dict.fromkeys((".tif", ".tiff"), "TIFF"),
        **dict.fromkeys((".bmp", ".dib"), "BMP"),
        ".png": "PNG",
        ".webp": "WEBP",
        ".gif": "GIF",
        ".avif": "AVIF",
    }
)


def unreadable_issues(dataset: Dataset) -> Iterator[Issue]:
    """What was refused, but for conflicts of labels: ``truncated`` where there is a part of a picture, ``unreadable``.

    A row of a table that leads to no image counts as unreadable, too; ``code`` in the evidence tells them apart.
    """
    refused = dataset.where(pl.col("status") == "refused", pl.col("reason") != "label-conflict")
    rows = refused.table.select("path", "reason", "detail").iter_rows()
    for (path, code, message), image in zip(rows, refused.images, strict=True):
        cut = code == "truncated-image" and decode_damaged(image) is not None
        yield rated("truncated" if cut else "unreadable", 1.0, [path], {"code": code, "message": message})


def name_issues(dataset: Dataset) -> Iterator[Issue]:
    """Paths that are one and the same on a system that ignores case, or composes letters and accents differently."""
    same: defaultdict[str, list[str]] = defaultdict(list)
    for path in dict.fromkeys(dataset.paths):
        same[unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())].append(path)
    for paths in same.values():
        if len(paths) > 1:
            yield rated("name-clash", 1.0, paths, {"name": PurePath(paths[0]).name})


def extension_issues(paths: Sequence[str], formats: NDArray[Any]) -> Iterator[Issue]:
    """Images whose ending names another format than they have.

    Args:
        paths: N paths.
        formats: (N,) places in ``READABLE_FORMATS``.
    """
    for path, place in zip(paths, formats.tolist(), strict=True):
        named, found = _FORMAT_OF_SUFFIX.get(PurePath(path).suffix.casefold()), READABLE_FORMATS[place]
        if named and named != found:
            yield rated("wrong-extension", 1.0, [path], {"named": named, "format": found})
