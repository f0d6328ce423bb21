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
        score: (N,) 0-1: how much likelier than the label its best rival is; 0.5 where both are equally likely.
        suspected: (N,) True where the label is probably wrong: to be looked at, not a verdict.
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

    The number comes from confident learning. The ranking compares the label with its best rival: an image that could be
    anything has a low probability for its label too, but no rival.

    Args:
        labels: (N,) class indices in 0..K-1, as given.
        probs: (N, K) probabilities, each row from a model that did not see the image; K at least 2.

    Raises:
        RecipeError: bad-labels.

    Source: Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", section 3.1 for the
    number; the score is a monotone function of the log odds of the rival against the label.
    """
    _require_probs(labels, probs)
    rows = np.arange(len(labels))
    given = probs[rows, labels].astype(np.float64)
    others = probs.astype(np.float64)
    others[rows, labels] = -1.0
    suggested = others.argmax(axis=1)
    rival = others[rows, suggested]
    score = (rival + _TINY) / (rival + given + 2 * _TINY)
    # Where both sides are equally sure in single precision, the smaller probability of the label comes first.
    order = np.lexsort((given, -score))
    estimated = min(_estimated_errors(labels, probs), int((score > 0.5).sum()))
    suspected = np.zeros(len(labels), dtype=np.bool_)
    suspected[order[:estimated]] = True
    return LabelErrors(order=order, score=score, suspected=suspected, suggested=suggested, estimated=estimated)


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
