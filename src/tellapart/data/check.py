"""check: what is wrong with the images, found before anything is trained on them."""

from collections import defaultdict
from collections.abc import Iterator

import polars as pl

from tellapart.data.dataset import LABEL_KEY, Dataset
from tellapart.errors import DataError, ImageError
from tellapart.imaging.decode import StoredImage, identify, read_image_bytes
from tellapart.imaging.pool import batched, map_ordered
from tellapart.records import Progress, no_progress
from tellapart.storage import sha256

MIN_IMAGES = 5
"""Images a class needs: one to test on, and four to learn from and to choose with."""

# Of several copies the one in the part that must stay whole is kept: a test image is never given up for a training one.
KEEP_FIRST = {"test": 0, "calib": 1, "val": 2, "train": 3, None: 4}


def check_contents(dataset: Dataset, progress: Progress = no_progress) -> Dataset:
    """Read every file once: refuse what is no image, and keep one of each set of identical files.

    Copies within a class become duplicates of one of them, so they can never lie on two sides of a split. Copies in
    different classes are all refused: which of the labels is right cannot be known.

    Returns:
        The dataset with ``content`` filled in.
    """
    used = dataset.used()
    contents: dict[str, str] = {}
    refused: dict[str, tuple[str, str]] = {}
    named = zip(used.paths, used.images, strict=True)
    for batch in map_ordered(_read_all, batched(named, 32)):
        for path, digest, error in batch:
            if error is None:
                contents[path] = digest
            else:
                refused[path] = (error.code, error.message)
        progress("reading", len(contents) + len(refused), len(used))
    paths = pl.Series("path", list(contents), dtype=pl.String)
    hashes = pl.DataFrame({"path": paths, "read": pl.Series(list(contents.values()), dtype=pl.String)})
    table = dataset.table.join(hashes, on="path", how="left", maintain_order="left")
    dataset = dataset.with_columns(table["read"].alias("content")).with_outcome("refused", refused)
    conflicts, duplicates = _copies(dataset)
    return dataset.with_outcome("refused", conflicts).with_outcome("duplicate", duplicates)


def require_enough(dataset: Dataset) -> None:
    """Raise unless every class has images enough to learn from and, without a test folder, to test on.

    Raises:
        DataError: empty-class, too-few-images.
    """
    own_test = sum(dataset.class_counts("test").values()) > 0
    needed = MIN_IMAGES - 1 if own_test else MIN_IMAGES
    # Images of a val folder calibrate: they teach nothing.
    learning = dataset.where(pl.col("split").is_null() | (pl.col("split") == "train")).class_counts()
    for name, count in learning.items():
        labelled = (pl.col("label") == name) | pl.col("labels").list.contains(name)
        lost = dataset.where(labelled.fill_null(False), pl.col("status").is_in(["refused", "duplicate"]))
        why = f" ({len(lost)} more were refused or are duplicates)" if len(lost) else ""
        if not count:
            message = f"class {name!r} has no readable image{why}"
            raise DataError("empty-class", message, hint=f"add images to the folder {name!r}, or remove it")
        if count < needed:
            message = f"class {name!r} has {count} image{'s' * (count > 1)} to learn from{why}; it needs {needed}"
            raise DataError("too-few-images", message, hint=f"add images to the folder {name!r}")


def _read_all(named: list[tuple[str, str | StoredImage]]) -> list[tuple[str, str, ImageError | None]]:
    return [_read(path, image) for path, image in named]


def _read(path: str, image: str | StoredImage) -> tuple[str, str, ImageError | None]:
    try:
        data = read_image_bytes(image)
        identify(data)
    except ImageError as error:
        return path, "", error
    return path, sha256(data), None


def _copies(dataset: Dataset) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """The files to refuse because their labels conflict, and the files that are copies of another."""
    conflicts: dict[str, tuple[str, str]] = {}
    duplicates: dict[str, tuple[str, str]] = {}
    for copies in _identical(dataset):
        labels = list(dict.fromkeys(label for _, label, _ in copies))
        if len(labels) > 1:
            for path, _, _ in copies:
                others = ", ".join(other for other, _, _ in copies if other != path)
                conflicts[path] = (
                    "label-conflict",
                    f"the same picture is in {' and '.join(labels)}: {others}",
                )
            continue
        kept, *rest = sorted(copies, key=lambda copy: KEEP_FIRST[copy[2]])
        duplicates.update({path: ("duplicate", kept[0]) for path, _, _ in rest})
    return conflicts, duplicates


def _identical(dataset: Dataset) -> Iterator[list[tuple[str, str, str | None]]]:
    """Lists of (path, label, split) of files with the same bytes, where there is more than one."""
    groups: defaultdict[str, list[tuple[str, str, str | None]]] = defaultdict(list)
    repeated = dataset.used().table.filter(pl.col("content").is_duplicated())
    for path, label, split, content in repeated.select("path", LABEL_KEY, "split", "content").iter_rows():
        groups[content].append((path, label, split))
    yield from groups.values()
