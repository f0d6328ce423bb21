"""The numbers of a report, as one JSON document."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from tellapart.evaluation.metrics import (
    FloatArray,
    IntArray,
    accuracy,
    confusion_matrix,
    log_loss,
    precision,
    recall,
)


def measure(labels: IntArray, probs: FloatArray, class_names: Sequence[str]) -> dict[str, object]:
    """Measure predictions on labelled images.

    Args:
        labels: (N,) class indices in 0..K-1.
        probs: (N, K) calibrated probabilities, from the model file itself.
        class_names: K names.

    Returns:
        ``n``; ``accuracy`` with its 95 % interval; ``log_loss`` in nats, null when n is 0; ``confusion_matrix`` (row: true
        class, column: predicted class); ``per_class`` with ``n``, ``precision`` and ``recall`` of each class.
    """
    confusion = confusion_matrix(labels, np.argmax(probs, axis=1), len(class_names))
    per_class = {
        name: {"n": int(n), "precision": asdict(class_precision), "recall": asdict(class_recall)}
        for name, n, class_precision, class_recall in zip(
            class_names, confusion.sum(axis=1), precision(confusion), recall(confusion), strict=True
        )
    }
    return {
        "n": len(labels),
        "accuracy": asdict(accuracy(confusion)),
        "log_loss": log_loss(labels, probs) if len(labels) else None,
        "class_names": list(class_names),
        "confusion_matrix": confusion.tolist(),
        "per_class": per_class,
    }
