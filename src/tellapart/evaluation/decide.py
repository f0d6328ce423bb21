"""decide: from probabilities to a verdict, in one place for every way a prediction is made."""

from dataclasses import replace

from tellapart.evaluation.metrics import Answer
from tellapart.evaluation.rules import bands_of
from tellapart.evaluation.task import RULES
from tellapart.records import ModelCard, Prediction


def decide(path: str, answer: Answer, card: ModelCard) -> Prediction:
    """Give one image its verdict, by the rules of the model's task.

    Args:
        path: the image's name in the answer.
        answer: what the model file says of it.
        card: the model's class names and rules.
    """
    said = RULES[card.task].decide(path, answer, card)
    return replace(said, bands=bands_of(card, answer["probs"])) if card.decision_rules else said
