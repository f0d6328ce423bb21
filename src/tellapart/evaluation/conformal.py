"""Prediction sets: what cannot be ruled out."""

import math

import numpy as np

from tellapart.evaluation.metrics import FloatArray
from tellapart.records import ConformalRule


def fit_min_prob(of_truth: FloatArray, *, coverage: float) -> ConformalRule:
    """Find the smallest probability an answer may have and still belong in the set.

    Over images like these, at least a share ``coverage`` of sets hold the truth. With fewer than ``coverage / (1 - coverage)``
    answers that cannot be promised but by sets of everything.

    Args:
        of_truth: (N,) calibrated probabilities of the true answers, of images that did not train the model.
        coverage: wanted share, 0-1.

    Source: Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued classifiers with bounded error levels"; finite-sample
    quantile as in Angelopoulos and Bates 2021, "A gentle introduction to conformal prediction", section 1.
    """
    n = len(of_truth)
    ascending = np.sort(of_truth.astype(np.float64))
    allowed_misses = n - math.ceil((n + 1) * coverage)
    min_prob = float(ascending[allowed_misses]) if allowed_misses >= 0 else 0.0
    return ConformalRule(coverage=coverage, min_prob=min_prob, n=n)
