"""Prediction sets: what cannot be ruled out."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import betaincinv

from tellapart.evaluation.metrics import FloatArray, IntArray
from tellapart.records import ConformalRule, HeldOut, Interval, ModelCard, SetLevel

COVERAGES = (0.8, 0.9, 0.95, 0.99)
"""Stored in every model file, beside the recipe's own."""


def smallest_prob(of_truth: FloatArray, *, coverage: float) -> float:
    """Find the smallest probability an answer may have and still belong in the set.

    Over images like these, at least a share ``coverage`` of sets hold the truth. With fewer than ``coverage / (1 - coverage)``
    images that cannot be promised but by sets of everything.

    Args:
        of_truth: (N,) calibrated probabilities of the true answers, of images that did not train the model; or (N, K), where each
            image has K answers. These are not independent of each other, so it is images that count, and the mean share of
            an image's answers that is promised.
        coverage: wanted share, 0-1.

    Source: Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued classifiers with bounded error levels"; finite-sample
    quantile as in Angelopoulos and Bates 2021, "A gentle introduction to conformal prediction", section 1; for K answers
    Angelopoulos et al. 2022, "Conformal risk control", section 2.1, which for one answer is the same.
    """
    n = len(of_truth)
    answers = of_truth.size // max(1, n)
    # Rounded, so that 20 images are enough for 0.95 whatever the last digit of 21 * 0.05 is.
    allowed_misses = math.floor(round(answers * ((n + 1) * (1 - coverage) - 1), 9))
    if allowed_misses < 0 or not n:
        return 0.0
    return float(np.partition(of_truth.astype(np.float64).ravel(), allowed_misses)[allowed_misses])


def fit_rule(of_truth: FloatArray, *, coverage: float, method: HeldOut) -> ConformalRule:
    """Fit one threshold for all classes at each of ``COVERAGES`` and at the wanted one; see ``smallest_prob``."""
    levels = tuple(
        SetLevel(coverage=level, min_probs=(smallest_prob(of_truth, coverage=level),))
        for level in sorted({*COVERAGES, coverage})
    )
    return ConformalRule(coverage=coverage, levels=levels, method=method, per_class=False, n=len(of_truth))


def fit_rule_per_class(
    of_truth: FloatArray, labels: IntArray, num_classes: int, *, coverage: float, method: HeldOut
) -> ConformalRule:
    """Fit a threshold for each class, so that the promise holds for each class on its own.

    A class with too few images to promise anything shares its threshold with the other such classes, joined by the next smallest
    until they are enough together; over those the promise then holds together.

    Args:
        of_truth: (N,) as for ``smallest_prob``.
        labels: (N,) class indices.
        num_classes: K.
        coverage: wanted share, 0-1.
        method: where the probabilities came from.

    Source: Vovk 2012, "Conditional validity of inductive conformal predictors", section 4 (Mondrian conformal prediction).
    """
    counts = np.bincount(labels, minlength=num_classes)
    levels = []
    for level in sorted({*COVERAGES, coverage}):
        shared = _shared_classes(counts, math.ceil(round(level / (1 - level), 9)))
        rows = np.isin(labels, sorted(shared))
        of_shared = smallest_prob(of_truth[rows], coverage=level)
        min_probs = tuple(
            of_shared if k in shared else smallest_prob(of_truth[labels == k], coverage=level)
            for k in range(num_classes)
        )
        levels.append(SetLevel(coverage=level, min_probs=min_probs))
    return ConformalRule(coverage=coverage, levels=tuple(levels), method=method, per_class=True, n=len(labels))


def fit_rule_per_label(of_truth: FloatArray, *, coverage: float, method: HeldOut) -> ConformalRule:
    """Fit a threshold for each of K labels that do not exclude each other, from (N, K) probabilities of the true answers."""
    levels = tuple(
        SetLevel(coverage=level, min_probs=tuple(smallest_prob(column, coverage=level) for column in of_truth.T))
        for level in sorted({*COVERAGES, coverage})
    )
    return ConformalRule(coverage=coverage, levels=levels, method=method, per_class=True, n=len(of_truth))


def measure_coverage(labels: IntArray, probs: FloatArray, card: ModelCard) -> list[dict[str, Any]]:
    """Count how often prediction sets hold the truth, as in ``report.json`` under ``coverage``.

    Sets are measured by their thresholds alone: where no class reaches its own, the set is empty, although a verdict lists
    the most probable classes.

    Args:
        labels: (N,) class indices, or (N, K) of 0 and 1. Of these, pairs of an image and a label are counted; as the pairs of an
            image depend on each other, the interval is somewhat too narrow.
        probs: (N, K) as the model file gives them.
        card: with the thresholds.

    Returns:
        For each stored coverage ``wanted``, ``covered`` with its exact 95 % interval, ``mean_size``, and how many sets hold one
        class (``single``) or none (``empty``). Nothing without a rule, or without images.
    """
    if card.conformal is None or not len(labels):
        return []
    found = []
    for level in card.conformal.levels:
        possible = probs >= np.array(level.min_probs)
        if labels.ndim == 1:
            held = possible[np.arange(len(labels)), labels]
        else:
            held = np.where(labels, probs, 1 - probs) >= np.array(level.min_probs)
        sizes = possible.sum(axis=1)
        found.append(
            {
                "wanted": level.coverage,
                "covered": asdict(exact_interval(int(held.sum()), held.size)),
                "mean_size": float(sizes.mean()),
                "single": int((sizes == 1).sum()),
                "empty": int((sizes == 0).sum()),
            }
        )
    return found


def _shared_classes(counts: IntArray, needed: int) -> frozenset[int]:
    """The classes with fewer than the needed images, and the next smallest until they have so many together."""
    order = np.argsort(counts, kind="stable")
    few = int((counts < needed).sum())
    if not few:
        return frozenset()
    reached = np.cumsum(counts[order])
    return frozenset(int(k) for k in order[: max(few, int(np.searchsorted(reached, needed)) + 1)])


def exact_interval(hits: int, n: int) -> Interval:
    """A share with its exact 95 % interval.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial".
    """
    if not n:
        return Interval(value=None, low=None, high=None)
    low = float(betaincinv(hits, n - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 0.975)) if hits < n else 1.0
    return Interval(value=hits / n, low=low, high=high)
