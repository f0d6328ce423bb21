"""One class an image: from logits to a verdict, and how good it is."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from tellapart.evaluation.bootstrap import Resamples, fixed_order
from tellapart.evaluation.calibration import minimize_log_loss
from tellapart.evaluation.caveats import caveats
from tellapart.evaluation.conformal import fit_rule, fit_rule_per_class
from tellapart.evaluation.metrics import (
    Answer,
    FloatArray,
    IntArray,
    accuracy,
    balanced_accuracy,
    brier_scores,
    class_weights,
    confusion_matrix,
    f1,
    kappa,
    log_loss,
    log_losses,
    macro_f1,
    precision,
    recall,
    require_two_classes,
    top_k,
)
from tellapart.evaluation.ranking import Ranking, rank_classes
from tellapart.evaluation.reliability import calibration_error, mean_gap, reliability
from tellapart.evaluation.selective import risk_coverage_area, selective_accuracy
from tellapart.records import ConformalRule, HeldOut, ModelCard, Prediction

_IMBALANCE = 2
"""A largest class above this many times the smallest one makes balanced accuracy worth a line of its own."""


class ClassificationRules:
    """What the task ``classification`` does in its own way; see ``TaskRules``."""

    activation: Literal["Softmax", "Sigmoid"] = "Softmax"

    def probs(self, logits: FloatArray) -> NDArray[np.float64]:
        """Softmax of (N, K) logits."""
        result: NDArray[np.float64] = softmax(logits.astype(np.float64), axis=1)
        return result

    def fit_temperature(self, logits: FloatArray, labels: IntArray) -> float:
        """The temperature that minimises the log loss of the (N,) true classes; see ``minimize_log_loss``."""
        require_two_classes(labels, len(logits))
        logits = logits.astype(np.float64)
        rows = np.arange(len(labels))
        return minimize_log_loss(lambda t: -log_softmax(logits / t, axis=1)[rows, labels])

    def calibration_errors(self, labels: IntArray, probs: FloatArray) -> dict[str, float]:
        """Log loss of the (N,) true classes, and the calibration error of the most probable one."""
        gap = mean_gap(probs.max(axis=1), probs.argmax(axis=1) == labels)
        return {"log_loss": log_loss(labels, probs), "ece": gap}

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

    def right(self, labels: IntArray, answers: Answer, card: ModelCard) -> NDArray[np.bool_]:  # noqa: ARG002
        """(N,) whether the most probable class is the true one."""
        result: NDArray[np.bool_] = np.argmax(answers["probs"], axis=1) == labels
        return result

    def measure(self, labels: IntArray, answers: Answer, card: ModelCard) -> dict[str, Any]:
        """Metrics of docs/metrics.md with their 95 % intervals, ``confusion_matrix`` (row: true class), curves, ``warnings``."""
        order = fixed_order(labels, answers["probs"])
        labels, probs, names = labels[order], answers["probs"][order], card.class_names
        predicted, top_probs = np.argmax(probs, axis=1), np.max(probs, axis=1)
        confusion, right = confusion_matrix(labels, predicted, len(names)), predicted == labels
        resamples = Resamples.draw(len(labels), len(names))
        there, said = (indices[:, None] == np.arange(len(names)) for indices in (labels, predicted))
        weights, ranking = class_weights(there, said, resamples), rank_classes(there, probs, resamples)
        counts = confusion.sum(axis=1)
        intervals = {
            "accuracy": accuracy(confusion),
            "balanced_accuracy": balanced_accuracy(recall(confusion)),
            "macro_f1": macro_f1(*weights),
            "kappa": kappa(*weights),
            "auroc": ranking.macro_auroc,
            "auprc": ranking.macro_auprc,
            "log_loss": resamples.mean(log_losses(probs[np.arange(len(labels)), labels])),
            "brier": resamples.mean(brier_scores(labels, probs)),
            "ece": calibration_error(top_probs, right, resamples),
            "aurc": risk_coverage_area(top_probs, right, resamples),
        }
        imbalanced = counts.max() > _IMBALANCE * counts.min()
        return {
            "n": len(labels),
            "headline": ["accuracy", "balanced_accuracy"] if imbalanced else ["accuracy"],
            **{name: asdict(interval) for name, interval in intervals.items()},
            "top_k": {k: asdict(share) for k, share in top_k(labels, probs).items()},
            "class_names": list(names),
            "confusion_matrix": confusion.tolist(),
            "per_class": _per_class(confusion, ranking, names),
            "reliability": reliability(top_probs, right),
            "selective": selective_accuracy(top_probs, right),
            "warnings": caveats(
                "an accuracy", intervals["accuracy"], len(labels), dict(zip(names, counts.tolist(), strict=True))
            ),
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


def _per_class(confusion: NDArray[np.int64], ranking: Ranking, class_names: Sequence[str]) -> dict[str, Any]:
    there, said = confusion.sum(axis=1), confusion.sum(axis=0)
    columns = {
        "precision": precision(confusion),
        "recall": recall(confusion),
        "f1": f1(np.diag(confusion), there, said),
        "auroc": ranking.auroc,
        "auprc": ranking.auprc,
    }
    return {
        name: {"n": int(there[k])} | {metric: asdict(column[k]) for metric, column in columns.items()}
        for k, name in enumerate(class_names)
    }
