"""measure: everything that is said about a model's answers on labelled images, in one place for every task."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tellapart.evaluation.conformal import measure_coverage
from tellapart.evaluation.decide import decide
from tellapart.evaluation.familiarity import expected_alarms
from tellapart.evaluation.metrics import Answer, IntArray, wilson_interval
from tellapart.evaluation.rules import measure_rules
from tellapart.evaluation.selective import measure_verdicts
from tellapart.evaluation.task import RULES
from tellapart.records import ModelCard


def measure(labels: IntArray, answers: Answer, card: ModelCard) -> dict[str, Any]:
    """Metrics of the task, what each verdict is worth, and whether what was promised holds; as in ``report.json`` under ``test``.

    Args:
        labels: as ``Dataset.labels`` gives them for the task.
        answers: of N images, stacked.
        card: the model's.
    """
    rules = RULES[card.task]
    verdicts = [decide("", answer, card).verdict for answer in _one_by_one(answers, len(labels))]
    measured = {
        **rules.measure(labels, answers, card),
        "verdicts": measure_verdicts(verdicts, rules.right(labels, answers, card)),
        "coverage": measure_coverage(labels, answers["probs"], card),
    }
    if card.familiarity is not None:
        alarms = wilson_interval(verdicts.count("unfamiliar"), len(verdicts))
        low, high = expected_alarms(card.familiarity)
        measured["familiarity"] = {
            "unfamiliar": asdict(alarms),
            "rate": card.familiarity.promised,
            "expected": {"low": low, "high": high},
        }
    if card.decision_rules:
        measured["bands"] = measure_rules(labels, answers["probs"], card.decision_rules, card.class_names)
    return measured


def _one_by_one(answers: Answer, n: int) -> Sequence[Answer]:
    return [{name: values[i] for name, values in answers.items()} for i in range(n)]
