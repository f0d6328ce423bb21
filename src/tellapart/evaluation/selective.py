"""What answering only the surest images is worth."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tellapart.evaluation.bootstrap import Resamples, bootstrap_interval
from tellapart.evaluation.metrics import FloatArray, wilson_interval
from tellapart.records import Interval, Verdict

_POINTS = 20


def selective_accuracy(confidence: FloatArray, right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Accuracy of the surest images, from a twentieth of them to all; fewer points where many are equally sure.

    Args:
        confidence: (N,) probability of each answer.
        right: (N,) whether it is right.

    Returns:
        Surest first: ``answered`` (share of images, 0-1), ``min_prob`` (the least sure of them), ``accuracy`` (Wilson interval).
    """
    n = len(right)
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(right[order])
    ends = np.flatnonzero(
        np.append(ranked[1:] != ranked[:-1], True)[:n]
    )  # equally sure images are answered together
    wanted = np.ceil(n * np.arange(1, _POINTS + 1) / _POINTS).astype(np.int64) - 1
    chosen = np.unique(ends[np.searchsorted(ends, wanted)]) if n else ends
    return [
        {
            "answered": (int(end) + 1) / n,
            "min_prob": float(ranked[end]),
            "accuracy": asdict(wilson_interval(int(hits[end]), int(end) + 1)),
        }
        for end in chosen
    ]


def risk_coverage_area(confidence: FloatArray, right: NDArray[np.bool_], resamples: Resamples) -> Interval:
    """Mean share of wrong answers when the surest 1, 2, ... N images are answered; 0 at best. Equally sure images go together.

    Where no answer is wrong, the upper end is that of the error rate: what a ranking without any use would have.

    Args:
        confidence: (N,) probability of each answer.
        right: (N,) whether it is right.
        resamples: of the N images.

    Source: Geifman and El-Yaniv 2017, "Selective classification for deep neural networks"; the area as in Geifman, Uziel and
    El-Yaniv 2019, "Bias-reduced uncertainty estimation for deep neural classifiers", section 2.
    """
    n = len(right)
    if right.all():
        return wilson_interval(0, n)
    _, places = np.unique(-confidence, return_inverse=True)
    shape, wrong = (int(places.max()) + 1, n), np.flatnonzero(~right)
    answered = csr_array((np.ones(n), (places, np.arange(n))), shape=shape) @ resamples.weights
    errors = csr_array((np.ones(len(wrong)), (places[wrong], wrong)), shape=shape) @ resamples.weights
    given = np.cumsum(answered, axis=0)
    risk = np.cumsum(errors, axis=0) / given
    return bootstrap_interval(np.einsum("sb,sb->b", answered, risk) / given[-1])


def measure_verdicts(verdicts: Sequence[Verdict], right: NDArray[np.bool_]) -> dict[str, Any]:
    """How often each verdict is given, and how good the answers are that come with it.

    Args:
        verdicts: (N,) of ``decide``.
        right: (N,) whether the answer is right.

    Returns:
        For ``sure``, ``unsure`` and ``unfamiliar``: ``n``, ``share`` of the images, ``accuracy``; both with Wilson intervals.
    """
    given = np.asarray(verdicts, dtype=object)
    found: dict[str, Any] = {}
    kinds: tuple[Verdict, ...] = ("sure", "unsure", "unfamiliar")
    for verdict in kinds:
        chosen = given == verdict
        n = int(chosen.sum())
        found[verdict] = {
            "n": n,
            "share": asdict(wilson_interval(n, len(given))),
            "accuracy": asdict(wilson_interval(int(right[chosen].sum()), n)),
        }
    return found
