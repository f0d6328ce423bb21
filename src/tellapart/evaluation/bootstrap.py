"""Intervals for numbers without a formula: the test images, weighted anew many times."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.records import Interval

_MAX_RESAMPLES = 1_000
_MIN_RESAMPLES = 50
_MAX_WEIGHTS = 10_000_000
_MAX_WORK = 200_000_000

Weighted = NDArray[np.float64]
"""A statistic with one column for the images as they are, and one for each resample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resamples:
    """Weights of n images: in the first column all 1, then one column for each resample. Drawn once, for all statistics.

    The weights are those of the Bayesian bootstrap: no image ever vanishes, so no resample lacks a class. Resampling can only
    repeat mistakes that were seen, and would call 20 right answers of 20 certain. So each resample also knows of one made-up
    image: it is of one class, drawn at random, and is surely called another. With it the lower end for the share of right
    answers is the exact (Clopper-Pearson) one.

    Attributes:
        weights: (n, 1 + B).
        missed: (K, 1 + B) weight of the made-up image where it is of the class, else 0.
        claimed: (K, 1 + B) weight of the made-up image where it is called so, else 0.

    Source: Rubin 1981, "The Bayesian bootstrap"; the made-up image as in Phan, Thomas and Learned-Miller 2021, "Towards practical
    mean bounds for small samples", section 3.
    """

    weights: Weighted
    missed: Weighted
    claimed: Weighted

    @classmethod
    def draw(cls, n: int, num_classes: int, *, seed: int = 0) -> "Resamples":
        """Draw 1,000 resamples; fewer, and at least 50, where n is above 10,000 or n times K above 200,000."""
        size = max(n, 1)
        count = min(_MAX_RESAMPLES, _MAX_WEIGHTS // size, _MAX_WORK // (size * num_classes))
        count = max(_MIN_RESAMPLES, count)
        rng = np.random.default_rng(seed)
        weights = np.ones((n, 1 + count))
        weights[:, 1:] = rng.standard_exponential((n, count))
        made_up, true_class = rng.standard_exponential(count), rng.integers(num_classes, size=count)
        called = (true_class + rng.integers(1, num_classes, size=count)) % num_classes
        missed, claimed = np.zeros((2, num_classes, 1 + count))
        missed[true_class, np.arange(1, 1 + count)] = made_up
        claimed[called, np.arange(1, 1 + count)] = made_up
        return cls(weights=weights, missed=missed, claimed=claimed)

    @property
    def made_up(self) -> Weighted:
        """(1 + B,) weight of the made-up image."""
        total: Weighted = self.missed.sum(axis=0)
        return total

    def mean(self, of_images: NDArray[Any]) -> Interval:
        """Mean of (n,) numbers; empty without any."""
        with np.errstate(invalid="ignore"):
            return bootstrap_interval(of_images @ self.weights / self.weights.sum(axis=0))


def bootstrap_interval(values: Weighted, *, pivotal: bool = False) -> Interval:
    """A statistic with its 95 % interval; empty where it has no value.

    Args:
        values: (1 + B,) the statistic of the images as they are, then of each resample.
        pivotal: mirror the resamples' percentiles at the value, for a statistic that is never negative and that noise raises.

    Source: Davison and Hinkley 1997, "Bootstrap Methods and their Application", sections 5.2 (pivotal) and 5.3 (percentiles).
    """
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value) or not len(drawn):
        return Interval(value=None, low=None, high=None)
    low, high = (float(end) for end in np.quantile(drawn, (0.025, 0.975)))
    if pivotal:
        low, high = max(0.0, 2 * value - high), 2 * value - low
    return Interval(value=value, low=min(low, value), high=max(high, value))


def fixed_order(labels: NDArray[Any], probs: NDArray[Any]) -> NDArray[np.intp]:
    """An order of the images that depends on nothing but their labels and probabilities.

    Resamples fall on images by place; in this order the same images give the same intervals, however they were listed.
    """
    rows = np.column_stack([labels, probs]).astype(np.float64)
    bytes_of_rows = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))
    return np.argsort(bytes_of_rows[:, 0], kind="stable")
