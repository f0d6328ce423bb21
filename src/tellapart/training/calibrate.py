"""What a fitted model is worth: everything that is fitted on images that neither trained nor chose it, as its card."""

from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from tellapart import __version__
from tellapart.data.dataset import Dataset
from tellapart.evaluation.familiarity import fit_familiarity_rule
from tellapart.evaluation.rules import fit_rules, parse_rules
from tellapart.evaluation.task import RULES
from tellapart.records import Calibration, ConformalRule, DecisionRule, ModelCard, Task
from tellapart.training.recipes import Recipe, recipe_settings
from tellapart.training.train import Fitted


def build_card(fitted: Fitted, dataset: Dataset, recipe: Recipe) -> ModelCard:
    """The model's card, before anything is measured: temperature, prediction sets, thresholds, familiarity and bands.

    Args:
        fitted: with the held-out images.
        dataset: what it was trained for.
        recipe: with nothing left open.
    """
    calibration, conformal, thresholds = calibrate(fitted, recipe, dataset.task)
    return ModelCard(
        class_names=dataset.class_names,
        task=dataset.task,
        preprocess=recipe.preprocess,
        calibration=calibration,
        conformal=conformal,
        label_thresholds=thresholds,
        familiarity=fit_familiarity_rule(fitted.familiar_scores, rate=recipe.false_alarms, method=fitted.method),
        decision_rules=_decision_rules(fitted, calibration, dataset, recipe),
        embedding_dim=fitted.embedding_dim,
        weights=fitted.weights,
        recipe=recipe_settings(recipe),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software={
            "tellapart": __version__,
            **{name: version(name) for name in ("openvino", "onnx", "numpy", "scipy")},
        },
    )


def calibrate(fitted: Fitted, recipe: Recipe, task: Task) -> tuple[Calibration, ConformalRule, tuple[float, ...]]:
    """Fit temperature, prediction sets and label thresholds on images that neither trained nor chose the model."""
    rules = RULES[task]
    logits, labels = fitted.held_out_logits.astype(np.float64), fitted.held_out_labels
    temperature = rules.fit_temperature(logits, labels)
    before, after = (rules.calibration_errors(labels, rules.probs(logits / t)) for t in (1.0, temperature))
    calibration = Calibration(
        temperature=temperature, method=fitted.method, n=len(labels), before=before, after=after
    )
    probs = rules.probs(logits / temperature)
    conformal = rules.fit_conformal(
        probs, labels, coverage=recipe.coverage, per_class=recipe.conformal == "per-class", method=fitted.method
    )
    return calibration, conformal, rules.fit_thresholds(probs, labels, recipe.label_thresholds)


def _decision_rules(
    fitted: Fitted, calibration: Calibration, dataset: Dataset, recipe: Recipe
) -> tuple[DecisionRule, ...]:
    """Fit the recipe's decision rules on the images the temperature was fitted on."""
    probs = RULES[dataset.task].probs(fitted.held_out_logits.astype(np.float64) / calibration.temperature)
    wanted = parse_rules(recipe.decision_rules, dataset.class_names)
    return fit_rules(wanted, fitted.held_out_labels, probs, dataset.class_names)
