"""Probabilities to check labels with: every image answered by a probe that did not learn from it."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from tellapart.errors import RecipeError
from tellapart.evaluation.label_errors import best_rivals
from tellapart.evaluation.metrics import IntArray, require_two_classes
from tellapart.imaging.pool import map_ordered
from tellapart.training.folds import MAX_SEARCH_IMAGES
from tellapart.training.probe import FloatMatrix, fit_logistic, search_strength

MAX_FOLD_IMAGES = 20_000
"""A fold's probe learns from at most so many images, which bounds memory; every image is answered all the same."""

_FOLDS = 5
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_BLOCK_IMAGES = 10_000
_TOLERANCE = 1e-3
# Labels that weigh what they are worth bear a weaker penalty; 1 and 10 rank worse on average (docs/experiments.md).
_SECOND_ROUND = 3.0


def out_of_fold_probs(embeddings: FloatMatrix, labels: IntArray, *, seed: int) -> FloatMatrix:
    """Cross-validated class probabilities of images whose labels may be wrong.

    Probes learn twice. The second time every image weighs as much as the first round's probability of its label against its
    best rival, so that wrong labels teach less; in both rounds an image is answered by a probe that did not see it.

    Args:
        embeddings: (N, D) features.
        labels: (N,) class indices in 0..K-1, K the highest index and one.
        seed: draws the folds, and the images to learn from where there are very many.

    Returns:
        (N, K) probabilities of the label, not of the truth: where labels are noisy they are that unsure.

    Raises:
        RecipeError: bad-labels.
    """
    if labels.ndim != 1:
        raise RecipeError("bad-labels", f"labels must be class indices of shape (N,), got {labels.shape}")
    require_two_classes(labels, len(embeddings))
    rng = np.random.default_rng(seed)
    some = _draw(np.arange(len(labels)), MAX_SEARCH_IMAGES, rng)
    strength = search_strength(
        embeddings[some], labels[some], strengths=_STRENGTHS, folds=_FOLDS, seed=seed
    ).strength
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    first = _cross_fit(embeddings, labels, targets, strength=strength, rng=rng)
    given = first[np.arange(len(labels)), labels]
    targets *= (given / (given + best_rivals(labels, first)[1]))[:, None].astype(np.float32)
    return _cross_fit(embeddings, labels, targets, strength=_SECOND_ROUND * strength, rng=rng)


def _cross_fit(
    embeddings: FloatMatrix, labels: IntArray, targets: FloatMatrix, *, strength: float, rng: np.random.Generator
) -> FloatMatrix:
    """(N, K) probabilities: each fold's images from a probe that learned the (N, K) targets of the other folds."""
    fold = _deal(labels, rng)
    parts = [_Part.draw(fold, i, rng) for i in range(_FOLDS)]
    answer = functools.partial(_answer, embeddings, targets, strength)
    probs = np.empty_like(targets)
    # The folds keep all processors busy; a matrix library with threads of its own would fight them.
    with threadpool_limits(1, user_api="blas"):
        for part, answers in zip(parts, map_ordered(answer, parts), strict=True):
            probs[part.held_out] = answers
    return probs


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that one probe learns from, and rows that it answers; none in both."""

    learning: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @classmethod
    def draw(cls, fold: NDArray[np.int64], i: int, rng: np.random.Generator) -> "_Part":
        return cls(_draw(np.flatnonzero(fold != i), MAX_FOLD_IMAGES, rng), np.flatnonzero(fold == i))


def _answer(embeddings: FloatMatrix, targets: NDArray[Any], strength: float, part: _Part) -> FloatMatrix:
    """(M, K) probabilities of a part's held-out rows."""
    features, mean, scale = _standardized(embeddings[part.learning])
    weights = fit_logistic(
        features,
        targets[part.learning],
        head=_WeightedSoftmax(),
        strength=strength,
        tolerance=_TOLERANCE,
    )
    slope = weights[:-1] / scale[:, None]
    intercept = weights[-1] - mean @ slope
    blocks = range(0, len(part.held_out), _BLOCK_IMAGES)
    logits = [embeddings[part.held_out[i : i + _BLOCK_IMAGES]] @ slope + intercept for i in blocks]
    probs: FloatMatrix = softmax(np.concatenate(logits), axis=1)
    return probs


class _WeightedSoftmax:
    """A probe's head for targets: a row for each image, its weight in the column of its label, 0 elsewhere."""

    def columns(self, labels: NDArray[Any]) -> int:
        return int(labels.shape[1])

    def loss_and_residual(self, scores: FloatMatrix, labels: NDArray[Any]) -> tuple[float, FloatMatrix]:
        log_probs: FloatMatrix = log_softmax(scores, axis=1)
        loss = -float((labels * log_probs).sum(dtype=np.float64))
        return loss, np.exp(log_probs) * labels.sum(axis=1, keepdims=True) - labels

    def logits(self, scores: NDArray[Any]) -> NDArray[Any]:
        return scores

    def log_loss(self, labels: NDArray[Any], logits: FloatMatrix) -> float:
        return self.loss_and_residual(logits, labels)[0] / float(labels.sum())


def _deal(labels: IntArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """(N,) fold of each image: every class is dealt out evenly, in an order drawn anew."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % _FOLDS
    return fold


def _draw(rows: NDArray[np.int64], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The rows, or ``limit`` of them."""
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))


def _standardized(features: FloatMatrix) -> tuple[FloatMatrix, FloatMatrix, FloatMatrix]:
    """Features of mean 0 and variance 1, overwriting them, then their mean and scale before."""
    mean: FloatMatrix = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    features -= mean
    scale: FloatMatrix = np.sqrt(np.square(features).mean(axis=0, dtype=np.float64)).astype(np.float32)
    scale[scale < 1e-6] = 1.0  # a feature that never moves says nothing, and must not be divided by
    features /= scale
    return features, mean, scale
