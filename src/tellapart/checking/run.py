"""run_check: look at every image once, ask every detector, and rank what they found."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tellapart.checking.classes import class_issues
from tellapart.checking.copies import copy_issues, near_copy_issues
from tellapart.checking.files import extension_issues, name_issues, unreadable_issues
from tellapart.checking.looks import Seen, look_at
from tellapart.checking.severity import rated
from tellapart.data.check import check_contents
from tellapart.data.dataset import Dataset
from tellapart.data.near_duplicates import find_near_duplicates
from tellapart.data.quality import find_odd, quality_of
from tellapart.evaluation.label_errors import find_label_errors
from tellapart.evaluation.outliers import find_outliers
from tellapart.records import Backbone, Issue, Preprocess, Progress, no_progress
from tellapart.storage import atomic_file

DEFAULT_PREPROCESS = Preprocess(input_size_px=224)
MIN_CLASS_IMAGES = 5
"""Classes with fewer images are left out of the search for label errors and outliers: there is nothing to compare with."""

_LEAST_OUTLYING = 3.5  # score from which images are flagged

OutOfFold = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
"""From (N, D) embeddings and (N,) labels to (N, K) probabilities, each from a model that did not see the image."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What is wrong with some images.

    Attributes:
        issues: worst first.
        dataset: every file that was seen, and what became of it: refused, a duplicate, or in use.
        counts: number of issues of each kind that was found, in the order of the kinds' worst.
        notes: what could not be checked, and why.
    """

    issues: tuple[Issue, ...]
    dataset: Dataset
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[Issue]:
        """The issues of one kind, worst first."""
        return [issue for issue in self.issues if issue.kind == kind]


def run_check(
    dataset: Dataset,
    *,
    backbone: Backbone | None = None,
    out_of_fold: OutOfFold | None = None,
    preprocess: Preprocess = DEFAULT_PREPROCESS,
    progress: Progress = no_progress,
) -> CheckResult:
    """Find what is wrong with a data set; nothing is changed.

    Images may be without labels: what needs none is checked. A picture that is there several times is one issue of each kind
    that applies: ``label-conflict`` and ``leak``, and ``duplicate`` or ``near-duplicate`` only where neither does.

    Args:
        dataset: as it was opened; its splits are the user's own.
        backbone: finds near-duplicates more surely, and makes label errors and outliers possible.
        out_of_fold: makes label errors possible.
        preprocess: the backbone's input.
        progress: called as the work goes on.
    """
    checked = check_contents(dataset, progress)
    part = checked.used()
    files = dict(zip(part.contents, part.images, strict=True))
    seen = look_at(files, preprocess, backbone, progress)
    paths = dict(zip(part.contents, part.paths, strict=True))
    refused = {paths[content]: (error.code, error.message) for content, error in seen.errors.items()}
    checked = checked.with_outcome("refused", refused)
    part = checked.used()
    about_labels, notes = _label_issues(part, seen, out_of_fold)
    issues = [
        *unreadable_issues(checked),
        *name_issues(checked),
        *copy_issues(dataset, checked),
        *_pixel_issues(part, seen, progress),
        *about_labels,
        *class_issues(part),
    ]
    issues.sort(key=lambda issue: (-issue.severity, issue.kind, issue.paths))
    counts = dict(Counter(issue.kind for issue in issues))
    return CheckResult(issues=tuple(issues), dataset=checked, counts=counts, notes=tuple(notes))


def write_issues(issues: tuple[Issue, ...], path: Path) -> None:
    """Write one row an issue, worst first: kind, severity, paths, and the evidence as JSON.

    Raises:
        StorageError: cannot-write.
    """
    schema = pl.Schema(
        {"kind": pl.String(), "severity": pl.Float64(), "paths": pl.List(pl.String()), "evidence": pl.String()}
    )
    rows = [
        (issue.kind, issue.severity, list(issue.paths), json.dumps(dict(issue.evidence), ensure_ascii=False))
        for issue in issues
    ]
    with atomic_file(path) as file:
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(file)


def _pixel_issues(part: Dataset, seen: Seen, progress: Progress) -> list[Issue]:
    """What the images themselves tell: needs no label."""
    if not len(part):
        return []
    looks = seen.table(part.contents)
    embeddings = seen.matrix(part.contents) if seen.embeddings else None
    sizes = looks["size_px"].astype(np.int64)
    thumbnails = np.stack([seen.thumbnails[content] for content in part.contents])
    groups = find_near_duplicates(thumbnails, embeddings, sizes=sizes, progress=progress)
    odd = find_odd(quality_of(looks["quality"]), sizes)
    paths = part.paths
    return [
        *near_copy_issues(part, groups),
        *(rated(found.kind, found.severity, [paths[i] for i in found.indices], found.evidence) for found in odd),
        *extension_issues(paths, looks["format"]),
    ]


def _label_issues(part: Dataset, seen: Seen, out_of_fold: OutOfFold | None) -> tuple[list[Issue], list[str]]:
    """Labels that do not fit their images, and why they were not looked for."""
    if not len(part):
        return [], ["nothing else was looked for: no image could be read"]
    if not seen.embeddings:
        return [], ["label errors and outliers were not looked for: they need a backbone"]
    if part.task != "classification":
        return [], ["label errors and outliers were not looked for: images may have several labels"]
    large = [name for name, count in part.class_counts().items() if count >= MIN_CLASS_IMAGES]
    part = part.where(pl.col("label").is_in(large))
    if not large:
        return [], [f"label errors and outliers were not looked for: no class has {MIN_CLASS_IMAGES} images"]
    index = {name: i for i, name in enumerate(large)}
    labels = np.array([index[label] for label in part.table["label"]], dtype=np.int64)
    embeddings = seen.matrix(part.contents)
    issues = _outliers(part, embeddings, labels)
    if out_of_fold is None or len(large) < 2:
        return issues, ["label errors were not looked for: they need two classes and a way to answer out of fold"]
    return [*issues, *_label_errors(part, labels, out_of_fold(embeddings, labels), large)], []


def _label_errors(
    part: Dataset, labels: NDArray[np.int64], probs: NDArray[np.float32], names: list[str]
) -> list[Issue]:
    """Likely label errors, with the label that fits better."""
    found = find_label_errors(labels, probs)
    paths = part.paths
    return [
        rated(
            "label-error",
            2 * float(found.score[i]) - 1,
            [paths[i]],
            {
                "label": names[labels[i]],
                "suggested": names[found.suggested[i]],
                "prob": round(float(probs[i, labels[i]]), 4),
                "suggested_prob": round(float(probs[i, found.suggested[i]]), 4),
            },
        )
        for i in np.flatnonzero(found.suspected)
    ]


def _outliers(part: Dataset, embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> list[Issue]:
    """Images unlike the others of their class, the further the worse."""
    found = find_outliers(embeddings, labels)
    paths, names = part.paths, part.table["label"]
    return [
        rated(
            "outlier",
            1 - _LEAST_OUTLYING / float(found.scores[i]),
            [paths[i]],
            {"label": names[int(i)], "score": round(float(found.scores[i]), 4)},
        )
        for i in np.flatnonzero(found.flagged)
    ]
