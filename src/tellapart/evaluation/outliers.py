"""Images unlike the others of their class, found by their embeddings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import RecipeError
from tellapart.evaluation.metrics import IntArray

MIN_CLASS_IMAGES = 20
"""With fewer images a class has no spread to speak of, and none of them is called an outlier."""

_NEIGHBORS = 20  # more than a handful of foreign images that are alike, so that they do not vouch for each other
_MAX_REFERENCES = 2_000  # of a class; they make the time linear in the number of images
_BLOCK_IMAGES = 1_000
_CUT = 3.5
_NORMAL_MAD = 0.6745  # median absolute deviation of a normal distribution of spread 1
_CLOSEST = 1e-3  # copies have no distance between them, and 0 no logarithm
_LEAST_SPREAD = 0.01  # of a log distance: images all equally far apart have no outlier for the last digit's sake


@dataclass(frozen=True, kw_only=True, slots=True)
class Outliers:
    """How far each of N images lies from its class.

    Attributes:
        scores: (N,) distance in units of the class' own spread; 0 for the middle one, higher is stranger, any sign.
        flagged: (N,) True where the score is above 3.5.
    """

    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_]


def find_outliers(embeddings: NDArray[np.floating[Any]], labels: IntArray, *, seed: int = 0) -> Outliers:
    """Compare each image's distance to its neighbours in its class with that of the class' other images.

    The distance is the mean to the 20 nearest, between the signed square roots of the embeddings scaled to length 1: the
    root keeps a few strong features from drowning the many weak ones that set a foreign image apart. Scores are modified
    z-scores of its logarithm.

    Args:
        embeddings: (N, D), finite.
        labels: (N,) class indices.
        seed: draws the neighbours to choose from in classes of more than 2,000 images.

    Returns:
        Scores, 0 for all images of a class with fewer than ``MIN_CLASS_IMAGES``.

    Raises:
        RecipeError: bad-labels.

    Source: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", for score and cut; Arandjelovic and Zisserman
    2012, "Three things everyone should know to improve object retrieval", section 3, for the root.
    """
    if labels.ndim != 1 or embeddings.ndim != 2 or len(labels) != len(embeddings):
        message = f"labels must be (N,) and embeddings (N, D), got {labels.shape} and {embeddings.shape}"
        raise RecipeError("bad-labels", message)
    rng = np.random.default_rng(seed)
    scores = np.zeros(len(labels))
    for rows in _rows_by_class(labels):
        if len(rows) >= MIN_CLASS_IMAGES:
            scores[rows] = _modified_z(_log_distances(embeddings, rows, rng))
    return Outliers(scores=scores, flagged=scores > _CUT)


def _rows_by_class(labels: IntArray) -> list[NDArray[np.int64]]:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, starts)


def _log_distances(
    embeddings: NDArray[np.floating[Any]], rows: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(M,) logarithm of the mean distance of each row to its nearest in the class, itself left out."""
    chosen = np.arange(len(rows))
    if len(rows) > _MAX_REFERENCES:
        chosen = np.sort(rng.choice(len(rows), _MAX_REFERENCES, replace=False))
    references = _directions(embeddings[rows[chosen]])
    neighbors = min(_NEIGHBORS, len(chosen) - 1)
    result = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK_IMAGES):
        stop = min(start + _BLOCK_IMAGES, len(rows))
        likeness = _directions(embeddings[rows[start:stop]]) @ references.T
        own = np.flatnonzero((chosen >= start) & (chosen < stop))
        likeness[chosen[own] - start, own] = -np.inf
        nearest = np.partition(likeness, -neighbors, axis=1)[:, -neighbors:]
        distances = np.sqrt(np.maximum(2 - 2 * nearest.astype(np.float64), _CLOSEST**2))
        result[start:stop] = np.log(distances.mean(axis=1))
    return result


def _directions(embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Signed square roots, scaled to length 1; zeros stay zeros."""
    roots = (np.sign(embeddings) * np.sqrt(np.abs(embeddings))).astype(np.float32)
    lengths = np.linalg.norm(roots, axis=1, keepdims=True)
    directions: NDArray[np.float32] = roots / np.where(lengths > 0, lengths, 1)
    return directions


def _modified_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    deviations = values - np.median(values)
    spread = float(np.median(np.abs(deviations))) / _NORMAL_MAD
    return deviations / max(spread, _LEAST_SPREAD)
