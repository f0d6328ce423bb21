"""How well probabilities rank images: areas under the ROC and the precision-recall curve."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tellapart.evaluation.bootstrap import Resamples, Weighted, bootstrap_interval
from tellapart.evaluation.metrics import Z95, FloatArray, wilson_interval
from tellapart.records import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """K classes, each against the rest; empty intervals for classes without images to tell apart.

    Attributes:
        auroc: chance that an image of the class gets a higher probability for it than another image; ties count half.
        auprc: average precision: mean, over the images of the class, of the precision at their place in the ranking.
        macro_auroc: mean of ``auroc`` over the classes that have one.
        macro_auprc: mean of ``auprc``.
    """

    auroc: tuple[Interval, ...]
    auprc: tuple[Interval, ...]
    macro_auroc: Interval
    macro_auprc: Interval


def rank_classes(present: NDArray[np.bool_], scores: FloatArray, resamples: Resamples) -> Ranking:
    """Rank the images by each class' score.

    Args:
        present: (N, K) whether the image is of the class.
        scores: (N, K), higher for more probable.
        resamples: of the N images.

    Means of classes have bootstrap intervals.

    Source: for a single class ``auroc_interval``, and Boyd, Eng and Page 2013, "Area under the precision-recall curve: point
    estimates and confidence intervals" (average precision as a share of the class' images, here with Wilson's interval).
    """
    curves = [
        areas_under_curves(
            present[:, k],
            scores[:, k],
            resamples.weights,
            missed=resamples.missed[k],
            claimed=resamples.claimed[k],
        )
        for k in range(scores.shape[1])
    ]
    positives = present.sum(axis=0)
    return Ranking(
        auroc=tuple(
            auroc_interval(float(roc[0]), int(n), len(present) - int(n))
            for (roc, _), n in zip(curves, positives, strict=True)
        ),
        auprc=tuple(
            wilson_interval(float(pr[0]) * n, int(n)) for (_, pr), n in zip(curves, positives, strict=True)
        ),
        macro_auroc=_mean_of_classes(roc for roc, _ in curves),
        macro_auprc=_mean_of_classes(pr for _, pr in curves),
    )


def auroc_interval(value: float, positives: int, negatives: int) -> Interval:
    """An AUROC with its 95 % interval, which is not a point at 0 or 1; empty without images on both sides.

    Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic", part 2, method
    5: Wilson's idea with the variance of Hanley and McNeil 1982.
    """
    if not positives or not negatives:
        return Interval(value=None, low=None, high=None)
    more = (positives + negatives) / 2 - 1

    def distance(area: NDArray[np.float64]) -> NDArray[np.float64]:
        variance = area * (1 - area) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area)))
        gap: NDArray[np.float64] = (area - value) ** 2 - Z95**2 * variance / (positives * negatives)
        return gap

    inside, outside = np.full(2, value), np.array([0.0, 1.0])
    for _ in range(50):
        middle = (inside + outside) / 2
        within = distance(middle) <= 0
        inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
    return Interval(value=value, low=float(min(inside[0], value)), high=float(max(inside[1], value)))


def areas_under_curves(
    present: NDArray[np.bool_],
    scores: FloatArray,
    weights: Weighted,
    *,
    missed: Weighted | float = 0.0,
    claimed: Weighted | float = 0.0,
) -> tuple[Weighted, Weighted]:
    """AUROC and average precision of one class in many resamples.

    Args:
        present: (N,) whether the image is of the class.
        scores: (N,), higher for more probable; equal scores share one place.
        weights: (N, B) how much each image counts.
        missed: (B,) weight of one more image that is of the class, and comes last.
        claimed: (B,) weight of one more image that is not of the class, and comes first.

    Returns:
        (B,) each; NaN where there is nothing to tell apart.

    Source: Fawcett 2006, "An introduction to ROC analysis", section 7; Zhu 2004, "Recall, precision and average precision";
    ties as in scikit-learn.
    """
    if not present.any():
        nothing = np.full(weights.shape[1], np.nan)
        return nothing, nothing
    # Images between two that are of the class need not be told apart: they form one step of both curves.
    steps = _steps(present, scores)
    columns = np.arange(len(present))
    shape = (int(steps.max()) + 1, len(present))
    given = csr_array((np.ones(len(present)), (steps, columns)), shape=shape) @ weights
    hits = csr_array((np.ones(int(present.sum())), (steps[present], columns[present])), shape=shape) @ weights
    false = given - hits
    all_hits, all_false = hits.sum(axis=0), false.sum(axis=0)
    hits_before, given_before = np.cumsum(hits, axis=0), np.cumsum(given, axis=0) + claimed
    false_below = all_false - (given_before - claimed - hits_before) + false / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        roc = np.einsum("sb,sb->b", hits, false_below) / ((all_hits + missed) * (all_false + claimed))
        last = missed * (all_hits + missed) / (all_hits + all_false + missed + claimed)
        pr = (np.einsum("sb,sb->b", hits, hits_before / given_before) + last) / (all_hits + missed)
    if present.all():
        roc = np.full_like(roc, np.nan)
    return roc, pr


def _steps(present: NDArray[np.bool_], scores: FloatArray) -> NDArray[np.intp]:
    """(N,) number of each image's step, the highest scores first; equal scores share one."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    places = np.cumsum(np.append(False, ranked[1:] != ranked[:-1]))
    has_hit = np.bincount(places, weights=present[order]) > 0
    starts = has_hit | np.append(True, has_hit[:-1])  # a place with a hit, and the first place after one
    result = np.empty(len(scores), np.intp)
    result[order] = (np.cumsum(starts) - 1)[places]
    return result


def _mean_of_classes(curves: Iterable[Weighted]) -> Interval:
    measured = [curve for curve in curves if np.isfinite(curve[0])]
    if not measured:
        return Interval(value=None, low=None, high=None)
    mean: Weighted = np.mean(measured, axis=0)
    return bootstrap_interval(mean)
