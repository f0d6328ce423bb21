"""How good predictions are: functions of labels and probabilities, each with its uncertainty."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import RecipeError
from tellapart.records import Interval

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

_Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> Interval:
    """A share of n with its 95 % confidence interval; empty when n is 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return Interval(value=None, low=None, high=None)
    share = successes / n
    center = share + _Z95**2 / (2 * n)
    margin = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    scale = 1 + _Z95**2 / n
    # Rounding may leave 1.0 a hair outside an interval that ends at it.
    low = min(max(0.0, (center - margin) / scale), share)
    return Interval(value=share, low=low, high=max(min(1.0, (center + margin) / scale), share))


def confusion_matrix(labels: IntArray, predicted: IntArray, num_classes: int) -> NDArray[np.int64]:
    """Count (true class, predicted class).

    Args:
        labels: (N,) true class indices in 0..K-1.
        predicted: (N,) predicted class indices.
        num_classes: K.

    Returns:
        (K, K) counts: row is the true class, column the predicted one.

    Raises:
        RecipeError: bad-labels, when an index is not in 0..K-1 or the lengths differ.
    """
    if labels.shape != predicted.shape or labels.ndim != 1:
        message = f"labels and predictions must be of one length, got {labels.shape} and {predicted.shape}"
        raise RecipeError("bad-labels", message)
    for indices in (labels, predicted):
        if len(indices) and not (indices.min() >= 0 and indices.max() < num_classes):
            raise RecipeError("bad-labels", f"class indices must lie in 0..{num_classes - 1}")
    # In 64 bits: the cell's number may be too large for the type that holds the labels.
    cells = np.bincount(
        labels.astype(np.int64) * num_classes + predicted.astype(np.int64), minlength=num_classes**2
    )
    return cells.reshape(num_classes, num_classes)


def accuracy(confusion: NDArray[np.int64]) -> Interval:
    """Share of images whose most probable class is the true one, with its Wilson interval."""
    return wilson_interval(int(np.trace(confusion)), int(confusion.sum()))


def precision(confusion: NDArray[np.int64]) -> list[Interval]:
    """For each class: of the images called so, the share that are; empty for a class never predicted."""
    return [wilson_interval(int(confusion[k, k]), int(confusion[:, k].sum())) for k in range(len(confusion))]


def recall(confusion: NDArray[np.int64]) -> list[Interval]:
    """For each class: of the images that are, the share called so; empty for a class without test images."""
    return [wilson_interval(int(confusion[k, k]), int(confusion[k].sum())) for k in range(len(confusion))]


def log_loss(labels: IntArray, probs: FloatArray) -> float:
    """Mean of -log(probability of the true class), in nats.

    Args:
        labels: (N,) class indices.
        probs: (N, K).
    """
    chosen = probs[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())
