"""Prediction sets: the classes that cannot be ruled out."""

import math

import numpy as np

from tellapart.evaluation.metrics import FloatArray, IntArray
from tellapart.records import ConformalRule


def fit_conformal(probs: FloatArray, labels: IntArray, *, coverage: float = 0.95) -> ConformalRule:
    """Find the smallest probability a class may have and still belong in the set.

    Over images like these, at least a share ``coverage`` of sets hold the true class. With fewer than
    ``coverage / (1 - coverage)`` images that cannot be promised but by sets of all classes.

    Args:
        probs: (N, K) calibrated probabilities of images that did not train the model.
        labels: (N,) class indices.
        coverage: wanted share, 0-1.

    Source: Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued classifiers with bounded error levels"; finite-sample
    quantile as in Angelopoulos and Bates 2021, "A gentle introduction to conformal prediction", section 1.
    """
    n = len(labels)
    of_truth = np.sort(probs[np.arange(n), labels].astype(np.float64))
    allowed_misses = n - math.ceil((n + 1) * coverage)
    min_prob = float(of_truth[allowed_misses]) if allowed_misses >= 0 else 0.0
    return ConformalRule(coverage=coverage, min_prob=min_prob, n=n)
