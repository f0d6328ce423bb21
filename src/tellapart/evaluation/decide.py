"""decide: from probabilities to a verdict, in one place for every way a prediction is made."""

from dataclasses import replace

from tellapart.errors import ModelError
from tellapart.evaluation.metrics import Answer
from tellapart.evaluation.rules import bands_of
from tellapart.evaluation.task import RULES
from tellapart.records import ModelCard, Prediction


def decide(path: str, answer: Answer, card: ModelCard, coverage: float | None = None) -> Prediction:
    """Give one image its verdict: by the rules of the model's task, then by how familiar it looks.

    An unfamiliar image keeps its label, probabilities and prediction set; they are what the model would say if it had to.

    Args:
        path: the image's name in the answer.
        answer: what the model file says of it.
        card: the model's class names and rules.
        coverage: of the prediction sets, one of those stored; the model's own when None.

    Raises:
        ModelError: no-such-coverage.
    """
    said = RULES[card.task].decide(path, answer, card, coverage)
    if card.decision_rules:
        said = replace(said, bands=bands_of(card, answer["probs"]))
    if "familiarity" not in answer:
        return said
    familiarity = float(answer["familiarity"])
    familiar = card.familiarity is None or familiarity >= card.familiarity.threshold
    return replace(said, familiarity=familiarity, verdict=said.verdict if familiar else "unfamiliar")


def require_coverage(card: ModelCard, coverage: float) -> None:
    """Raise unless the model holds prediction sets at this coverage.

    Raises:
        ModelError: no-such-coverage.
    """
    if card.conformal is None:
        raise ModelError("no-such-coverage", "the model has no prediction sets")
    card.conformal.level(coverage)
