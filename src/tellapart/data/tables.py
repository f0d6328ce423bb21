"""From a table of labels to a Listing: which file each row means, and what becomes of rows that mean none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tellapart.data.columns import (
    IMAGE_NAMES,
    LabelColumns,
    find_group,
    find_labels,
    find_split,
    indicated,
    labels_in,
    looks_like_paths,
    require_columns,
)
from tellapart.data.dataset import Split
from tellapart.data.folders import class_name
from tellapart.data.label_files import LabelTable
from tellapart.data.listing import SPLIT_NAMES, Listing, Rows, names_in_words
from tellapart.data.root import Refusal, Root
from tellapart.errors import DataError, RecipeError
from tellapart.imaging.decode import StoredImage
from tellapart.imaging.files import subfolders
from tellapart.records import SourceOptions

_SAMPLED_ROWS = 1_000
_MAX_FOLDERS = 50
_ADDED_SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".JPG", ".webp", ".tif")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meaning:
    """What a row says of its image."""

    label: str | None = None
    labels: list[str] | None = None
    group: str | None = None
    split: Split | None = None


_NOTHING = _Meaning()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A row as it was read: how it is shown, its image where that is no file, and why it cannot be used."""

    path: str
    stored: StoredImage | None = None
    meaning: _Meaning = _NOTHING
    refusal: Refusal | None = None


def list_table(table: LabelTable, options: SourceOptions, known: Sequence[str] = ()) -> Listing:
    """What a table names: one row for each of its rows, and for each image beside those it names.

    A row whose file is missing or lies elsewhere is refused; a second row about the same file is a duplicate, or makes
    both refused when they disagree. Images below the same top folders that no row names are skipped as ``not-in-table``.

    Args:
        table: rows of text, and maybe of images.
        options: columns the user named.
        known: a model's classes; empty in training.

    Raises:
        DataError: no-such-column, ambiguous-columns, unknown-columns, bad-split.
        RecipeError: bad-setting.
    """
    if options.root and not Path(options.root).is_dir():
        raise RecipeError(
            "bad-setting", f"root: there is no folder {options.root}", hint="it is where paths begin"
        )
    shown = Path(table.shown).name
    whole = (
        table.frame[[i for i in range(table.frame.height) if i not in table.broken]]
        if table.broken
        else table.frame
    )
    image, root, notes = _find_images(table, whole, options)
    group = find_group(whole, [image], options, shown)
    split = find_split(whole, [image, group], options, shown)
    labels = find_labels(whole, [image, group, split], options, known, shown)
    taken = {
        "images": f"column {image!r}" if root else "",
        "groups": f"column {group!r}" if group else "",
        "parts": f"column {split!r}" if split else "",
    }
    said = "; ".join([*(f"{what}: {column}" for what, column in taken.items() if column), labels.note()])
    reader = _RowReader(table, image=image, group=group, split=split, labels=labels, root=root)
    rows, stored = _list_rows(table, reader)
    return Listing(
        table=rows.table(),
        root=root.folder if root else table.root,
        shown=table.shown,
        task=labels.task,
        class_names=_promised(labels),
        stored=stored,
        notes=(*table.notes, *notes, f"{shown}: {said}"),
        hint=f"name {'the folder that its paths begin with: --root DIR' if root else 'the labels: --label-column NAME'}",
    )


class _RowReader:
    """Reads one row after the other; what a cell may be is decided here."""

    def __init__(
        self, table: LabelTable, *, image: str, group: str, split: str, labels: LabelColumns, root: Root | None
    ) -> None:
        self.table, self.root, self._labels = table, root, labels
        self._image = image
        columns: dict[str, Sequence[Any]] = {}
        for name in {image, group, split, labels.label, *labels.indicators} - {""}:
            columns[name] = table.images[name] if name in table.images else table.frame[name].to_list()
        self._columns, self._group, self._split = columns, group, split

    def read(self, index: int) -> _Row:
        """The row, with the first reason for which it cannot be used."""
        place = self.table.path_of_row(index)
        if index in self.table.broken:
            return _Row(path=place, refusal=Refusal(code="bad-row", detail=self.table.broken[index]))
        path, image = self._image_of(index, place)
        meaning = self._meaning(index)
        said = meaning if isinstance(meaning, _Meaning) else _Meaning(split=self._part(index))
        refusal = next((part for part in (image, meaning) if isinstance(part, Refusal)), None)
        stored = None if image is None or isinstance(image, Refusal) else image
        return _Row(path=path, stored=stored, meaning=said, refusal=refusal)

    def _image_of(self, index: int, place: str) -> tuple[str, StoredImage | Refusal | None]:
        """How the row is shown, and its image: None where that is the file of this path."""
        cell = self._columns[self._image][index]
        if cell is None:
            return place, Refusal(code="no-path", detail=f"column {self._image!r} is empty")
        if self.root is None:
            return place, cell
        found = self.root.find(cell)
        if isinstance(found, str):
            return found, None
        return (found.path or place), found

    def _meaning(self, index: int) -> _Meaning | Refusal:
        split = self._part(index)
        group = self._columns[self._group][index] if self._group else None
        names = self._indicated(index) if self._labels.indicators else self._named(index)
        if isinstance(names, Refusal):
            return names
        if self._labels.task == "classification":
            return _Meaning(label=names[0], group=group, split=split)
        return _Meaning(labels=names, group=group, split=split)

    def _part(self, index: int) -> Split | None:
        cell = self._columns[self._split][index] if self._split else None
        if cell is None:
            return None
        if cell.casefold() not in SPLIT_NAMES:
            where = self.table.where(index)
            message = (
                f"{where}: column {self._split!r} holds {cell!r}, which is none of train, val, calib and test"
            )
            raise DataError("bad-split", message, hint="name another column with --split-column, or correct it")
        return SPLIT_NAMES[cell.casefold()]

    def _indicated(self, index: int) -> list[str] | Refusal:
        names = []
        for name in self._labels.indicators:
            cell = self._columns[name][index]
            yes = indicated(cell)
            if yes is None:
                held = f"holds {cell!r}" if cell else "is empty"
                return Refusal(code="bad-label", detail=f"column {name!r} {held}; it must hold 0 or 1")
            if yes:
                names.append(class_name(name))
        return names

    def _named(self, index: int) -> list[str] | Refusal:
        labels = self._labels
        cell = self._columns[labels.label][index]
        if labels.task == "classification":
            if cell is None:
                return Refusal(code="no-label", detail=f"column {labels.label!r} is empty")
            return [class_name(cell)]
        names = labels_in(cell, labels.separator)
        if names is None:
            return Refusal(code="bad-label", detail=f"column {labels.label!r} holds {cell!r}, which is no list")
        names = sorted({class_name(name) for name in names})
        return [name for name in names if name in labels.names] if labels.names else names


def _list_rows(table: LabelTable, reader: _RowReader) -> tuple[Rows, dict[str, StoredImage]]:
    """Every row, then what was seen beside the rows, then the images that no row names."""
    read = [reader.read(index) for index in range(table.frame.height)]
    owners = _owners(read)
    conflicts = _conflicts(table, read, owners)
    rows = Rows()
    stored: dict[str, StoredImage] = {}
    for index, row in enumerate(read):
        again = owners[row.path] != index
        path = table.path_of_row(index) if again else row.path
        said = row.meaning
        if row.refusal is not None:
            detail = f"{table.where(index)}: {row.refusal.detail}"
            rows.set_aside(path, "refused", row.refusal.code, detail, split=said.split)
        elif row.path in conflicts:
            rows.set_aside(path, "refused", "label-conflict", conflicts[row.path], split=said.split)
        elif again:
            rows.set_aside(path, "duplicate", "duplicate", row.path, split=said.split)
        else:
            if row.stored is not None:
                stored[path] = row.stored
            rows.use(path, label=said.label, labels=said.labels, group=said.group, split=said.split)
    for found in table.aside:
        rows.set_aside(found.path, found.status, found.reason, found.detail)
    if reader.root is not None:
        named = {row.path for i, row in enumerate(read) if row.path != table.path_of_row(i)}
        for path in reader.root.beside(named):
            rows.set_aside(path, "skipped", "not-in-table", f"{table.shown} does not name it")
    return rows, stored


def _owners(read: list[_Row]) -> dict[str, int]:
    """For each path the row that speaks for it: the first that can be used, or the first of all."""
    owners: dict[str, int] = {}
    for usable in (True, False):
        for index, row in enumerate(read):
            if (row.refusal is None) == usable:
                owners.setdefault(row.path, index)
    return owners


def _conflicts(table: LabelTable, read: list[_Row], owners: Mapping[str, int]) -> dict[str, str]:
    """What rows about the same file disagree on, by its path."""
    conflicts: dict[str, str] = {}
    for index, row in enumerate(read):
        owner = owners[row.path]
        if row.refusal is None and row.meaning != read[owner].meaning:
            one, other = _difference(read[owner].meaning, row.meaning)
            conflicts[row.path] = f"{table.where(owner)} says {one}, {table.where(index)} says {other}"
    return conflicts


def _difference(one: _Meaning, other: _Meaning) -> tuple[str, str]:
    """The first thing two rows say differently, in words."""
    pairs = (
        (one.label, other.label),
        (one.labels, other.labels),
        (one.split, other.split),
        (one.group, other.group),
    )
    return next((repr(a), repr(b)) for a, b in pairs if a != b)


def _find_images(
    table: LabelTable, whole: pl.DataFrame, options: SourceOptions
) -> tuple[str, Root | None, tuple[str, ...]]:
    """The column of the images, where its paths begin, and what was recognised.

    Raises:
        DataError: no-such-column, ambiguous-columns, unknown-columns.
    """
    shown = Path(table.shown).name
    if options.image_column:
        _require_image_column(table, whole, options, shown)
    wanted = [options.image_column] if options.image_column else [*table.images, *whole.columns]
    held = [name for name in wanted if name in table.images]
    if held:
        return _only(held, shown), None, ()
    texts = [name for name in wanted if whole[name].dtype == pl.String]
    for choices in _roots(table, options):
        hits = [(root, note, found) for root, note in choices if (found := _existing(whole, texts, root))]
        if len(hits) > 1:
            message = f"{shown}: its paths exist in several folders: {names_in_words(root.folder.name for root, _, _ in hits)}"
            raise DataError("ambiguous-columns", message, hint=f"name one: --root {hits[0][0].folder}")
        for root, note, found in hits:
            return _only(found, shown), root, note
    named = [name for name in texts if options.image_column or looks_like_paths(whole[name])]
    if not named:
        message = f"{shown}: no column holds paths of images"
        hint = f"name it: --image-column NAME; it has {names_in_words(whole.columns)}"
        raise DataError("unknown-columns", message, hint=hint)
    folder = Path(options.root) if options.root else table.root
    return _only(named, shown), Root(folder, _bounds(table, options), options.outside_root), ()


def _require_image_column(table: LabelTable, whole: pl.DataFrame, options: SourceOptions, shown: str) -> None:
    if options.image_column not in table.images:
        require_columns(whole, [options.image_column], shown)


def _roots(table: LabelTable, options: SourceOptions) -> Iterator[list[tuple[Root, tuple[str, ...]]]]:
    """Where paths may begin, and what may be missing at their end: best guesses first, equally good ones together."""
    folder, bounds = Path(options.root) if options.root else table.root, _bounds(table, options)
    below = [] if options.root else subfolders(folder)[:_MAX_FOLDERS]
    for suffix in _ADDED_SUFFIXES:
        ending = (f"names without an ending mean {suffix}",) if suffix else ()
        yield [(Root(folder, bounds, options.outside_root, suffix), ending)]
        yield [
            (Root(child, bounds, options.outside_root, suffix), (f"paths begin in {child}", *ending))
            for child in below
        ]


def _bounds(table: LabelTable, options: SourceOptions) -> Path:
    return Path(options.root) if options.root else table.bounds


def _existing(frame: pl.DataFrame, names: list[str], root: Root) -> list[str]:
    """The columns with images that exist, by a sample of their cells."""
    return [name for name in names if any(isinstance(root.find(cell), str) for cell in _sample(frame[name]))]


def _sample(column: pl.Series) -> pl.Series:
    cells = column.drop_nulls()
    return cells.gather_every(max(1, len(cells) // _SAMPLED_ROWS))


def _only(columns: list[str], shown: str) -> str:
    """The one column, or the one with a customary name."""
    named = [name for name in columns if name.casefold() in IMAGE_NAMES] if len(columns) > 1 else columns
    if len(named) == 1:
        return named[0]
    message = f"{shown}: several columns hold images: {names_in_words(columns)}"
    raise DataError("ambiguous-columns", message, hint=f"name one, such as --image-column {columns[0]}")


def _promised(labels: LabelColumns) -> tuple[str, ...]:
    """The classes that must have images: those with a column, and those the user named."""
    return tuple(class_name(name) for name in labels.indicators or labels.names)
