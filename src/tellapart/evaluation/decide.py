"""decide: from probabilities to a verdict, in one place for every way a prediction is made."""

import numpy as np

from tellapart.evaluation.metrics import FloatArray
from tellapart.records import ModelCard, Prediction


def decide(path: str, probs: FloatArray, card: ModelCard) -> Prediction:
    """Give one image its verdict.

    ``sure`` when the prediction set holds exactly one class. Otherwise ``unsure``, also without a fitted rule: nothing is
    claimed that was not measured. Where no class reaches the rule's probability, the set holds the most probable classes up to
    the coverage, so that something is listed; sets only grow by this, so what is promised of them holds.

    Args:
        path: the image's name in the answer.
        probs: (K,) calibrated probabilities.
        card: the model's class names and rules.
    """
    order = np.argsort(-probs, kind="stable")
    rule = card.conformal
    min_prob = 0.0 if rule is None else rule.min_prob
    chosen = [k for k in order if probs[k] >= min_prob]
    if rule is not None and not chosen:
        reached = np.cumsum(probs[order])
        chosen = list(order[: int(np.searchsorted(reached, min(rule.coverage, reached[-1]))) + 1])
        sure = False
    else:
        sure = len(chosen) == 1
    return Prediction(
        path=path,
        verdict="sure" if sure else "unsure",
        label=card.class_names[order[0]],
        prob=float(probs[order[0]]),
        probs=tuple(float(prob) for prob in probs),
        prediction_set=tuple(card.class_names[k] for k in chosen),
    )
