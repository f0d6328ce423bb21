"""Two models on the same labelled images: which is better, and is the difference more than chance?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from tellapart.evaluation.bootstrap import Resamples, bootstrap_interval
from tellapart.evaluation.metrics import (
    FloatArray,
    IntArray,
    log_losses,
    wilson_interval,
)
from tellapart.evaluation.ranking import areas_under_curves
from tellapart.records import Interval

SIGNIFICANT = 0.05
CHANGES = ("right to wrong", "wrong to right", "both wrong")

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one model says of N images.

    Attributes:
        probs: (N, K), in an order of classes that both models share.
        given: (N, K) of 0 and 1: the most probable class, or all labels given.
    """

    probs: FloatArray
    given: IntArray


def mcnemar(only_a: int, only_b: int, *, mid_p: bool = False) -> float:
    """Two-sided p of McNemar's exact test: were the images that one model alone gets right dealt out by a fair coin?

    Args:
        only_a: number of images that only the first gets right.
        only_b: number of images that only the second gets right.
        mid_p: count the probability of what was found half: closer to 5 % where exact is too careful, and no longer a promise.

    Source: McNemar 1947; mid-p: Fagerland, Lydersen and Laake 2013, "The McNemar test for binary matched-pairs data".
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    p = min(1.0, 2 * float(binom.cdf(fewer, n, 0.5)))
    if not mid_p:
        return p
    return 1 - float(binom.pmf(fewer, n, 0.5)) if only_a == only_b else p - float(binom.pmf(fewer, n, 0.5))


def paired_difference(both: int, only_a: int, only_b: int, neither: int) -> Interval:
    """Share that the second model gets right minus the first's, with its 95 % interval; empty without images.

    The two Wilson intervals are put together with the correlation of the pairs. The interval has a width also where no image
    tells the models apart.

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10.
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return Interval(value=None, low=None, high=None)
    right_a, right_b = both + only_a, both + only_b
    value = (only_b - only_a) / n
    below_a, above_a = _arms(right_a, n)
    below_b, above_b = _arms(right_b, n)
    product: float = both * neither - only_a * only_b
    if product > 0:
        product = max(product - n / 2, 0.0)  # continuity-corrected
    spread = math.sqrt(right_a * (n - right_a) * right_b * (n - right_b))
    phi = product / spread if spread else 0.0

    def width(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return Interval(
        value=value, low=max(-1.0, value - width(below_b, above_a)), high=min(1.0, value + width(above_b, below_a))
    )


def _arms(successes: int, n: int) -> tuple[float, float]:
    """How far a share's Wilson interval reaches down and up."""
    wilson = asdict(wilson_interval(successes, n))
    return wilson["value"] - wilson["low"], wilson["high"] - wilson["value"]


def smallest_difference(discordant: int, n: int) -> float:
    """The smallest difference of shares that McNemar's test would have called significant.

    Args:
        discordant: number of images on which the models differ in being right; at least 6 are needed in any case.
        n: number of images.
    """
    m = max(discordant, 6)  # 2 * 0.5**6 is the first below 0.05
    more = next(k for k in range(m // 2, m + 1) if mcnemar(m - k, k) <= SIGNIFICANT)
    return (2 * more - m) / n


def compare_answers(labels: IntArray, a: Answers, b: Answers, class_names: Sequence[str]) -> dict[str, Any]:
    """Compare two models image by image. All differences are B's value minus A's; shares come with 95 % intervals.

    Args:
        labels: (N,) class indices, or (N, K) of 0 and 1; N at least 1.
        a: what the first model says.
        b: what the second model says.
        class_names: K names, in the order of the columns.

    Returns:
        ``sentence``, ``verdict`` (``a``, ``b`` or ``none``), ``n``, ``measure`` (``accuracy``, or ``exact match`` where an image
        may have several labels), ``a``, ``b``, ``difference``, ``p``, ``mid_p``, ``smallest_difference``, ``pairs``,
        ``log_loss_difference`` in nats (below 0: B is better), ``per_class``, and with several labels ``map_difference``.
    """
    present = labels if labels.ndim == 2 else np.eye(len(class_names), dtype=np.int64)[labels]
    result = _compare_right(_right(present, a), _right(present, b))
    measure = "accuracy" if labels.ndim == 1 else "exact match"
    losses = [_losses(labels, answers.probs) for answers in (a, b)]
    resamples = Resamples.draw(len(labels), len(class_names))
    return {
        "sentence": _sentence(result, measure),
        "measure": measure,
        **result,
        "log_loss_difference": asdict(resamples.mean(losses[1] - losses[0])),
        **({"map_difference": asdict(_map_difference(present, a, b, resamples))} if labels.ndim == 2 else {}),
        "per_class": {
            name: _compare_class(present[:, k], a.given[:, k], b.given[:, k]) for k, name in enumerate(class_names)
        },
    }


def _right(present: IntArray, answers: Answers) -> BoolArray:
    """(N,) whether all labels of an image, and no others, are given."""
    right: BoolArray = (answers.given == present).all(axis=1)
    return right


def _compare_right(right_a: BoolArray, right_b: BoolArray) -> dict[str, Any]:
    n = len(right_a)
    pairs = {
        "both right": int((right_a & right_b).sum()),
        "right to wrong": int((right_a & ~right_b).sum()),
        "wrong to right": int((~right_a & right_b).sum()),
        "both wrong": int((~right_a & ~right_b).sum()),
    }
    only_a, only_b = pairs["right to wrong"], pairs["wrong to right"]
    difference = paired_difference(pairs["both right"], only_a, only_b, pairs["both wrong"])
    p = mcnemar(only_a, only_b)
    return {
        "verdict": _verdict(difference, p),
        "n": n,
        "a": asdict(wilson_interval(int(right_a.sum()), n)),
        "b": asdict(wilson_interval(int(right_b.sum()), n)),
        "difference": asdict(difference),
        "p": p,
        "mid_p": mcnemar(only_a, only_b, mid_p=True),
        "smallest_difference": smallest_difference(only_a + only_b, n) if n else None,
        "pairs": pairs,
    }


def _verdict(difference: Interval, p: float) -> str:
    """Which is better; neither, unless test and interval agree."""
    if difference.low is None or difference.high is None or p > SIGNIFICANT:
        return "none"
    return "b" if difference.low > 0 else "a" if difference.high < 0 else "none"


def _sentence(result: dict[str, Any], measure: str) -> str:
    n, p, difference = result["n"], result["p"], result["difference"]
    if result["verdict"] == "none":
        smallest = 100 * result["smallest_difference"]
        shown = (
            f"only differences of about {smallest:.1f} points or more show" if smallest <= 100 else "none can show"
        )
        return f"They cannot be told apart: with {n:,} images {shown} (p = {p:.2g})."
    sign = 1 if result["verdict"] == "b" else -1
    low, high = sorted((100 * sign * difference["low"], 100 * sign * difference["high"]))
    points = 100 * sign * difference["value"]
    said = "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
    better = result["verdict"].upper()
    return f"{better} is better: {points:.1f} points more {measure} ({low:.1f} to {high:.1f}), {said}."


def _compare_class(present: IntArray, given_a: IntArray, given_b: IntArray) -> dict[str, Any]:
    """Recall of one class by both models, on the images that are of it."""
    of_class = present == 1
    found = _compare_right(given_a[of_class] == 1, given_b[of_class] == 1)
    return {key: found[key] for key in ("n", "a", "b", "difference", "p", "pairs")}


def _losses(labels: IntArray, probs: FloatArray) -> NDArray[np.float64]:
    """(N,) log loss of each image in nats; with several labels the mean over them."""
    if labels.ndim == 1:
        return log_losses(probs[np.arange(len(labels)), labels])
    losses: NDArray[np.float64] = log_losses(np.where(labels, probs, 1 - probs)).mean(axis=1)
    return losses


def _map_difference(present: IntArray, a: Answers, b: Answers, resamples: Resamples) -> Interval:
    """Mean over the labels of B's average precision minus A's, on the same resamples."""
    there = present.astype(np.bool_)
    curves = [
        areas_under_curves(there[:, k], b.probs[:, k], resamples.weights)[1]
        - areas_under_curves(there[:, k], a.probs[:, k], resamples.weights)[1]
        for k in np.flatnonzero(there.any(axis=0))
    ]
    if not curves:
        return Interval(value=None, low=None, high=None)
    mean: NDArray[np.float64] = np.mean(curves, axis=0)
    return bootstrap_interval(mean)


def changed(labels: IntArray, a: Answers, b: Answers) -> list[tuple[int, str, float]]:
    """The images on which the models' answers differ.

    Args:
        labels: (N,) class indices, or (N, K) of 0 and 1.
        a: what the first model says.
        b: what the second model says.

    Returns:
        For each its row, what changed (one of ``CHANGES``), and how confident B is; by change, most confident first.
        Confidence is the least probability B gives to any of its own decisions: of the class, or of each label given or not.
    """
    present = labels if labels.ndim == 2 else np.eye(a.probs.shape[1], dtype=np.int64)[labels]
    right_a, right_b = _right(present, a), _right(present, b)
    decided = np.where(b.given == 1, b.probs, 1.0 if labels.ndim == 1 else 1 - b.probs)
    confidence = decided.min(axis=1)
    kinds = np.where(right_a & ~right_b, 0, np.where(~right_a & right_b, 1, 2))
    rows = np.flatnonzero((a.given != b.given).any(axis=1))
    order = sorted(rows, key=lambda row: (kinds[row], -confidence[row], row))
    return [(int(row), CHANGES[kinds[row]], float(confidence[row])) for row in order]
