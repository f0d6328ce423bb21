"""Which column of a table is what: recognised by its values, or named by the user."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tellapart.data.label_files import parse_list
from tellapart.data.listing import SPLIT_NAMES, names_in_words
from tellapart.errors import DataError
from tellapart.imaging.files import IMAGE_SUFFIXES
from tellapart.records import SourceOptions, Task

LITERAL = "['a', 'b']"
"""Stands for the separator of lists as Python and JSON write them."""

ONE_CLASS = "none"
"""Stands for no separator: a cell is one class."""

# Names decide only between columns whose values leave it open.
IMAGE_NAMES = frozenset(
    "image images file files filename filenames file_name path paths image_path img image_name".split()
)
_LABEL_NAMES = frozenset(
    "label labels class classes category target tags cls class_name class_label json.label".split()
)
_GROUP_NAMES = frozenset("group group_id patient patient_id subject subject_id".split())
_TRUE, _FALSE = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false"})
_SEPARATORS = (";", "|", ",", " ")
_FEW_ROWS = 20
_SAMPLED_ROWS = 1_000
_MOSTLY = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelColumns:
    """Where a table's labels stand.

    Attributes:
        label: one column of classes or of lists; empty where each label has a column.
        separator: between the labels of a list; empty where a cell is one class.
        indicators: columns of 0 and 1, one for each label.
        exclusive: whether exactly one indicator of each row is 1, and it is read as one class an image.
        names: labels of a list column that count; empty: all.
    """

    label: str = ""
    separator: str = ""
    indicators: tuple[str, ...] = ()
    exclusive: bool = False
    names: tuple[str, ...] = ()
    listed: bool = False

    @property
    def task(self) -> Task:
        """One class an image, or any number of labels."""
        one_class = self.exclusive or (self.label and not self.separator and not self.listed and not self.names)
        return "classification" if one_class else "multilabel"

    def note(self) -> str:
        """What was recognised, in words."""
        if self.exclusive:
            return (
                f"classes: columns {names_in_words(self.indicators)}, of which each row has exactly one"
                " (name them with --labels for several labels an image)"
            )
        if self.indicators:
            return f"labels: columns {names_in_words(self.indicators)}"
        if self.task == "classification":
            return f"classes: column {self.label!r}"
        between = f", separated by {self.separator!r}" if self.separator not in ("", LITERAL) else ""
        only = f", of which {names_in_words(self.names)} count" if self.names else ""
        return f"labels: column {self.label!r}, a list{between}{only}"


def find_labels(
    frame: pl.DataFrame, taken: Sequence[str], options: SourceOptions, known: Sequence[str], shown: str
) -> LabelColumns:
    """Recognise the labels, or find the columns the user named.

    Args:
        frame: text columns, broken rows left out.
        taken: columns that hold something else.
        options: what the user named.
        known: a model's classes, which may decide between columns; empty in training.
        shown: the table, for messages.

    Raises:
        DataError: no-such-column, ambiguous-columns, unknown-columns.
    """
    free = [name for name in frame.columns if name not in taken]
    columns = [name for name in options.labels if name in frame.columns]
    if columns and len(columns) < len(options.labels):
        require_columns(frame, options.labels, shown)
    if columns:
        return LabelColumns(indicators=tuple(columns))
    if options.label_column:
        require_columns(frame, [options.label_column], shown)
        return _of_column(frame[options.label_column], options)
    choices = _choices(frame, free, options, known)
    if len(choices) > 1:
        choices = _by_name(choices) or _by_classes(frame, choices, known) or choices
    if len(choices) == 1:
        return choices[0]
    if choices:
        raise _ambiguous(frame, choices, shown)
    raise _unknown(frame, free, options, shown)


def find_split(frame: pl.DataFrame, taken: Sequence[str], options: SourceOptions, shown: str) -> str:
    """The column that says train, val or test; empty without one.

    Raises:
        DataError: no-such-column, ambiguous-columns.
    """
    if options.split_column:
        require_columns(frame, [options.split_column], shown)
        return options.split_column
    found = [name for name in frame.columns if name not in taken and _says_parts(frame[name])]
    if len(found) > 1:
        found = [name for name in found if name.casefold() in ("split", "set", "part", "subset")]
        if len(found) != 1:
            message = f"{shown}: several columns could be the split"
            raise DataError("ambiguous-columns", message, hint="name one: --split-column NAME")
    return found[0] if found else ""


def find_group(frame: pl.DataFrame, taken: Sequence[str], options: SourceOptions, shown: str) -> str:
    """The column of groups the user named, or one with a customary name; empty without one.

    Raises:
        DataError: no-such-column.
    """
    if options.group_column:
        require_columns(frame, [options.group_column], shown)
        return options.group_column
    if options.group_pattern:
        return ""
    named = [name for name in frame.columns if name not in taken and name.casefold() in _GROUP_NAMES]
    repeated = [name for name in named if 1 < frame[name].drop_nulls().n_unique() < frame[name].count()]
    return repeated[0] if len(repeated) == 1 else ""


def looks_like_paths(column: pl.Series) -> bool:
    """Whether most cells end as images do, or are addresses."""
    if column.dtype != pl.String:
        return False
    cells = column.drop_nulls().head(_SAMPLED_ROWS)
    paths = [Path(cell).suffix.casefold() in IMAGE_SUFFIXES or "://" in cell for cell in cells]
    return 2 * sum(paths) > len(paths)


def require_columns(frame: pl.DataFrame, names: Sequence[str], shown: str) -> None:
    """Raise unless all columns are there.

    Raises:
        DataError: no-such-column.
    """
    missing = [name for name in names if name not in frame.columns]
    if missing:
        message = f"{shown} has no column {names_in_words(map(repr, missing))}"
        raise DataError("no-such-column", message, hint=f"it has {names_in_words(frame.columns)}")


def labels_in(cell: str | list[str] | None, separator: str) -> list[str] | None:
    """The labels of a list cell, each once; None where the cell is no list of the kind."""
    if cell is None:
        return []
    if isinstance(cell, str):
        if separator == LITERAL:
            parsed = parse_list(cell)
            if parsed is None:
                return None
            cell = parsed
        else:
            cell = cell.split(separator) if separator else [cell]
    return list(dict.fromkeys(name.strip() for name in cell if name.strip()))


def indicated(cell: str | None) -> bool | None:
    """Whether a cell says yes; None where it says neither yes nor no."""
    folded = (cell or "").casefold()
    return True if folded in _TRUE else False if folded in _FALSE else None


def _of_column(column: pl.Series, options: SourceOptions) -> LabelColumns:
    listed = isinstance(column.dtype, pl.List)
    separator = "" if listed else options.label_separator or _separator(column)
    return LabelColumns(
        label=column.name,
        separator="" if separator == ONE_CLASS else separator,
        names=options.labels,
        listed=listed,
    )


def _choices(
    frame: pl.DataFrame, free: Sequence[str], options: SourceOptions, known: Sequence[str]
) -> list[LabelColumns]:
    """Everything that could be the labels."""
    indicators = [name for name in free if _is_indicator(frame[name])]
    others = [name for name in free if name not in indicators]
    choices = []
    if len(indicators) > 1 and not options.labels:
        named = [name for name in indicators if name in known]
        names = tuple(named if known and len(named) == len(known) else indicators)
        choices.append(LabelColumns(indicators=names, exclusive=_is_exclusive(frame.select(names))))
    else:
        others += indicators
    others = [name for name in others if not looks_like_paths(frame[name])]
    few = [name for name in others if _has_few(frame[name], options)]
    # A table of one other column can mean nothing else, however small or uniform it is.
    if not few and not choices and len(others) == 1 and not _all_differ(frame[others[0]]):
        few = others
    return choices + [_of_column(frame[name], options) for name in few]


def _by_name(choices: list[LabelColumns]) -> list[LabelColumns]:
    named = [choice for choice in choices if choice.label.casefold() in _LABEL_NAMES]
    return named if len(named) == 1 else []


def _by_classes(frame: pl.DataFrame, choices: list[LabelColumns], known: Sequence[str]) -> list[LabelColumns]:
    """The one choice that speaks of the model's classes."""
    speaking = [choice for choice in choices if set(_names(frame, choice)) & set(known)]
    return speaking if len(speaking) == 1 else []


def _names(frame: pl.DataFrame, choice: LabelColumns) -> list[str]:
    """Labels of a choice, in the order they are met."""
    if choice.indicators:
        return list(choice.indicators)
    cells = frame[choice.label].drop_nulls().unique(maintain_order=True)
    return list(dict.fromkeys(name for cell in cells for name in labels_in(_plain(cell), choice.separator) or []))


def _plain(cell: object) -> str | list[str]:
    return cell if isinstance(cell, str) else [str(item) for item in cell if item is not None]  # type: ignore[attr-defined]


def _is_indicator(column: pl.Series) -> bool:
    """Nearly all 0 and 1: what is not is refused row by row."""
    if column.dtype != pl.String:
        return False
    values = column.drop_nulls().str.to_lowercase()
    return len(values) > 0 and float(values.is_in(list(_TRUE | _FALSE)).sum()) >= _MOSTLY * len(values)


def _is_exclusive(frame: pl.DataFrame) -> bool:
    ones = [pl.col(name).str.to_lowercase().is_in(list(_TRUE)).cast(pl.Int64) for name in frame.columns]
    return bool((frame.select(pl.sum_horizontal(ones)).to_series() == 1).all())


def _has_few(column: pl.Series, options: SourceOptions) -> bool:
    """Whether the values, or the items of its lists, come again and again as classes do."""
    labels = _of_column(column, options)
    names = _names(column.to_frame(), labels)
    if len(names) < 2 or all(re.fullmatch(r"-?[0-9]*\.[0-9]*[1-9]", name) for name in names):
        return False
    n = column.count()
    row_numbers = len(names) == n and all(name.isdecimal() for name in names)
    return not row_numbers and (n < _FEW_ROWS or 2 * len(names) <= n)


def _all_differ(column: pl.Series) -> bool:
    n = column.drop_nulls().n_unique()
    return column.len() >= _FEW_ROWS and 2 * n > column.len()


def _separator(column: pl.Series) -> str:
    """What stands between the labels of a cell; empty where a cell is one class.

    Bars and semicolons are in no class's name. Commas and blanks may be: they separate when the parts come again in
    other company, and for blanks, when cells also differ in how many parts they have.
    """
    cells = column.drop_nulls().unique(maintain_order=True)
    if not len(cells):
        return ""
    if all(parse_list(cell) is not None for cell in cells.head(_FEW_ROWS)):
        return LITERAL
    for separator in _SEPARATORS:
        several = cells.filter(cells.str.contains(separator, literal=True))
        if not len(several):
            continue
        parts = [tuple(labels_in(cell, separator) or ()) for cell in cells]
        names = {name for cell in parts for name in cell}
        fewer = len(names) < len(parts)
        if separator in ";|" or (separator == "," and len(names) <= len(parts)):
            return separator
        if separator == " " and fewer and len({len(cell) for cell in parts}) > 1:
            return separator
    return ""


def _says_parts(column: pl.Series) -> bool:
    if column.dtype != pl.String:
        return False
    values = set(column.drop_nulls().unique().str.to_lowercase())
    certain = len(values) > 1 or (values and column.name.casefold() == "split")
    return bool(certain) and values <= set(SPLIT_NAMES)


def _ambiguous(frame: pl.DataFrame, choices: list[LabelColumns], shown: str) -> DataError:
    described = []
    for choice in choices:
        names = _names(frame, choice)
        what = f"{len(names):,} values: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        described.append(f"{' + '.join(choice.indicators) or choice.label} ({what})")
    single = next((choice.label for choice in choices if choice.label), "")
    columns = next((choice.indicators for choice in choices if choice.indicators), ())
    ways = [f"--label-column {single}"] if single else []
    ways += [f"--labels {','.join(columns)}"] if columns else []
    return DataError(
        "ambiguous-columns",
        f"{shown}: several columns could be the labels: {'; '.join(described)}",
        hint=f"name what you mean, such as {' or '.join(ways)}",
    )


def _unknown(frame: pl.DataFrame, free: Sequence[str], options: SourceOptions, shown: str) -> DataError:
    if options.labels:
        message = f"{shown} has no columns {names_in_words(options.labels)}, and no column with lists of them"
        return DataError("no-such-column", message, hint=f"it has {names_in_words(frame.columns)}")
    message = f"{shown}: no column holds the labels"
    if free:
        message += f"; {names_in_words(map(repr, free))} do not repeat as classes do"
    return DataError(
        "unknown-columns", message, hint="name it: --label-column NAME, or --labels A,B for columns of 0 and 1"
    )
