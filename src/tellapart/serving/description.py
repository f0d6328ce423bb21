"""What a model is, for those who use it: from its card, without anything about the machine it was made on."""

from typing import Any

from tellapart.imaging.decode import READABLE_FORMATS
from tellapart.report import story
from tellapart.serving.settings import Limits
from tellapart.serving.shelf import ServedModel

_INTERVALS = ("accuracy", "balanced_accuracy", "macro_f1", "map", "exact_match", "auroc")
_CLASS_INTERVALS = ("precision", "recall", "f1", "ap")


def describe_model(model: ServedModel, *, collecting: bool, limits: Limits) -> dict[str, Any]:
    """Everything that ``GET /model`` says."""
    card = model.card
    return {
        "name": model.name,
        "version": model.version,
        "task": card.task,
        "class_names": list(card.class_names),
        "input_size_px": card.preprocess.input_size_px,
        "resize": card.preprocess.resize,
        "created": card.created,
        "recipe": str(card.recipe.get("name", "")),
        "weights": None
        if card.weights is None
        else {"name": card.weights.name, "source": card.weights.source, "license": card.weights.license},
        "calibration": {
            "temperature": card.calibration.temperature,
            "method": card.calibration.method,
            "n": card.calibration.n,
        },
        "coverage": None
        if card.conformal is None
        else {
            "default": card.conformal.coverage,
            "levels": [level.coverage for level in card.conformal.levels],
            "n": card.conformal.n,
        },
        "familiarity": None
        if card.familiarity is None
        else {"threshold": card.familiarity.threshold, "false_alarms": card.familiarity.promised},
        "decision_rules": [
            {"class_name": rule.class_name, "bands": [band.name for band in rule.bands]}
            for rule in card.decision_rules
        ],
        "test": _measured(dict(card.metrics)),
        "limits": story.limits(card),
        "collecting": collecting,
        "uploads": {
            "formats": list(READABLE_FORMATS),
            "max_image_bytes": limits.image.max_bytes,
            "max_image_pixels": limits.image.max_pixels,
            "max_request_bytes": limits.body_bytes,
            "max_images": limits.parts,
        },
    }


def _measured(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Shares with their 95 % intervals, of all and of each class; None where nothing was measured."""
    if not metrics.get("n"):
        return None
    report = {"test": metrics}
    return {
        "n": metrics["n"],
        "answer": story.answer(metrics),
        "grade": story.grade(metrics),
        "basis": story.basis(report),
        "warnings": story.warnings(report),
        "headline": list(metrics["headline"]),
        **{name: metrics[name] for name in _INTERVALS if name in metrics},
        "verdicts": metrics.get("verdicts", {}),
        "per_class": [
            {
                "class_name": name,
                "n": measured.get("n"),
                **{metric: measured[metric] for metric in _CLASS_INTERVALS if metric in measured},
            }
            for name, measured in metrics.get("per_class", {}).items()
        ],
    }
