"""How good predictions are: functions of labels and probabilities, each with its uncertainty."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import RecipeError
from tellapart.records import Interval

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
Answer = Mapping[str, FloatArray]
"""What a model file says of one image, by the names of its outputs: ``probs`` (K,), and ``familiarity`` () where it has that
output. Of N images, stacked: (N, K) and (N,)."""

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


def require_two_classes(labels: IntArray, n: int) -> None:
    """Raise unless there are n labels of at least two classes.

    Raises:
        RecipeError: bad-labels.
    """
    if n != len(labels) or len(np.unique(labels)) < 2:
        raise RecipeError("bad-labels", f"calibration needs images of two classes, got labels {np.unique(labels)}")


def binary_log_loss(labels: IntArray, logits: FloatArray) -> float:
    """Mean over images and labels of the log loss of a sigmoid, in nats; both (N, K)."""
    return float(np.logaddexp(0.0, np.where(labels, -logits, logits)).mean())


def average_precision(labels: IntArray, scores: FloatArray, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean precision over the images that have a label, each at its place in the ranking.

    Args:
        labels: (N, K) of 0 and 1.
        scores: (N, K), higher for more probable; equal scores share one place.
        weights: (B, N) how often each image counts, one row for each resample.

    Returns:
        (B, K); NaN where no image that counts has the label.

    Source: Zhu 2004, "Recall, precision and average precision"; ties as in scikit-learn.
    """
    result = np.empty((len(weights), labels.shape[1]))
    for k in range(labels.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        ranked = scores[order, k]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        ordered = weights[:, order]
        given = np.cumsum(ordered, axis=1)[:, ends]
        hits = np.cumsum(ordered * labels[order, k], axis=1)[:, ends]
        new_hits = np.diff(hits, axis=1, prepend=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(given > 0, hits / given, 0.0)
            result[:, k] = (new_hits * share).sum(axis=1) / hits[:, -1]
    return result


def f1_scores(
    labels: IntArray, given: IntArray, weights: NDArray[np.float64], *, pooled: bool = False
) -> NDArray[np.float64]:
    """F1 of each label, or of all pooled.

    Args:
        labels: (N, K) of 0 and 1.
        given: (N, K) the answers.
        weights: (B, N) how often each image counts.
        pooled: count all labels together (micro); the result then has one column.

    Returns:
        (B, K) or (B, 1); NaN for a label that is neither there nor given.
    """
    counts = [weights @ part for part in (labels & given, labels, given)]
    hits, there, said = [count.sum(axis=1, keepdims=True) for count in counts] if pooled else counts
    with np.errstate(divide="ignore", invalid="ignore"):
        scores: NDArray[np.float64] = 2 * hits / (there + said)
    return scores


def bootstrap_interval(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], n: int, *, seed: int = 0
) -> Interval:
    """A statistic of n images with its 95 % percentile interval over resamples of the images; empty when n is 0.

    Args:
        statistic: from (B, n) weights, how often each image counts, to (B,) values.
        n: number of images.
        seed: draws the resamples: 1,000, fewer for very many images.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    if n == 0:
        return Interval(value=None, low=None, high=None)
    value = float(statistic(np.ones((1, n)))[0])
    if not math.isfinite(value):
        return Interval(value=None, low=None, high=None)
    rng = np.random.default_rng(seed)
    resamples = int(np.clip(_MAX_BOOTSTRAP_WEIGHTS // n, 50, 1_000))
    block = max(1, _BOOTSTRAP_BLOCK // n)
    values = [
        statistic(rng.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start)).astype(np.float64))
        for start in range(0, resamples, block)
    ]
    drawn = np.concatenate(values)
    low, high = np.quantile(drawn[np.isfinite(drawn)], (0.025, 0.975))
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


_MAX_BOOTSTRAP_WEIGHTS = 20_000_000
_BOOTSTRAP_BLOCK = 500_000
