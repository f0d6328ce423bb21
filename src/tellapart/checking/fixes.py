"""The fix list: what could be done about the issues, as a CSV to go through and to train with."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from tellapart.data.dataset import Dataset
from tellapart.data.label_files import LabelTable, read_label_file
from tellapart.data.listing import names_in_words
from tellapart.errors import DataError
from tellapart.records import Issue
from tellapart.storage import write_bytes

Action = Literal["exclude", "relabel"]
COLUMNS = ("path", "action", "label", "reason", "apply")

_ALL = frozenset({"unreadable", "truncated", "blank", "dark", "bright", "blurred", "outlier"})
_ALL_BUT_FIRST = frozenset({"duplicate", "near-duplicate", "leak"})
# What else there is, and copies that are only nearly the same, somebody should look at: the list says no until then.
_SURE = frozenset({"unreadable", "truncated", "blank", "duplicate", "leak"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Fix:
    """What to do with one image.

    Attributes:
        path: as in the dataset.
        label: the new class; empty to exclude.
        reason: why, in words or as an issue's kind.
        line: of the list, for messages.
    """

    path: str
    action: Action
    label: str = ""
    reason: str = ""
    line: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixes:
    """A fix list that was read: the lines that are to be applied.

    Attributes:
        shown: the list's path, for messages.
        fixes: in the order of the lines, each path once.
    """

    shown: str
    fixes: tuple[Fix, ...]

    def of(self, action: Action) -> tuple[Fix, ...]:
        """Those of one action."""
        return tuple(fix for fix in self.fixes if fix.action == action)


def write_fix_list(issues: Sequence[Issue], path: Path) -> int:
    """Write what could be done about the issues: a line an image, for its worst issue that something can be done about.

    What is sure has ``yes`` in the column ``apply``: unreadable files, images of nothing, all but one of several equal files.
    Label errors, outliers, conflicts of labels, near-duplicates and poor pictures have ``no``: somebody should look first.

    Returns:
        Number of lines.

    Raises:
        StorageError: cannot-write.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    proposed = _proposed(issues)
    for fix, issue in proposed.values():
        sure = issue.kind in _SURE and issue.evidence.get("copies") != "near"
        writer.writerow((fix.path, fix.action, fix.label, fix.reason, "yes" if sure else "no"))
    write_bytes(path, text.getvalue().encode())
    return len(proposed)


def read_fix_list(path: Path) -> Fixes:
    """Read a fix list; lines without ``yes`` in the column ``apply`` are left out, where there is that column.

    Raises:
        DataError: damaged-table, no-such-column, bad-row; with the line.
    """
    if _is_empty(path):
        return Fixes(shown=str(path), fixes=())
    table = read_label_file(path)
    missing = [name for name in COLUMNS[:2] if name not in table.frame.columns]
    if missing:
        message = f"{path} has no column {missing[0]!r}; it has {names_in_words(table.frame.columns)}"
        raise DataError("no-such-column", message, hint=f"a fix list has the columns {', '.join(COLUMNS)}")
    fixes: dict[str, Fix] = {}
    for fix in _read_rows(table):
        other = fixes.setdefault(fix.path, fix)
        if (other.action, other.label) != (fix.action, fix.label):
            message = f"{path}, line {fix.line}: {fix.path} is to be treated otherwise in line {other.line}"
            raise DataError("bad-row", message, hint="keep one of the two lines")
    return Fixes(shown=str(path), fixes=tuple(fixes.values()))


def apply_fixes(dataset: Dataset, excluded: Fixes | None = None, relabelled: Fixes | None = None) -> Dataset:
    """Take images out of use and give others a new class; the files themselves stay as they are.

    Args:
        dataset: as it was opened.
        excluded: a list whose ``exclude`` lines count.
        relabelled: a list whose ``relabel`` lines count; it may be the same.

    Returns:
        The dataset, in which excluded images are ``skipped`` as ``excluded``.

    Raises:
        DataError: no-path, for a path that is not in the dataset; unknown-class; task-mismatch, to relabel where an image may
            have several labels. All with the line.
    """
    if relabelled:
        dataset = _relabel(dataset, relabelled)
    if not excluded:
        return dataset
    fixes = excluded.of("exclude")
    _require_paths(dataset, excluded, fixes)
    return dataset.with_outcome("skipped", {fix.path: ("excluded", fix.reason) for fix in fixes})


def _is_empty(path: Path) -> bool:
    """Whether nothing was found to write: the header alone, which no table of labels may be."""
    header = ",".join(COLUMNS).encode()
    return path.is_file() and path.stat().st_size <= 2 * len(header) and path.read_bytes().strip() == header


def _proposed(issues: Sequence[Issue]) -> dict[str, tuple[Fix, Issue]]:
    """For each path what to do, and the issue it is for: the first that says something."""
    proposed: dict[str, tuple[Fix, Issue]] = {}
    # A conflict of labels says less than a label error does about one of its images, and comes last.
    for issue in sorted(issues, key=lambda issue: issue.kind == "label-conflict"):
        for fix in _fixes_of(issue):
            proposed.setdefault(fix.path, (fix, issue))
    return proposed


def _fixes_of(issue: Issue) -> Iterator[Fix]:
    if issue.kind == "label-error":
        label = str(issue.evidence["suggested"])
        reason = f"{issue.kind}: {issue.evidence['label']}"
        yield Fix(path=issue.paths[0], action="relabel", label=label, reason=reason)
        return
    if issue.kind in _ALL or issue.kind == "label-conflict":
        yield from (Fix(path=path, action="exclude", reason=_reason(issue)) for path in issue.paths)
    if issue.kind in _ALL_BUT_FIRST:
        kept = issue.paths[0]
        reason = f"{issue.kind} of {kept}"
        yield from (Fix(path=path, action="exclude", reason=reason) for path in issue.paths[1:])


def _reason(issue: Issue) -> str:
    code = issue.evidence.get("code")
    return f"{issue.kind}: {code}" if code else issue.kind


def _read_rows(table: LabelTable) -> Iterator[Fix]:
    for i, row in enumerate(table.frame.iter_rows(named=True)):
        where = f"{table.shown}, line {table.numbers[i]}"
        if i in table.broken:
            raise DataError("bad-row", f"{where}: {table.broken[i]}", hint="write it like the other lines")
        if _cell(row, "apply", "yes").strip().casefold() in ("yes", "y", "true", "1"):
            yield _read_row(row, where, table.numbers[i])


def _read_row(row: Mapping[str, object], where: str, line: int) -> Fix:
    path, label = _cell(row, "path"), _cell(row, "label")
    action = next((known for known in get_args(Action) if known == _cell(row, "action").strip().casefold()), None)
    if action is None:
        message = f"{where}: the action must be exclude or relabel, got {_cell(row, 'action')!r}"
        raise DataError("bad-row", message, hint="to keep an image as it is, write no into the column apply")
    if not path:
        raise DataError("bad-row", f"{where}: there is no path", hint="write it as in the list that check wrote")
    if (action == "relabel") != bool(label):
        message = (
            f"{where}: relabel needs a label" if not label else f"{where}: exclude takes no label, got {label!r}"
        )
        raise DataError("bad-row", message, hint="relabel gives an image another class, exclude leaves it out")
    return Fix(path=path, action=action, label=label, reason=_cell(row, "reason"), line=line)


def _cell(row: Mapping[str, object], column: str, absent: str = "") -> str:
    """A cell as text; ``absent`` where there is no such column."""
    if column not in row:
        return absent
    value = row[column]
    return "" if value is None else str(value)


def _relabel(dataset: Dataset, relabelled: Fixes) -> Dataset:
    fixes = relabelled.of("relabel")
    if fixes and dataset.task != "classification":
        message = (
            f"{relabelled.shown}, line {fixes[0].line}: images with several labels cannot be relabelled by a list"
        )
        raise DataError("task-mismatch", message, hint="change the table of labels itself")
    _require_paths(dataset, relabelled, fixes)
    for fix in fixes:
        if fix.label not in dataset.class_names:
            message = f"{relabelled.shown}, line {fix.line}: {fix.label!r} is none of the classes"
            raise DataError("unknown-class", message, hint=f"they are {names_in_words(dataset.class_names)}")
    labels = pl.col("path").replace({fix.path: fix.label for fix in fixes})
    hit = pl.col("path").is_in([fix.path for fix in fixes])
    return dataset.with_columns(pl.when(hit).then(labels).otherwise("label").alias("label"))


def _require_paths(dataset: Dataset, fixes: Fixes, wanted: Sequence[Fix]) -> None:
    known = set(dataset.paths) if wanted else set()
    for fix in wanted:
        if fix.path not in known:
            message = f"{fixes.shown}, line {fix.line}: {fix.path} is none of the {len(known):,} images"
            raise DataError("no-path", message, hint=f"paths look like {next(iter(dataset.paths), 'nothing')}")
