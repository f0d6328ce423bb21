"""Files of labels as people have them: CSV, TSV and JSON lines, read into one kind of table."""

import ast
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from tellapart.errors import DataError
from tellapart.imaging.decode import StoredImage
from tellapart.imaging.files import IMAGE_SUFFIXES

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
MAX_TABLE_BYTES = 2**30
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SNIFFED_ROWS = 50
_BINARY_KINDS = (
    (b"PK\x03\x04", "a spreadsheet or a ZIP archive", "save it as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file", "save it as CSV (UTF-8)"),
    (b"PAR1", "a Parquet file", "rename it to end in .parquet"),
    (b"\x1f\x8b", "a compressed file", "unpack it first"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aside:
    """Something that was seen, and why it is not used; codes as in a Dataset's ``reason``."""

    path: str
    status: Literal["refused", "skipped"]
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Rows that name images and say what is in them.

    Attributes:
        shown: the table's own path, with which rows that lead to no file are shown.
        frame: columns of text or of lists of text, one row for each row of the file.
        unit: what rows are counted in: ``line`` of a text file, ``row`` of a table.
        numbers: for each row its line or row, counted from 1; lines as an editor shows them.
        root: the folder that relative paths begin with.
        bounds: the folder that no path may leave.
        paths: how rows are shown, where not as ``shown`` and the number.
        broken: what is wrong with a row as a whole, by its place in ``frame``.
        images: columns that hold the images themselves; None in a cell without one.
        aside: what was seen beside the rows and is not used.
        notes: what is odd about the file and was dealt with.
    """

    shown: str
    frame: pl.DataFrame
    unit: str
    numbers: Sequence[int]
    root: Path
    bounds: Path
    paths: Sequence[str] = ()
    broken: Mapping[int, str] = field(default_factory=dict)
    images: Mapping[str, Sequence[StoredImage | None]] = field(default_factory=dict, repr=False)
    aside: Sequence[Aside] = ()
    notes: tuple[str, ...] = ()

    def path_of_row(self, index: int) -> str:
        """How a row is shown that leads to no file."""
        if self.paths:
            return self.paths[index]
        return f"{self.shown}#{self.unit} {self.numbers[index]}"

    def where(self, index: int) -> str:
        """The row in words, for messages."""
        if self.paths:
            return self.paths[index]
        return f"{Path(self.shown).name}, {self.unit} {self.numbers[index]:,}"


def read_label_file(path: Path, *, root: Path | None = None, bounds: Path | None = None) -> LabelTable:
    """Read a CSV, TSV or JSON lines file.

    Args:
        path: the file.
        root: the folder that relative paths begin with; the file's own when None.
        bounds: the folder that no path may leave; ``root`` when None.

    Raises:
        DataError: damaged-table, with the line.
    """
    root = root or path.parent
    data = _read(path)
    text, notes = _decode(path, data)
    if path.suffix.casefold() == ".jsonl":
        header, cells, lines, broken = _parse_json_lines(path, text)
    else:
        header, cells, lines, broken, more_notes = _parse_delimited(path, text)
        notes += more_notes
    if not cells:
        raise _damaged(path, "it has no row below the header", "add a row for each image")
    return LabelTable(
        shown=str(path),
        frame=_frame(header, cells),
        unit="line",
        numbers=lines,
        root=root,
        bounds=bounds or root,
        broken=broken,
        notes=tuple(notes),
    )


def as_text_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """A table's columns as text or lists of text; what is neither text, number nor list of those is left out."""
    kept = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if isinstance(dtype, pl.List | pl.Array):
            if _is_scalar(dtype.inner):
                kept.append(column.cast(pl.List(dtype.inner)).cast(pl.List(pl.String)))
        elif _is_scalar(dtype):
            kept.append(column.cast(pl.String))
    return frame.select(kept)


def parse_list(cell: str) -> list[str] | None:
    """A list as Python or JSON write it, such as ``['a', 'b']``; None for any other text."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        value = ast.literal_eval(cell) if len(cell) < 100_000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(item) for item in value] if isinstance(value, list) else None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise _damaged(path, f"it has more than {MAX_TABLE_BYTES:,} bytes", "save it as Parquet")
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error), "") from error
    if not data.strip():
        raise _damaged(path, "it is empty", "it needs a header and a row for each image")
    for signature, kind, hint in _BINARY_KINDS:
        if data.startswith(signature):
            raise _damaged(path, f"it is {kind}, not text", hint)
    return data


def _decode(path: Path, data: bytes) -> tuple[str, list[str]]:
    """The text, whatever program wrote it."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16"), [f"{path.name} is UTF-16"]
        except UnicodeDecodeError as error:
            raise _damaged(
                path, f"it begins as UTF-16, and byte {error.start:,} is not", "save it as UTF-8"
            ) from error
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise _damaged(path, f"line {line} holds a zero byte: this is no text", "save it as CSV (UTF-8)")
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        note = f"{path.name} is not UTF-8 (line {line}): read as Latin-1 (Windows-1252)"
        try:
            return data.decode("cp1252"), [note]
        except UnicodeDecodeError:  # five bytes mean nothing in it, and everything means something in Latin-1
            return data.decode("latin-1"), [note]


def _parse_delimited(
    path: Path, text: str
) -> tuple[list[str], list[list[Any]], list[int], dict[int, str], list[str]]:
    """Header, cells, line of each row, rows of a wrong length, and notes."""
    skipped, delimiter = _delimiter(path, text)
    records = _records(path, text, delimiter, skipped)
    line, header = next(records, None) or (1, [])
    notes = [f"{path.name} is separated by {_DELIMITERS[delimiter]}"] if delimiter in ";|" else []
    rows = [(number, row) for number, row in records if any(cell.strip() for cell in row)]
    if any(Path(cell.strip()).suffix.casefold() in IMAGE_SUFFIXES for cell in header):
        rows.insert(0, (line, header))
        header = [str(i + 1) for i in range(len(header))]
        notes.append(f"{path.name} has no header: its columns are called {' '.join(header)}")
    header = _checked_header(path, header, line)
    cells, broken = [], {}
    for index, row in enumerate(row for _, row in rows):
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        if len(row) != len(header):
            broken[index] = f"it has {len(row)} cell{'s' * (len(row) > 1)}, the header has {len(header)}"
            row = [""] * len(header)
        cells.append([cell.strip() or None for cell in row])
    return header, cells, [number for number, _ in rows], broken, notes


def _delimiter(path: Path, text: str) -> tuple[int, str]:
    """Lines before the header, and what separates its cells: what gives most rows the header's length."""
    said = re.match(r"sep=([^\"\r\n])[\r\n]", text)  # Excel's own way to say it
    if said:
        return 1, said.group(1)
    if path.suffix.casefold() == ".tsv":
        return 0, "\t"
    head = list(islice(io.StringIO(text, newline=""), _SNIFFED_ROWS))
    candidates = [*_DELIMITERS, *([" "] if path.suffix.casefold() == ".txt" else [])]

    def fit(delimiter: str) -> tuple[bool, float, int]:
        widths = [len(row) for row in csv.reader(head, delimiter=delimiter) if row]
        width = widths[0] if widths else 0
        return width > 1, sum(n == width for n in widths) / max(1, len(widths)), width

    return 0, max(candidates, key=fit)


def _records(path: Path, text: str, delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on; a quoted cell may go over several lines."""
    lines = io.StringIO(text, newline="")  # lines end in LF, CR LF or, as from old Macs, CR
    for _ in range(skipped):
        lines.readline()
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = 1
    try:
        for row in reader:
            if row:
                yield skipped + start, row
            start = reader.line_num + 1
    except csv.Error as error:
        what = str(error)
        if "unexpected end of data" in what:
            message = f"a quote that is opened in the row of line {skipped + start:,} is never closed"
            raise _damaged(path, message, 'close it, or write a quote inside a cell twice: ""') from error
        if "field larger" in what:
            message = f"a cell in the row of line {skipped + start:,} is longer than {csv.field_size_limit():,} characters"
            raise _damaged(path, message, "a quote is probably never closed there") from error
        message = f"line {skipped + reader.line_num:,}: {what}"
        raise _damaged(path, message, 'write a quote inside a cell twice: ""') from error


def _checked_header(path: Path, header: list[str], line: int) -> list[str]:
    names = [cell.strip() or f"column {i + 1}" for i, cell in enumerate(header)]
    while len(names) > 1 and not header[len(names) - 1].strip():
        names.pop()
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise _damaged(path, f"line {line}: two columns are called {repeated!r}", "rename one of them")
    if not any(cell.strip() for cell in header):
        raise _damaged(path, f"line {line}: no column has a name", "the first line must name the columns")
    return names


def _parse_json_lines(path: Path, text: str) -> tuple[list[str], list[list[Any]], list[int], dict[int, str]]:
    """Header, cells, line of each row, and lines that are no JSON object."""
    rows: list[tuple[int, dict[str, Any]]] = []
    broken: dict[int, str] = {}
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            broken[len(rows)] = "it is no JSON object"
            value = {}
        rows.append((number, value))
    if len(broken) == len(rows):
        raise _damaged(
            path, "no line is a JSON object", 'write lines such as {"file_name": "1.jpg", "label": "cat"}'
        )
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    cells = [[_json_cell(row.get(key)) for key in header] for _, row in rows]
    return header, cells, [number for number, _ in rows], broken


def _json_cell(value: Any) -> str | list[str] | None:
    if isinstance(value, list):
        return [str(item) for item in value if isinstance(item, str | int | float)]
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() or None if isinstance(value, str | int | float) else None


def _frame(header: list[str], cells: list[list[Any]]) -> pl.DataFrame:
    columns = {}
    for i, name in enumerate(header):
        values = [row[i] for row in cells]
        if any(isinstance(value, list) for value in values):
            listed = [[value] if isinstance(value, str) else value for value in values]
            columns[name] = pl.Series(name, listed, dtype=pl.List(pl.String))
        else:
            columns[name] = pl.Series(name, values, dtype=pl.String)
    return pl.DataFrame(columns)


def _is_scalar(dtype: Any) -> bool:
    return bool(
        dtype.is_numeric()
        or dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)
        or isinstance(dtype, pl.Enum)
    )


def _damaged(path: Path, what: str, hint: str) -> DataError:
    return DataError("damaged-table", f"{path}: {what}", hint=hint)
