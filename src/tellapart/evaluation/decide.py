"""decide: from probabilities to a verdict, in one place for every way a prediction is made."""

from tellapart.evaluation.metrics import FloatArray
from tellapart.evaluation.task import RULES
from tellapart.records import ModelCard, Prediction


def decide(path: str, probs: FloatArray, card: ModelCard) -> Prediction:
    """Give one image its verdict, by the rules of the model's task.

    Args:
        path: the image's name in the answer.
        probs: (K,) calibrated probabilities.
        card: the model's class names and rules.
    """
    return RULES[card.task].decide(path, probs, card)
