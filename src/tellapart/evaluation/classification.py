"""One class an image: from logits to a verdict, and how good it is."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from tellapart.evaluation.calibration import minimize_log_loss
from tellapart.evaluation.conformal import fit_rule, fit_rule_per_class
from tellapart.evaluation.metrics import (
    Answer,
    FloatArray,
    IntArray,
    accuracy,
    confusion_matrix,
    log_loss,
    precision,
    recall,
    require_two_classes,
)
from tellapart.records import ConformalRule, HeldOut, ModelCard, Prediction


class ClassificationRules:
    """What the task ``classification`` does in its own way; see ``TaskRules``."""

    activation: Literal["Softmax", "Sigmoid"] = "Softmax"

    def probs(self, logits: FloatArray) -> NDArray[np.float64]:
        """Softmax of (N, K) logits."""
        result: NDArray[np.float64] = softmax(logits.astype(np.float64), axis=1)
        return result

    def fit_temperature(self, logits: FloatArray, labels: IntArray) -> float:
        """The temperature that minimises the log loss of the (N,) true classes."""
        require_two_classes(labels, len(logits))
        logits = logits.astype(np.float64)
        rows = np.arange(len(labels))
        return minimize_log_loss(
            lambda t: float(-log_softmax(logits / t, axis=1)[rows, labels].mean()), len(labels)
        )

    def fit_conformal(
        self,
        probs: FloatArray,
        labels: IntArray,
        *,
        coverage: float,
        per_class: bool = False,
        method: HeldOut = "calib",
    ) -> ConformalRule:
        """The smallest probability a class may have and still belong in the set."""
        of_truth = probs[np.arange(len(labels)), labels]
        if per_class:
            return fit_rule_per_class(of_truth, labels, probs.shape[1], coverage=coverage, method=method)
        return fit_rule(of_truth, coverage=coverage, method=method)

    def fit_thresholds(self, probs: FloatArray, labels: IntArray, goal: str) -> tuple[float, ...]:  # noqa: ARG002
        """None: the most probable class is the answer."""
        return ()

    def disagreement(
        self,
        expected: FloatArray,
        found: FloatArray,
        thresholds: Sequence[float],  # noqa: ARG002
    ) -> tuple[NDArray[np.bool_], FloatArray]:
        """Whether the most probable class differs, and by how much the expected one led."""
        ordered = np.sort(expected, axis=1)
        return expected.argmax(axis=1) != found.argmax(axis=1), ordered[:, -1] - ordered[:, -2]

    def measure(self, labels: IntArray, answers: Answer, card: ModelCard) -> dict[str, Any]:
        """``accuracy`` with its 95 % interval, ``log_loss`` in nats, ``confusion_matrix`` (row: true class), ``per_class``."""
        probs, class_names = answers["probs"], card.class_names
        confusion = confusion_matrix(labels, np.argmax(probs, axis=1), len(class_names))
        per_class = {
            name: {"n": int(n), "precision": asdict(class_precision), "recall": asdict(class_recall)}
            for name, n, class_precision, class_recall in zip(
                class_names, confusion.sum(axis=1), precision(confusion), recall(confusion), strict=True
            )
        }
        return {
            "n": len(labels),
            "headline": ["accuracy"],
            "accuracy": asdict(accuracy(confusion)),
            "log_loss": log_loss(labels, probs) if len(labels) else None,
            "class_names": list(class_names),
            "confusion_matrix": confusion.tolist(),
            "per_class": per_class,
        }

    def decide(self, path: str, answer: Answer, card: ModelCard, coverage: float | None = None) -> Prediction:
        """``sure`` when the prediction set holds exactly one class; otherwise ``unsure``, also without a fitted rule.

        Where no class reaches the rule's probability, the set holds the most probable classes up to the coverage, so that
        something is listed; sets only grow by this, so what is promised of them holds.
        """
        probs = answer["probs"]
        order = np.argsort(-probs, kind="stable")
        level = None if card.conformal is None else card.conformal.level(coverage)
        min_probs = np.broadcast_to(0.0 if level is None else np.array(level.min_probs), probs.shape)
        chosen = [k for k in order if probs[k] >= min_probs[k]]
        if level is not None and not chosen:
            reached = np.cumsum(probs[order])
            chosen = list(order[: int(np.searchsorted(reached, min(level.coverage, reached[-1]))) + 1])
            sure = False
        else:
            sure = chosen == [order[0]]
        return Prediction(
            path=path,
            verdict="sure" if sure else "unsure",
            label=card.class_names[order[0]],
            prob=float(probs[order[0]]),
            probs=tuple(float(prob) for prob in probs),
            prediction_set=tuple(card.class_names[k] for k in chosen),
        )
