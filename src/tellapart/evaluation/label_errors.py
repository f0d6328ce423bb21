"""Which labels are probably wrong, from probabilities of models that did not see the image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import RecipeError
from tellapart.evaluation.metrics import FloatArray, IntArray

_TINY = np.finfo(np.float64).tiny  # keeps the quotient of two probabilities that are both 0 defined


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelErrors:
    """What is known about each of N labels.

    Attributes:
        order: (N,) rows, the most suspicious first.
        score: (N,) 0-1, higher for more suspicious; above 0.5 wherever another class is likelier than the label.
        suspected: (N,) True for the ``estimated`` first images for which another class is likelier: to be looked at.
        suggested: (N,) the likeliest class other than the label.
        estimated: number of wrong labels, at most the number of images for which another class is likelier; finding
            them all would take perfect probabilities.
    """

    order: NDArray[np.int64]
    score: NDArray[np.float64]
    suspected: NDArray[np.bool_]
    suggested: NDArray[np.int64]
    estimated: int


def find_label_errors(labels: IntArray, probs: FloatArray) -> LabelErrors:
    """Rank images by how likely their label is wrong, and say how many there are.

    The number comes from confident learning. The score is the geometric mean of two odds against the label, as a share: those
    of its best rival and those of all other classes together. The second alone suspects images that could be anything, the
    first alone only those that are surely something else; their mean ranks best on real mistakes (docs/experiments.md).

    Args:
        labels: (N,) class indices in 0..K-1, as given.
        probs: (N, K) probabilities, each row from a model that did not see the image; K at least 2.

    Raises:
        RecipeError: bad-labels.

    Source: Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", section 3.1, for the number.
    """
    _require_probs(labels, probs)
    given = probs[np.arange(len(labels)), labels].astype(np.float64)
    suggested, rival = best_rivals(labels, probs)
    rest = np.maximum(probs.sum(axis=1, dtype=np.float64) - given, rival)
    against = np.sqrt(rival * rest)
    score = (against + _TINY) / (against + given + 2 * _TINY)
    # Scores may be 1 to the last digit; then the smaller probability of the label comes first.
    order = np.lexsort((given, -score))
    contradicted = order[rival[order] > given[order]]
    estimated = min(_estimated_errors(labels, probs), len(contradicted))
    suspected = np.zeros(len(labels), dtype=np.bool_)
    suspected[contradicted[:estimated]] = True
    return LabelErrors(order=order, score=score, suspected=suspected, suggested=suggested, estimated=estimated)


def best_rivals(labels: IntArray, probs: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest class other than the label, and its probability, both (N,)."""
    rows = np.arange(len(labels))
    others = probs.astype(np.float64)
    others[rows, labels] = -1.0
    classes = others.argmax(axis=1)
    return classes, others[rows, classes]


def confident_joint(labels: IntArray, probs: FloatArray) -> NDArray[np.int64]:
    """Count images by given label and by the class they confidently are.

    An image is confidently of a class when its probability is at least the mean probability of the class among images
    labelled so; of several such classes it is of the likeliest, and with none it is not counted.

    Args:
        labels: (N,) class indices in 0..K-1.
        probs: (N, K), out of fold.

    Returns:
        (K, K) counts: row is the label, column the class.

    Source: Northcutt et al. 2021, equations 1 and 2.
    """
    num_classes = probs.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    own = np.bincount(labels, weights=probs[np.arange(len(labels)), labels], minlength=num_classes)
    # Nothing is confidently of a class that no label names.
    thresholds = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    # Rounding must not make the members of a class with equal probabilities miss their own mean.
    confident = np.where(probs >= thresholds - 1e-6, probs, -1.0)
    counted = confident.max(axis=1) >= 0
    cells = labels[counted].astype(np.int64) * num_classes + confident[counted].argmax(axis=1)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _estimated_errors(labels: IntArray, probs: FloatArray) -> int:
    """Off-diagonal images of the confident joint, each row stretched to the number of images with its label."""
    joint = confident_joint(labels, probs)
    confident = joint.sum(axis=1)
    shares = 1 - np.divide(joint.diagonal(), confident, out=np.ones(len(joint)), where=confident > 0)
    return round(float(shares @ np.bincount(labels, minlength=len(joint))))


def _require_probs(labels: IntArray, probs: NDArray[Any]) -> None:
    if labels.ndim != 1 or probs.ndim != 2 or len(labels) != len(probs) or probs.shape[1] < 2:
        message = (
            f"labels must be (N,) and probabilities (N, K) with K at least 2, got {labels.shape} and {probs.shape}"
        )
        raise RecipeError("bad-labels", message)
    if len(labels) and not (labels.min() >= 0 and labels.max() < probs.shape[1]):
        raise RecipeError("bad-labels", f"class indices must lie in 0..{probs.shape[1] - 1}")
    if not (np.isfinite(probs).all() and (probs >= 0).all()):
        raise RecipeError("bad-labels", "probabilities must be finite and not negative")
