"""Probabilities to check labels with: every image answered by a probe that did not learn from it."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from tellapart.errors import RecipeError
from tellapart.evaluation.label_errors import find_label_errors
from tellapart.evaluation.metrics import IntArray, require_two_classes
from tellapart.imaging.pool import map_ordered
from tellapart.training.probe import MAX_SEARCH_IMAGES, FloatMatrix, fit_logistic, fit_probe

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
    present, dense = np.unique(labels[some], return_inverse=True)
    strength = fit_probe(
        embeddings[some], dense, strengths=_STRENGTHS, folds=_FOLDS, seed=seed
    ).strength
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    first = _cross_fit(embeddings, targets, labels, strength=strength, rng=rng)
    worth = 1 - find_label_errors(labels, first).score.astype(np.float32)
    targets *= worth[:, None]
    return _cross_fit(embeddings, targets, labels, strength=strength * _SECOND_ROUND, rng=rng)
