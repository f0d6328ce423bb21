"""Parquet files with labels and with images, or paths of images; Hugging Face's among them."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tellapart.data.label_files import LabelTable, as_text_columns
from tellapart.data.patterns import told_splits
from tellapart.errors import DataError, ImageError
from tellapart.imaging.decode import DecodeLimits, StoredImage

_CHUNK_ROWS = 32
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """A column of images in a Parquet file: bytes, or Hugging Face's pairs of bytes and path."""

    file: str
    name: str
    nested: bool

    def expression(self) -> pl.Expr:
        """The bytes."""
        column = pl.col(self.name)
        return (column.struct.field("bytes") if self.nested else column).alias("bytes")


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """The image in one cell, read with its neighbours when it is asked for.

    Attributes:
        row: counted from 0.
        start: first row of the neighbours that are read together.
        count: how many they are.
        size: bytes of this image.
    """

    column: ImageColumn
    row: int
    start: int
    count: int
    size: int

    def read_bytes(self, limits: DecodeLimits) -> bytes:
        """The encoded image.

        Raises:
            ImageError: too-many-bytes, unreadable-file.
        """
        if self.size > limits.max_bytes:
            message = f"row {self.row + 1:,}: {self.size:,} bytes; the limit is {limits.max_bytes:,}"
            raise ImageError("too-many-bytes", message)
        try:
            cell = _read_chunk(self.column, self.start, self.count)[self.row - self.start]
        except (pl.exceptions.PolarsError, OSError, IndexError) as error:
            raise ImageError("unreadable-file", f"{self.column.file}, row {self.row + 1:,}: {error}") from error
        if cell is None or len(cell) != self.size:
            message = f"{self.column.file}, row {self.row + 1:,}: the file has changed since it was listed"
            raise ImageError("unreadable-file", message)
        return bytes(cell)


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An image in memory: a cell of a DataFrame."""

    data: bytes

    def read_bytes(self, limits: DecodeLimits) -> bytes:
        """The encoded image.

        Raises:
            ImageError: too-many-bytes.
        """
        if len(self.data) > limits.max_bytes:
            raise ImageError("too-many-bytes", f"{len(self.data):,} bytes; the limit is {limits.max_bytes:,}")
        return self.data


def read_parquet(files: Sequence[Path], root: Path, bounds: Path | None = None) -> LabelTable:
    """Read labels, and where the images are, of one or several files with the same columns; no image is read.

    Args:
        files: one at least; names such as ``train-00000-of-00002.parquet`` tell the part.
        root: the folder that paths begin with.
        bounds: the folder that no path may leave; ``root`` when None.

    Raises:
        DataError: damaged-table, unsupported-source.
    """
    parts = [_read_part(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if set(part.columns) != set(parts[0].columns):
            message = f"{files[0]} and {file} have different columns"
            raise DataError("unsupported-source", message, hint="give the files of one table")
    frame = pl.concat([part.frame for part in parts], how="vertical_relaxed")
    splits = told_splits([str(file) for file in files])
    if any(splits) and "split" not in frame.columns:
        told = [split for split, part in zip(splits, parts, strict=True) for _ in range(part.frame.height)]
        frame = frame.with_columns(pl.Series("split", told, dtype=pl.String))
    if not frame.height:
        raise DataError("damaged-table", f"{files[0]}: it has no row", hint="add a row for each image")
    paths = [
        f"{file}#row {i + 1}" for file, part in zip(files, parts, strict=True) for i in range(part.frame.height)
    ]
    return LabelTable(
        shown=str(files[0] if len(files) == 1 else root),
        frame=frame,
        unit="row",
        numbers=range(1, frame.height + 1),
        root=root,
        bounds=bounds or root,
        paths=paths,
        images={name: [cell for part in parts for cell in part.images[name]] for name in parts[0].images},
    )


def table_of_frame(frame: pl.DataFrame, root: Path) -> LabelTable:
    """A polars table as it is in memory.

    Raises:
        DataError: damaged-table, without a row.
    """
    if not frame.height:
        raise DataError("damaged-table", "the table has no row", hint="add a row for each image")
    images: dict[str, list[BytesImage | None]] = {}
    for name, dtype in frame.schema.items():
        nested = _is_nested(dtype)
        if nested or dtype == pl.Binary:
            cells = frame[name].struct.field("bytes") if nested else frame[name]
            images[name] = [None if cell is None else BytesImage(cell) for cell in cells]
    return LabelTable(
        shown="table",
        frame=as_text_columns(frame),
        unit="row",
        numbers=range(1, frame.height + 1),
        root=root,
        bounds=root,
        images=images,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One file's columns of text and of images."""

    frame: pl.DataFrame
    images: Mapping[str, list[StoredImage | None]]

    @property
    def columns(self) -> list[str]:
        return [*self.frame.columns, *self.images]


def _read_part(file: Path) -> _Part:
    try:
        schema = pl.read_parquet_schema(file)
        columns = [
            ImageColumn(str(file), name, _is_nested(dtype))
            for name, dtype in schema.items()
            if dtype == pl.Binary or _is_nested(dtype)
        ]
        images = {column.name: _images(column) for column in columns}
        scanned = pl.scan_parquet(file, glob=False)
        others = [name for name in schema if name not in images]
        frame = scanned.select(others).collect() if others else pl.DataFrame()
        names = _class_labels(pl.read_parquet_metadata(file))
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "is it whole, and a Parquet file?"
        raise DataError("damaged-table", f"{file}: it cannot be read as Parquet ({reason})", hint=hint) from error
    for name, classes in names.items():
        if name in frame.columns:
            frame = frame.with_columns(_named(frame[name], classes))
    # A path is all there is where Hugging Face's pair holds no bytes.
    for column in columns:
        if column.nested and not any(images[column.name]):
            paths = scanned.select(pl.col(column.name).struct.field("path").alias(column.name)).collect()
            frame = frame.with_columns(paths[column.name]) if frame.width else paths
            del images[column.name]
    return _Part(as_text_columns(frame), images)


def _is_nested(dtype: Any) -> bool:
    if not isinstance(dtype, pl.Struct):
        return False
    fields = {field.name: field.dtype for field in dtype.fields}
    return set(fields) == {"bytes", "path"} and fields["bytes"] == pl.Binary


def _images(column: ImageColumn) -> list[StoredImage | None]:
    """Every cell's place; neighbours are read together, up to some memory."""
    scanned = pl.scan_parquet(column.file, glob=False).select(column.expression().bin.size())
    sizes = scanned.collect(engine="streaming")["bytes"].to_list()
    found: list[StoredImage | None] = []
    start, total = 0, 0
    chunk: list[int | None] = []
    for size in [*sizes, None]:
        if chunk and (
            len(chunk) == _CHUNK_ROWS
            or total + (size or 0) > _CHUNK_BYTES
            or len(found) + len(chunk) == len(sizes)
        ):
            found += [
                None if held is None else ParquetImage(column, start + i, start, len(chunk), held)
                for i, held in enumerate(chunk)
            ]
            start, total, chunk = start + len(chunk), 0, []
        chunk.append(size)
        total += size or 0
    return found


@functools.lru_cache(maxsize=8)
def _read_chunk(column: ImageColumn, start: int, count: int) -> list[bytes | None]:
    scanned = pl.scan_parquet(column.file, glob=False).slice(start, count).select(column.expression())
    return scanned.collect()["bytes"].to_list()


def _class_labels(metadata: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of classes that are stored as numbers, by column. Source: Hugging Face datasets, ``Features.to_dict``."""
    try:
        features = json.loads(metadata.get("huggingface", "{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    found: dict[str, list[str]] = {}
    for name, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and all(isinstance(item, str) for item in names):
            found[name] = names
    return found


def _named(column: pl.Series, names: list[str]) -> pl.Series:
    """Class numbers as names; -1, which means no class, and numbers beyond the names as nothing."""
    numbers = list(range(len(names)))
    listed = isinstance(column.dtype, pl.List)
    flat = pl.element() if listed else pl.col(column.name)
    renamed = flat.replace_strict(numbers, names, default=None, return_dtype=pl.String)
    return column.to_frame().select(pl.col(column.name).list.eval(renamed) if listed else renamed)[column.name]
