"""How good predictions are: counts, shares and losses, each with its uncertainty."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tellapart.errors import RecipeError
from tellapart.evaluation.bootstrap import Resamples, Weighted, bootstrap_interval
from tellapart.records import Interval

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
Answer = Mapping[str, FloatArray]
"""What a model file says of one image, by the names of its outputs: ``probs`` (K,), and ``familiarity`` () where it has that
output. Of N images, stacked: (N, K) and (N,)."""

Z95 = 1.959963984540054


def wilson_interval(successes: float, n: int) -> Interval:
    """A share of n with its 95 % confidence interval; empty when n is 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return Interval(value=None, low=None, high=None)
    share = successes / n
    center = share + Z95**2 / (2 * n)
    margin = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
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


def f1(hits: IntArray, there: IntArray, said: IntArray) -> list[Interval]:
    """For each class: the harmonic mean of precision and recall; empty for a class neither there nor answered.

    F1 is 2 J / (1 + J), where J is the share of hits among the images that are of the class or called so: a share of n, with
    Wilson's interval.

    Args:
        hits: (K,) images that are of the class and called so.
        there: (K,) images that are of the class.
        said: (K,) images that are called so.

    Source: Hand, Christen and Kirielle 2021, "F*: an interpretable transformation of the F-measure".
    """
    shares = [wilson_interval(int(h), int(t + s - h)) for h, t, s in zip(hits, there, said, strict=True)]
    return [_map_interval(lambda share: 2 * share / (1 + share), share) for share in shares]


def balanced_accuracy(recalls: Sequence[Interval]) -> Interval:
    """Mean recall of the classes that have test images; empty without any.

    Args:
        recalls: of each class, with Wilson intervals; classes are independent, for each image is of one class.

    Source: the interval of a mean from those of its parts: Zou and Donner 2008, "Construction of confidence limits about
    effect measures: a general approach".
    """
    ends = np.array([(r.value, r.low, r.high) for r in recalls if r.value is not None], dtype=np.float64)
    if not len(ends):
        return Interval(value=None, low=None, high=None)
    value = float(ends[:, 0].mean())
    below, above = (float(np.linalg.norm(ends[:, 0] - ends[:, end])) / len(ends) for end in (1, 2))
    return Interval(value=value, low=max(0.0, value - below), high=max(value, min(1.0, value + above)))


def macro_f1(hits: Weighted, there: Weighted, said: Weighted) -> Interval:
    """Mean F1 of the classes that are there or answered; empty without any.

    Args:
        hits: (K, 1 + B) weight of the images that are of the class and called so.
        there: (K, 1 + B) of those that are.
        said: (K, 1 + B) of those called so.
    """
    measured = (there + said)[:, 0] > 0
    if not measured.any():
        return Interval(value=None, low=None, high=None)
    return bootstrap_interval((2 * hits[measured] / (there + said)[measured]).mean(axis=0))


def kappa(hits: Weighted, there: Weighted, said: Weighted) -> Interval:
    """Cohen's kappa: how far accuracy is above what answers drawn blindly would reach, 1 at best; empty where that is 1, too.

    Args:
        hits: as for ``macro_f1``, of images with one class each.
        there: as for ``macro_f1``.
        said: as for ``macro_f1``.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    n = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        blind = (there * said).sum(axis=0) / n**2
        return bootstrap_interval((hits.sum(axis=0) / n - blind) / (1 - blind))


def class_weights(
    there: NDArray[np.bool_], said: NDArray[np.bool_], resamples: Resamples
) -> tuple[Weighted, Weighted, Weighted]:
    """(K, 1 + B) weights of the hits, of the images that are there, and of the answers, in each resample.

    Args:
        there: (N, K) whether the image is of the class.
        said: (N, K) whether it is called so.
        resamples: of the N images.
    """
    hits, all_there, all_said = (csr_array(part.T) @ resamples.weights for part in (there & said, there, said))
    return hits, all_there + resamples.missed, all_said + resamples.claimed


def top_k(labels: IntArray, probs: FloatArray) -> dict[str, Interval]:
    """For k = 2, 3 and 5, where there are more than k classes: share of images whose true class is among the k most probable.

    Args:
        labels: (N,) class indices.
        probs: (N, K); of equal probabilities the first class counts as the more probable, as in ``argmax``.
    """
    of_truth = probs[np.arange(len(labels)), labels][:, None]
    before = np.arange(probs.shape[1]) < labels[:, None]
    places = ((probs > of_truth) | ((probs == of_truth) & before)).sum(axis=1)
    return {str(k): wilson_interval(int((places < k).sum()), len(labels)) for k in (2, 3, 5) if k < probs.shape[1]}


def log_losses(of_truth: FloatArray) -> NDArray[np.float64]:
    """-log(p) of what proved true, in nats, of any shape; a probability of 0 counts as the smallest float32."""
    losses: NDArray[np.float64] = -np.log(np.maximum(of_truth.astype(np.float64), np.finfo(np.float32).tiny))
    return losses


def log_loss(labels: IntArray, probs: FloatArray) -> float:
    """Mean of -log(probability of the true class), in nats.

    Args:
        labels: (N,) class indices.
        probs: (N, K).
    """
    return float(log_losses(probs[np.arange(len(labels)), labels]).mean())


def brier_scores(labels: IntArray, probs: FloatArray) -> NDArray[np.float64]:
    """(N,) squared distance of the probabilities from the truth, summed over classes: 0 at best, 2 at worst.

    With two classes that is twice the score some libraries give.

    Args:
        labels: (N,) class indices.
        probs: (N, K).

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    squared: NDArray[np.float64] = np.square(
        probs.astype(np.float64) - (labels[:, None] == np.arange(probs.shape[1]))
    ).sum(axis=1)
    return squared


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


def _map_interval(rising: Callable[[float], float], of: Interval) -> Interval:
    if of.value is None or of.low is None or of.high is None:
        return of
    return Interval(value=rising(of.value), low=rising(of.low), high=rising(of.high))
