"""Issues of pictures that are there more than once, byte for byte or nearly."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from tellapart.checking.severity import rated
from tellapart.data.check import KEEP_FIRST
from tellapart.data.dataset import LABEL_KEY, Dataset
from tellapart.data.quality import Finding
from tellapart.records import Issue


def copy_issues(opened: Dataset, checked: Dataset) -> Iterator[Issue]:
    """Files with the same bytes.

    Args:
        opened: with the splits of the user; those of copies are gone once they are checked.
        checked: the same rows, with contents.
    """
    places = _places(opened)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    repeated = checked.table.filter(pl.col("content").is_not_null() & pl.col("content").is_duplicated())
    for path, content in repeated.select("path", "content").iter_rows():
        groups[content].append(path)
    for paths in groups.values():
        yield from _of_group(paths, places, "duplicate", 1.0, {})


def near_copy_issues(part: Dataset, groups: Sequence[Finding]) -> Iterator[Issue]:
    """Images that show the same picture; ``compared`` in the evidence has how each differs from the group's first."""
    places, paths = _places(part), part.paths
    for group in groups:
        first, *others = (paths[i] for i in group.indices)
        similarity, changes = (_sequence(group.evidence[key]) for key in ("similarity", "changes"))
        compared = {
            other: {"similarity": similarity[k], "changes": list(changes[k])} for k, other in enumerate(others)
        }
        evidence = {"compared_with": first, "compared": compared}
        yield from _of_group([first, *others], places, "near-duplicate", group.severity, evidence)


def _of_group(
    paths: list[str],
    places: Mapping[str, tuple[str | None, str | None]],
    kind: str,
    degree: float,
    evidence: Mapping[str, object],
) -> Iterator[Issue]:
    """The kinds that apply to one picture that is there several times: both grave ones, or else the plain one."""
    labels = {path: places[path][0] for path in paths}
    splits = {path: places[path][1] for path in paths}
    in_classes = len({label for label in labels.values() if label is not None}) > 1
    leaks = len({split for split in splits.values() if split is not None}) > 1
    paths = sorted(paths, key=lambda path: KEEP_FIRST[splits[path]])
    found = {"copies": "exact" if kind == "duplicate" else "near", **evidence}
    if in_classes:
        yield rated("label-conflict", degree, paths, {"labels": labels, **found})
    if leaks:
        yield rated("leak", degree, paths, {"splits": splits, **found})
    if not (in_classes or leaks):
        yield rated(kind, degree, paths, found)


def _places(dataset: Dataset) -> dict[str, tuple[str | None, str | None]]:
    """Label, or labels as one text, and split of each path."""
    rows = dataset.table.select("path", LABEL_KEY, "split").iter_rows()
    return {path: (label, split) for path, label, split in rows}


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else ()
