"""decide: from probabilities to a verdict, in one place for every way a prediction is made."""

import numpy as np

from tellapart.evaluation.metrics import FloatArray
from tellapart.records import ModelCard, Prediction


def decide(path: str, probs: FloatArray, card: ModelCard) -> Prediction:
    """Give one image its verdict.

    ``sure`` when the prediction set holds exactly one class. Otherwise ``unsure``, also without a fitted rule: nothing is
    claimed that was not measured.

    Args:
        path: the image's name in the answer.
        probs: (K,) calibrated probabilities.
        card: the model's class names and rules.
    """
    order = np.argsort(-probs, kind="stable")
    rule = card.conformal
    min_prob = 0.0 if rule is None else rule.min_prob
    chosen = tuple(card.class_names[k] for k in order if probs[k] >= min_prob)
    return Prediction(
        path=path,
        verdict="sure" if len(chosen) == 1 else "unsure",
        label=card.class_names[order[0]],
        prob=float(probs[order[0]]),
        probs=tuple(float(prob) for prob in probs),
        prediction_set=chosen,
    )
