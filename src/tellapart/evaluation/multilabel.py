"""Any number of labels an image: from logits to a verdict, and how good it is."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tellapart.errors import RecipeError
from tellapart.evaluation.bootstrap import Resamples, bootstrap_interval, fixed_order
from tellapart.evaluation.calibration import minimize_log_loss
from tellapart.evaluation.caveats import caveats
from tellapart.evaluation.conformal import fit_rule, fit_rule_per_label
from tellapart.evaluation.metrics import (
    Answer,
    FloatArray,
    IntArray,
    class_weights,
    f1,
    log_losses,
    macro_f1,
    wilson_interval,
)
from tellapart.evaluation.ranking import Ranking, rank_classes
from tellapart.evaluation.reliability import calibration_error, mean_gap, reliability
from tellapart.evaluation.selective import risk_coverage_area, selective_accuracy
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
        """The one temperature that minimises the mean log loss over all images and labels; see ``minimize_log_loss``.

        Raises:
            RecipeError: bad-labels, when all labels are there or none is.
        """
        if logits.shape != labels.shape or labels.all() or not labels.any():
            message = "calibration needs images with and without a label"
            raise RecipeError("bad-labels", message, hint="add images of the other kind")
        signed = np.where(labels, -logits, logits).astype(np.float64)
        return minimize_log_loss(lambda t: np.logaddexp(0.0, signed / t).mean(axis=1))

    def calibration_errors(self, labels: IntArray, probs: FloatArray) -> dict[str, float]:
        """Log loss and calibration error over all pairs of an image and a label."""
        losses = log_losses(np.where(labels, probs, 1 - probs))
        return {"log_loss": float(losses.mean()), "ece": mean_gap(probs.ravel(), labels.ravel().astype(bool))}

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

    def right(self, labels: IntArray, answers: Answer, card: ModelCard) -> NDArray[np.bool_]:
        """(N,) whether the labels given are exactly those that are there."""
        given = answers["probs"] >= np.asarray(card.label_thresholds)
        result: NDArray[np.bool_] = (given == labels.astype(bool)).all(axis=1)
        return result

    def measure(self, labels: IntArray, answers: Answer, card: ModelCard) -> dict[str, Any]:
        """Metrics of docs/metrics.md with their 95 % intervals, ``per_class``, curves, ``warnings``.

        ``log_loss``, ``brier``, ``ece`` and ``reliability`` are about pairs of an image and a label. For
        ``selective`` and ``aurc`` an answer is right when all labels are, and as sure as its least sure label.
        """
        order = fixed_order(labels, answers["probs"])
        there, probs, names = labels[order].astype(bool), answers["probs"][order], card.class_names
        given = probs >= np.asarray(card.label_thresholds)
        n, right = len(there), (given == there).all(axis=1)
        confidence = np.where(given, probs, 1 - probs).min(axis=1)
        resamples = Resamples.draw(n, len(names))
        weights = class_weights(there, given, resamples)
        ranking = rank_classes(there, probs, resamples)
        intervals = {
            "map": ranking.macro_auprc,
            "macro_f1": macro_f1(*weights),
            "micro_f1": macro_f1(*(part.sum(axis=0, keepdims=True) for part in weights)),
            "exact_match": wilson_interval(int(right.sum()), n),
            "hamming_loss": _hamming_loss(there != given, resamples),
            "auroc": ranking.macro_auroc,
            "log_loss": resamples.mean(log_losses(np.where(there, probs, 1 - probs)).mean(axis=1)),
            "brier": resamples.mean(np.square(probs.astype(np.float64) - there).mean(axis=1)),
            "ece": calibration_error(probs, there, resamples),
            "aurc": risk_coverage_area(confidence, right, resamples),
        }
        counts = dict(zip(names, there.sum(axis=0).tolist(), strict=True))
        return {
            "n": n,
            "headline": ["map", "macro_f1", "micro_f1", "exact_match", "hamming_loss"],
            **{name: asdict(interval) for name, interval in intervals.items()},
            "class_names": list(names),
            "thresholds": list(card.label_thresholds),
            "per_class": _per_class(there, given, ranking, names),
            "reliability": reliability(probs.ravel(), there.ravel()),
            "selective": selective_accuracy(confidence, right),
            "warnings": caveats("a mean average precision", intervals["map"], n, counts),
        }

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


def _hamming_loss(wrong: NDArray[np.bool_], resamples: Resamples) -> Interval:
    """Share of wrong pairs of an image and a label; the made-up image has two, one label missing and one too many."""
    made_up = resamples.made_up
    errors = wrong.mean(axis=1) @ resamples.weights + made_up * 2 / wrong.shape[1]
    with np.errstate(invalid="ignore"):
        return bootstrap_interval(errors / (resamples.weights.sum(axis=0) + made_up))


def _per_class(
    labels: NDArray[np.bool_], given: NDArray[np.bool_], ranking: Ranking, class_names: Sequence[str]
) -> dict[str, Any]:
    hits, there, said = (part.sum(axis=0) for part in (labels & given, labels, given))
    scores = f1(hits, there, said)
    return {
        name: {
            "n": int(there[k]),
            "precision": asdict(wilson_interval(int(hits[k]), int(said[k]))),
            "recall": asdict(wilson_interval(int(hits[k]), int(there[k]))),
            "f1": asdict(scores[k]),
            "average_precision": asdict(ranking.auprc[k]),
            "auroc": asdict(ranking.auroc[k]),
        }
        for k, name in enumerate(class_names)
    }
