"""Any number of labels an image: from logits to a verdict, and how good it is."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tellapart.errors import RecipeError
from tellapart.evaluation.calibration import minimize_log_loss
from tellapart.evaluation.conformal import fit_rule, fit_rule_per_label
from tellapart.evaluation.metrics import (
    Answer,
    FloatArray,
    IntArray,
    average_precision,
    binary_log_loss,
    bootstrap_interval,
    f1_scores,
    wilson_interval,
)
from tellapart.records import ConformalRule, HeldOut, Interval, ModelCard, Prediction

LABEL_SEPARATOR = ";"
"""Between the labels of one image, where they stand in one cell."""


class MultiLabelRules:
    """What the task ``multilabel`` does in its own way; see ``TaskRules``. Labels are (N, K) of 0 and 1."""

    activation: Literal["Softmax", "Sigmoid"] = "Sigmoid"

    def probs(self, logits: FloatArray) -> NDArray[np.float64]:
        """Sigmoid of (N, K) logits: each label's own probability."""
        result: NDArray[np.float64] = expit(logits.astype(np.float64))
        return result

    def fit_temperature(self, logits: FloatArray, labels: IntArray) -> float:
        """The one temperature that minimises the mean log loss over all images and labels.

        Raises:
            RecipeError: bad-labels, when all labels are there or none is.
        """
        if logits.shape != labels.shape or labels.all() or not labels.any():
            message = "calibration needs images with and without a label"
            raise RecipeError("bad-labels", message, hint="add images of the other kind")
        return minimize_log_loss(lambda t: binary_log_loss(labels, logits.astype(np.float64) / t), len(labels))

    def fit_conformal(
        self,
        probs: FloatArray,
        labels: IntArray,
        *,
        coverage: float,
        per_class: bool = False,
        method: HeldOut = "calib",
    ) -> ConformalRule:
        """The smallest probability that the presence, or the absence, of a label may have and still be possible.

        What is promised is the mean share of an image's labels; per class, it is promised of each label on its own.
        """
        of_truth = np.where(labels, probs, 1 - probs)
        if per_class:
            return fit_rule_per_label(of_truth, coverage=coverage, method=method)
        return fit_rule(of_truth, coverage=coverage, method=method)

    def fit_thresholds(self, probs: FloatArray, labels: IntArray, goal: str) -> tuple[float, ...]:
        """The probability from which each label is given.

        Args:
            probs: (N, K) calibrated.
            labels: (N, K).
            goal: ``f1``: the best F1 on these images; ``precision P``: the most images at a precision of at least P.

        Returns:
            K thresholds; 0.5 for a label that no image has, and one above every probability seen when P is out of reach.
        """
        wanted = _wanted_precision(goal)
        return tuple(_threshold(probs[:, k], labels[:, k], wanted) for k in range(probs.shape[1]))

    def disagreement(
        self, expected: FloatArray, found: FloatArray, thresholds: Sequence[float]
    ) -> tuple[NDArray[np.bool_], FloatArray]:
        """Whether any label is given by one and not by the other, and how near the nearest was to its threshold."""
        limits = np.asarray(thresholds)
        differs = (expected >= limits) != (found >= limits)
        distance = np.where(differs, np.abs(expected - limits), -np.inf)
        return differs.any(axis=1), np.where(differs.any(axis=1), distance.max(axis=1), np.inf)

    def measure(self, labels: IntArray, answers: Answer, card: ModelCard) -> dict[str, Any]:
        """``map``, ``macro_f1``, ``micro_f1``, ``hamming_loss``, ``exact_match``, each with its 95 % interval; ``per_class``."""
        probs, class_names, thresholds = answers["probs"], card.class_names, card.label_thresholds
        given = (probs >= np.asarray(thresholds)).astype(np.int64)
        n = len(labels)
        exact = int((given == labels).all(axis=1).sum()) if n else 0
        found: dict[str, Any] = {
            "n": n,
            "headline": ["map", "macro_f1", "micro_f1", "exact_match", "hamming_loss"],
            "map": asdict(
                bootstrap_interval(lambda w: np.nanmean(average_precision(labels, probs, w), axis=1), n)
            ),
            "macro_f1": asdict(bootstrap_interval(lambda w: np.nanmean(f1_scores(labels, given, w), axis=1), n)),
            "micro_f1": asdict(bootstrap_interval(lambda w: f1_scores(labels, given, w, pooled=True)[:, 0], n)),
            "exact_match": asdict(wilson_interval(exact, n)),
            "hamming_loss": asdict(
                bootstrap_interval(lambda w: w @ (given != labels).mean(axis=1) / w.sum(axis=1), n)
            ),
            "log_loss": _mean_log_loss(labels, probs) if n else None,
            "class_names": list(class_names),
            "thresholds": list(thresholds),
        }
        return {**found, "per_class": self._per_class(labels, given, probs, class_names)}

    def _per_class(
        self, labels: IntArray, given: IntArray, probs: FloatArray, class_names: Sequence[str]
    ) -> dict[str, Any]:
        hits = (labels & given).sum(axis=0)
        per_class: dict[str, Any] = {}
        for k, name in enumerate(class_names):
            n = int(labels[:, k].sum())
            interval = _average_precision_interval(labels[:, [k]], probs[:, [k]])
            per_class[name] = {
                "n": n,
                "precision": asdict(wilson_interval(int(hits[k]), int(given[:, k].sum()))),
                "recall": asdict(wilson_interval(int(hits[k]), n)),
                "average_precision": asdict(interval),
            }
        return per_class

    def decide(self, path: str, answer: Answer, card: ModelCard, coverage: float | None = None) -> Prediction:
        """Give every label that reaches its threshold.

        ``sure`` when for each label either presence or absence is ruled out, and the labels given are those that are left.
        """
        probs = answer["probs"]
        order = np.argsort(-probs, kind="stable")
        min_probs = np.array((0.0,) if card.conformal is None else card.conformal.level(coverage).min_probs)
        possible = probs >= min_probs
        ruled_out = 1 - probs < min_probs  # its absence
        given = [k for k in order if probs[k] >= card.label_thresholds[k]]
        settled = bool((possible == ruled_out).all() and set(np.flatnonzero(possible)) == set(given))
        names = card.class_names
        return Prediction(
            path=path,
            verdict="sure" if settled else "unsure",
            label=LABEL_SEPARATOR.join(names[k] for k in given),
            labels=tuple(names[k] for k in given),
            prob=float(probs[order[0]]),
            probs=tuple(float(prob) for prob in probs),
            prediction_set=tuple(names[k] for k in order if possible[k]),
        )


def _wanted_precision(goal: str) -> float | None:
    """None for the best F1."""
    name, _, number = goal.strip().partition(" ")
    try:
        wanted = float(number) if name == "precision" else None
    except ValueError:
        wanted = -1.0
    if (wanted is None and goal.strip() != "f1") or (wanted is not None and not 0 < wanted <= 1):
        hint = "f1, or precision and a number above 0 and at most 1, such as: precision 0.9"
        raise RecipeError("bad-setting", f"label_thresholds: got {goal!r}", hint=hint)
    return wanted


def require_threshold_goal(goal: str) -> None:
    """Raise unless ``fit_thresholds`` takes this goal.

    Raises:
        RecipeError: bad-setting.
    """
    _wanted_precision(goal)


def _threshold(probs: FloatArray, labels: IntArray, wanted_precision: float | None) -> float:
    if not labels.any():
        return 0.5
    order = np.argsort(-probs, kind="stable")
    ranked, hits = probs[order].astype(np.float64), np.cumsum(labels[order])
    ends = np.append(ranked[1:] != ranked[:-1], True)  # equal probabilities are given together or not at all
    given = np.arange(1, len(ranked) + 1)
    if wanted_precision is None:
        score = np.where(ends, 2 * hits / (given + labels.sum()), -1.0)
        best = int(np.argmax(score))
    else:
        good = np.flatnonzero(ends & (hits / given >= wanted_precision))
        if not len(good):
            return float(np.nextafter(np.float32(ranked[0]), np.float32(2)))  # the model file answers in 32 bits
        best = int(good[-1])
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)  # halfway to the next image


def _mean_log_loss(labels: IntArray, probs: FloatArray) -> float:
    chosen = np.where(labels, probs, 1 - probs).astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def _average_precision_interval(labels: IntArray, probs: FloatArray) -> Interval:
    """Empty for a label that no image has."""
    if not labels.any():
        return Interval(value=None, low=None, high=None)
    return bootstrap_interval(lambda w: average_precision(labels, probs, w)[:, 0], len(labels))
