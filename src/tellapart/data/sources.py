"""open_dataset: where labelled images come from; all ways lead to the same Dataset."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from tellapart.data.dataset import Dataset
from tellapart.data.folders import FOLDER_HINT, list_class_folders
from tellapart.data.hub import is_hub_name, local_copy
from tellapart.data.label_files import TEXT_SUFFIXES, read_label_file
from tellapart.data.listing import Listing, Rows, test_dataset, training_dataset
from tellapart.data.metadata import metadata_files, read_metadata
from tellapart.data.parquet import read_parquet, table_of_frame
from tellapart.data.patterns import expand, is_address, is_pattern
from tellapart.data.shards import read_shards
from tellapart.data.tables import list_table
from tellapart.errors import DataError, RecipeError
from tellapart.imaging.files import has_images, iter_files, natural_key, skip_rule, subfolders
from tellapart.records import SourceOptions, Task

DEFAULT_OPTIONS = SourceOptions()
_KINDS = "a folder, a table (.csv, .tsv, .jsonl, .parquet), shards (.tar), hf:owner/name"
_COMPRESSED_SHARDS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_OTHER_KINDS = {
    ".xlsx": "save the sheet as CSV (UTF-8)",
    ".xls": "save the sheet as CSV (UTF-8)",
    ".ods": "save the sheet as CSV (UTF-8)",
    ".zip": "unpack it and give the folder",
    ".arrow": "save it with to_parquet",
    ".json": "write one object a line, as .jsonl, or a CSV",
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst"), "unpack it first"),
}


class PandasFrame(Protocol):
    """As much of a pandas DataFrame as is used here."""

    columns: Any

    def __getitem__(self, name: Any) -> Any: ...


Source = str | Path | pl.DataFrame | PandasFrame
"""A folder, a file, a glob or brace pattern, an address, ``hf:owner/name[@revision]``, or a table in memory."""


def is_elsewhere(source: str) -> bool:
    """Whether a name means something other than one file or folder here: a pattern, an address, a data set of a hub."""
    return is_hub_name(source) or is_pattern(source) or is_address(source)


def open_dataset(source: Source, options: SourceOptions = DEFAULT_OPTIONS) -> Dataset:
    """List labelled images, however they come; ``notes`` say what was recognised. No image is read yet.

    - class folders, or train, val and test folders of class folders: the class is the first folder below the source (or
      below the train folder), however deep the file lies in it; both may lie one level down, as archives unpack;
    - a table (CSV, TSV, JSON lines, Parquet, polars, pandas) that names files, or holds them;
    - WebDataset shards; Hugging Face folders and data sets.

    Classes are matched by name across the parts.

    Raises:
        DataError: the source is missing, of no known kind, damaged or ambiguous, or holds too little to tell classes apart.
        RecipeError: bad-setting, for options that the source has no use for.
        TrainingError: package-missing.
    """
    return training_dataset(_list(source, options, ()), options)


def open_images(source: Source, options: SourceOptions = DEFAULT_OPTIONS) -> Dataset:
    """List images, with their labels where there are any: a folder of images without class folders is enough.

    Raises:
        DataError: as ``open_dataset``, but a lack of classes is no error.
    """
    try:
        return open_dataset(source, options)
    except DataError as error:
        if error.code not in _LACKS_OF_CLASSES or not isinstance(source, str | Path) or not Path(source).is_dir():
            raise
    rows = Rows()
    for found in iter_files(Path(source)):
        if found.skip:
            rows.set_aside(str(found.path), "skipped", found.skip)
        else:
            rows.use(str(found.path))
    dataset = Dataset(
        table=rows.table(), class_names=(), root=Path(source), notes=("no class folders: images only",)
    )
    if not len(dataset.used()):
        raise DataError("no-images", f"no image was found in {source}", hint=FOLDER_HINT)
    return dataset


def list_images(source: str | Path, options: SourceOptions = DEFAULT_OPTIONS) -> Dataset:
    """Everything a table or shards name, whatever the labels, and also without any; for what is only to be looked at.

    Raises:
        DataError: the source is missing, damaged, or it cannot be told which column holds the images.
    """
    try:
        listing = _list(source, options, ())
    except DataError as error:
        if error.code != "unknown-columns" or Path(source).suffix.casefold() not in TEXT_SUFFIXES:
            raise
        unlabelled = read_label_file(Path(source)).frame.with_columns(pl.lit("-").alias(_NO_LABEL))
        root = options.root or str(Path(source).parent)
        listing = _list(unlabelled, replace(options, label_column=_NO_LABEL, root=root), ())
    return Dataset(
        table=listing.table, class_names=(), root=listing.root, stored=listing.stored, notes=listing.notes
    )


_NO_LABEL = "tellapart: no label"
_LACKS_OF_CLASSES = ("no-images", "single-class", "empty-class")


def open_test_images(
    source: Source,
    class_names: tuple[str, ...],
    options: SourceOptions = DEFAULT_OPTIONS,
    *,
    task: Task | None = None,
) -> Dataset:
    """List the images a model is to be measured on.

    A source with a test part gives that, any other all of it. Classes are the model's: images of other classes are
    refused one by one as ``unknown-class``, and classes without images are no error.

    Args:
        source: as for ``open_dataset``.
        class_names: the model's.
        options: as for ``open_dataset``.
        task: the model's; None takes the source's.

    Raises:
        DataError: as ``open_dataset``; class-mismatch when no label is one of the model's, task-mismatch.
    """
    return test_dataset(_list(source, options, class_names), class_names, options, task)


def _list(source: Source, options: SourceOptions, known: Sequence[str]) -> Listing:
    """Everything the source holds."""
    if isinstance(source, pl.DataFrame):
        return list_table(table_of_frame(source, Path(options.root or ".")), options, known)
    if not isinstance(source, str | Path):
        return _list(_from_pandas(source), options, known)
    text = str(source)
    if is_hub_name(text):
        copy = local_copy(text)
        listing = _list_folder(copy.folder, options, known, bounds=copy.bounds)
        return replace(listing, shown=text, notes=(copy.note, *listing.notes))
    if is_pattern(text):
        return _list_files(expand(text), text, options, known)
    if is_address(text):
        return _list_files([text], text, options, known)
    if not Path(text).exists():
        raise DataError("source-not-found", f"{text} does not exist", hint=FOLDER_HINT)
    if Path(text).is_dir():
        return _list_folder(Path(text), options, known)
    return _list_files([text], text, options, known)


def _list_files(
    files: Sequence[str],
    shown: str,
    options: SourceOptions,
    known: Sequence[str],
    *,
    root: Path | None = None,
    bounds: Path | None = None,
) -> Listing:
    """One file, or several of a kind that comes in several."""
    suffixes = {Path(file).suffix.casefold() for file in files}
    if any(file.casefold().endswith(_COMPRESSED_SHARDS) for file in files) or suffixes == {".tar"}:
        return list_table(read_shards(files, options), options, known)
    if any(is_address(file) for file in files):
        raise DataError(
            "unsupported-source", f"{shown}: only .tar shards are read from elsewhere", hint="copy it here"
        )
    if suffixes == {".parquet"}:
        paths = [Path(file) for file in files]
        return list_table(read_parquet(paths, root or paths[0].parent, bounds), options, known)
    if len(files) == 1 and suffixes <= set(TEXT_SUFFIXES):
        return list_table(read_label_file(Path(files[0])), options, known)
    if len(files) > 1:
        message = f"{shown} stands for {len(files):,} files; several may be .tar or .parquet, all of one kind"
        raise DataError("unsupported-source", message, hint=f"give {_KINDS}")
    hint = _OTHER_KINDS.get(Path(files[0]).suffix.casefold())
    if hint:
        raise DataError(
            "unsupported-source", f"{shown} is of a kind that holds no labels for tellapart", hint=hint
        )
    raise DataError("source-not-found", f"{shown} is a file, not a folder or a table", hint=f"give {_KINDS}")


def _list_folder(
    folder: Path, options: SourceOptions, known: Sequence[str], bounds: Path | None = None
) -> Listing:
    """A folder of class folders, of a table that describes it, of Parquet files or of shards."""
    metadata = metadata_files(folder)
    if metadata:
        return list_table(read_metadata(metadata, folder, bounds), options, known)
    if not _has_pictures(folder):
        for suffix in (".parquet", ".tar"):
            files = _files_below(folder, suffix)
            if files:
                return _list_files(files, str(folder), options, known, root=folder, bounds=bounds)
    if replace(options, group_pattern="", outside_root=False, exclude="", relabel="") != DEFAULT_OPTIONS:
        message = f"{folder} holds class folders: columns, labels, a separator and a root are for tables"
        raise RecipeError("bad-setting", message, hint="give the table itself, such as photos/labels.csv")
    return list_class_folders(folder)


def _has_pictures(folder: Path) -> bool:
    """Whether there are images in the folder or two levels below: then what else lies there is no source."""
    below = subfolders(folder)
    return any(has_images(place) for place in (folder, *below)) or any(
        has_images(inner) for place in below for inner in subfolders(place)
    )


def _files_below(folder: Path, suffix: str) -> list[str]:
    """Files of an ending in the folder and two levels below, in natural order."""
    found = [
        str(path)
        for depth in ("*", "*/*", "*/*/*")
        for path in folder.glob(depth + suffix)
        if path.is_file() and not any(map(skip_rule, path.relative_to(folder).parts))
    ]
    return sorted(found, key=lambda path: (natural_key(path), path))


def _from_pandas(frame: PandasFrame) -> pl.DataFrame:
    """A pandas table, column by column: its own way to polars needs another package.

    Raises:
        RecipeError: bad-setting, for what is no table.
    """
    if not type(frame).__module__.startswith("pandas"):
        raise RecipeError("bad-setting", f"a source is {_KINDS}, or a polars or pandas table, not {type(frame)}")
    columns = {str(name): [_pandas_cell(cell) for cell in frame[name].tolist()] for name in frame.columns}
    for name, cells in columns.items():
        if len({type(cell) for cell in cells if cell is not None}) > 1:
            columns[name] = [None if cell is None else str(cell) for cell in cells]
    return pl.DataFrame(columns)


def _pandas_cell(cell: Any) -> Any:
    """Text, bytes and lists as they are, a number as text, and nothing for each of its ways to say nothing."""
    if isinstance(cell, str | bytes | list):
        return cell
    missing = cell is None or cell != cell or str(cell) in ("NaT", "<NA>")
    return None if missing else str(cell)
