"""Folders with metadata.csv or metadata.jsonl, as Hugging Face's imagefolder has them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from tellapart.data.label_files import LabelTable, read_label_file
from tellapart.data.listing import SPLIT_NAMES
from tellapart.imaging.files import subfolders

_NAMES = ("metadata.csv", "metadata.jsonl")
_PATH_COLUMN = "file_name"


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files of a folder, or of the folders in it; none where they name no files."""
    for places in ([folder], subfolders(folder)):
        found = [place / name for place in places for name in _NAMES if (place / name).is_file()]
        if found and all(_names_files(file) for file in found):
            return found
    return []


def read_metadata(files: Sequence[Path], root: Path, bounds: Path | None = None) -> LabelTable:
    """The metadata files as one table, paths from ``root``, and the part from the folder a file lies in.

    Raises:
        DataError: damaged-table.
    """
    tables = [read_label_file(file, root=root, bounds=bounds) for file in files]
    frames = []
    for file, table in zip(files, tables, strict=True):
        below = file.parent.relative_to(root).as_posix()
        path = pl.col(_PATH_COLUMN) if below == "." else pl.lit(f"{below}/") + pl.col(_PATH_COLUMN)
        frame = table.frame.with_columns(path.alias(_PATH_COLUMN))
        part = SPLIT_NAMES.get(file.parent.name.casefold())
        if part and "split" not in frame.columns and file.parent != root:
            frame = frame.with_columns(split=pl.lit(part))
        frames.append(frame)
    if len(tables) == 1:
        return replace(tables[0], frame=frames[0])
    first_rows = [sum(table.frame.height for table in tables[:i]) for i in range(len(tables))]
    return LabelTable(
        shown=str(root),
        frame=pl.concat(frames, how="diagonal_relaxed"),
        unit="line",
        numbers=[number for table in tables for number in table.numbers],
        root=root,
        bounds=bounds or root,
        paths=[table.path_of_row(i) for table in tables for i in range(table.frame.height)],
        broken={
            first + i: why
            for first, table in zip(first_rows, tables, strict=True)
            for i, why in table.broken.items()
        },
        notes=tuple(note for table in tables for note in table.notes),
    )


def _names_files(file: Path) -> bool:
    """Whether the first line names the column that makes it metadata of images."""
    try:
        with file.open("rb") as opened:
            head = opened.readline(100_000)
    except OSError:  # reading it in earnest says why
        return True
    return _PATH_COLUMN.encode() in head.replace(b"\0", b"")
