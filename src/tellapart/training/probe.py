"""The probe: logistic regression on frozen features."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from tellapart.evaluation.metrics import IntArray, log_loss
from tellapart.imaging.pool import map_ordered
from tellapart.inference.model import LinearHead

MAX_SEARCH_IMAGES = 5_000
"""The strength is chosen on at most so many images; it hardly moves with more, and the search would."""

FloatMatrix = NDArray[np.float32]

_MAX_ITERATIONS = 500
_SEARCH_TOLERANCE = 1e-3  # of the gradient; the order of the strengths is settled long before the last digit
_FINAL_TOLERANCE = 1e-4
_PATIENCE = 2  # strengths in a row that made the loss worse


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A fitted head and how it was chosen.

    Attributes:
        head: from raw, not standardised, embeddings to logits.
        strength: the chosen C.
        search: mean log loss over held-out folds for each C that was tried, in nats.
        fold_images: (M,) rows of the training embeddings that took part in the search.
        fold_logits: (M, K) their logits at the chosen C, each from a model that did not see the image.
    """

    head: LinearHead
    strength: float
    search: dict[float, float]
    fold_images: NDArray[np.int64]
    fold_logits: FloatMatrix


def fit_probe(
    embeddings: FloatMatrix, labels: IntArray, *, strengths: Sequence[float], folds: int, seed: int
) -> Probe:
    """Fit multinomial logistic regression, its L2 strength chosen by stratified cross-validation.

    The search walks from the strongest penalty to the weakest, each fit starting from the last, and stops when the held-out
    log loss has risen twice.

    Args:
        embeddings: (N, D) features of the training images.
        labels: (N,) class indices in 0..K-1; every class has at least two images.
        strengths: ascending inverse strengths C to try.
        folds: number of folds; fewer where the smallest class has fewer images.
        seed: draws the folds, and the images that take part when there are more than ``MAX_SEARCH_IMAGES``.
    """
    rows = _search_images(labels, seed)
    searched = labels[rows]
    folds = min(folds, int(np.bincount(searched).min()))
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, searched))
    parts = [
        _Fold(embeddings[rows[train]], searched[train], embeddings[rows[held_out]]) for train, held_out in splits
    ]
    order = np.concatenate([held_out for _, held_out in splits])
    search: dict[float, float] = {}
    logits: dict[float, FloatMatrix] = {}
    for strength in strengths:
        logits[strength] = np.concatenate(
            list(map_ordered(functools.partial(_Fold.fit, strength=strength), parts))
        )
        search[strength] = log_loss(searched[order], _softmax(logits[strength]))
        best = min(search, key=search.__getitem__)
        if len(search) - 1 - list(search).index(best) == _PATIENCE:
            break
    scaled, mean, scale = _standardize(embeddings)
    # C weighs the sum of losses over images, so the same penalty per image needs a C that shrinks as they grow.
    strength = best * len(rows) * (folds - 1) / folds / len(labels)
    model = _regression(strength, _FINAL_TOLERANCE).fit(scaled, labels)
    return Probe(
        head=_unscaled_head(model, mean, scale),
        strength=best,
        search=search,
        fold_images=rows[order],
        fold_logits=logits[best],
    )


class _Fold:
    """One fold: its data standardised once, its model warm-started along the strengths."""

    def __init__(self, train: FloatMatrix, labels: IntArray, held_out: FloatMatrix) -> None:
        self._train, mean, scale = _standardize(train)
        self._labels = labels
        self._held_out = (held_out - mean) / scale
        self._model = _regression(1.0, _SEARCH_TOLERANCE)

    def fit(self, strength: float) -> FloatMatrix:
        self._model.set_params(C=strength).fit(self._train, self._labels)
        return _two_sided(self._model.decision_function(self._held_out))


def _regression(strength: float, tolerance: float) -> LogisticRegression:
    return LogisticRegression(C=strength, tol=tolerance, max_iter=_MAX_ITERATIONS, warm_start=True)


def _standardize(embeddings: FloatMatrix) -> tuple[FloatMatrix, FloatMatrix, FloatMatrix]:
    mean, scale = embeddings.mean(axis=0), embeddings.std(axis=0)
    scale[scale < 1e-6] = 1.0  # a feature that never moves says nothing, and must not be divided by
    return (embeddings - mean) / scale, mean, scale


def _unscaled_head(model: LogisticRegression, mean: FloatMatrix, scale: FloatMatrix) -> LinearHead:
    """Fold the standardisation into weight and bias, in double precision."""
    weight = model.coef_.T.astype(np.float64) / scale[:, None]
    bias = model.intercept_.astype(np.float64) - mean @ weight
    if weight.shape[1] == 1:
        weight, bias = weight * [-0.5, 0.5], bias * [-0.5, 0.5]
    return LinearHead(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _two_sided(decision: FloatMatrix) -> FloatMatrix:
    """(M, K) logits; for two classes scikit-learn gives their difference only."""
    return decision if decision.ndim == 2 else np.stack([-decision / 2, decision / 2], axis=1)


def _softmax(logits: FloatMatrix) -> FloatMatrix:
    exponents: FloatMatrix = np.exp(logits - logits.max(axis=1, keepdims=True))
    total: FloatMatrix = exponents.sum(axis=1, keepdims=True)
    return exponents / total


def _search_images(labels: IntArray, seed: int) -> NDArray[np.int64]:
    """Rows that take part in the search: all, or a stratified draw that leaves every class at least two."""
    if len(labels) <= MAX_SEARCH_IMAGES:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    share = MAX_SEARCH_IMAGES / len(labels)
    drawn = []
    for k in range(int(labels.max()) + 1):
        of_class = rng.permutation(np.flatnonzero(labels == k))
        drawn.append(of_class[: max(2, round(share * len(of_class)))])
    return np.sort(np.concatenate(drawn))
