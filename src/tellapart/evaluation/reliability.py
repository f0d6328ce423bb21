"""Whether probabilities mean what they say."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.bootstrap import Resamples, bootstrap_interval
from tellapart.evaluation.metrics import FloatArray, wilson_interval
from tellapart.records import Interval

_MAX_BINS = 15
_MIN_IN_BIN = 10


def adaptive_bins(probs: FloatArray) -> NDArray[np.intp]:
    """Number the bins that hold equally many probabilities each, the smallest first.

    Args:
        probs: (M,). Equal ones share a bin.

    Returns:
        (M,) bin of each: up to 15 bins of 10 or more, one bin below 20.

    Source: Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for natural language processing models",
    section 3.
    """
    m = len(probs)
    count = min(_MAX_BINS, max(1, m // _MIN_IN_BIN))
    ranked = np.sort(probs)
    firsts = np.unique(ranked[np.arange(count) * m // count]) if m else ranked
    return np.searchsorted(firsts, probs, side="right") - 1


def reliability(probs: FloatArray, right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """What was claimed and what came true, bin by bin; none without images.

    Args:
        probs: (M,) claimed.
        right: (M,) whether it came true.

    Returns:
        For each bin ``low`` and ``high`` (the smallest and the largest probability in it), ``n``, ``prob`` (their mean) and
        ``share`` (how often right, with its Wilson interval).
    """
    bins, probs = adaptive_bins(probs), probs.astype(np.float64)
    found = []
    for number in range(int(bins.max(initial=-1)) + 1):
        inside = bins == number
        n, claimed = int(inside.sum()), probs[inside]
        found.append(
            {
                "low": float(claimed.min()),
                "high": float(claimed.max()),
                "n": n,
                "prob": float(claimed.mean()),
                "share": asdict(wilson_interval(int(right[inside].sum()), n)),
            }
        )
    return found


def mean_gap(probs: FloatArray, right: NDArray[np.bool_]) -> float:
    """The value of ``calibration_error``, without an interval; arguments as for ``reliability``, at least one probability."""
    gaps = np.bincount(adaptive_bins(probs), weights=right - probs.astype(np.float64))
    return float(np.abs(gaps).sum()) / len(probs)


def calibration_error(probs: FloatArray, right: NDArray[np.bool_], resamples: Resamples) -> Interval:
    """Expected calibration error: mean gap between claim and truth over the bins of ``reliability``; 0 at best.

    Noise alone keeps it above 0, the more so the fewer images there are. So the interval is a pivotal one, and its lower end is
    0 where resampled noise alone, without any gap, would explain the value.

    Args:
        probs: (N,) claimed, or (N, K): then over all pairs.
        right: of the same shape, whether it came true.
        resamples: of the N images.

    Source: Naeini, Cooper and Hauskrecht 2015, "Obtaining well calibrated probabilities using Bayesian binning", with bins of
    equal counts.
    """
    n = len(probs)
    if not n:
        return Interval(value=None, low=None, high=None)
    bins = adaptive_bins(probs.ravel())
    count = int(bins.max()) + 1
    cells = np.repeat(np.arange(n), probs.size // n) * count + bins
    gaps = np.bincount(cells, weights=(right - probs.astype(np.float64)).ravel(), minlength=n * count)
    of_bins = gaps.reshape(n, count).T @ resamples.weights
    total = resamples.weights.sum(axis=0) * (probs.size // n)
    found = bootstrap_interval(np.abs(of_bins).sum(axis=0) / total, pivotal=True)
    noise = np.abs(of_bins - of_bins[:, :1] * total / total[0]).sum(axis=0) / total
    explained = bool(np.quantile(noise[1:], 0.975) >= np.abs(of_bins[:, 0]).sum() / total[0])
    return replace(found, low=0.0) if explained else found
