"""Which test images are worth a look."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.data.dataset import Dataset
from tellapart.evaluation.metrics import Answer
from tellapart.records import ModelCard

SHOWN = 12
"""Images of each kind, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Paths of test images to look at.

    Attributes:
        most_wrong: answered wrong, the highest probability of what is wrong first.
        least_sure: those whose answer was closest to another one first.
        least_familiar: the least like the training images first; none where the model file does not say.
    """

    most_wrong: tuple[str, ...] = ()
    least_sure: tuple[str, ...] = ()
    least_familiar: tuple[str, ...] = ()

    @property
    def paths(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys((*self.most_wrong, *self.least_sure, *self.least_familiar)))


def choose_examples(part: Dataset, answers: Mapping[str, Answer], card: ModelCard) -> Examples:
    """Choose by the numbers alone; ties go by path, so that the same answers show the same images.

    Args:
        part: the test images in use, with labels.
        answers: what the model file says of each, by path.
        card: of the model file.
    """
    if not len(part):
        return Examples()
    probs = np.stack([answers[path]["probs"] for path in part.paths]).astype(np.float64)
    wrongness, doubt = _judge(probs, part.labels, card)
    familiar = [answers[path].get("familiarity") for path in part.paths]
    known = [float(score) for score in familiar if score is not None]
    return Examples(
        most_wrong=_first(part.paths, -wrongness, wrongness > 0),
        least_sure=_first(part.paths, -doubt, np.ones(len(part), dtype=np.bool_)),
        least_familiar=_first(part.paths, np.array(known), np.ones(len(part), dtype=np.bool_))
        if len(known) == len(part)
        else (),
    )


def _judge(
    probs: NDArray[np.float64], labels: NDArray[np.int64], card: ModelCard
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each image, the probability of what is wrong (0 where nothing is), and how undecided the answer was."""
    if card.task == "multilabel":
        limits = np.asarray(card.label_thresholds)
        wrong = np.where((probs >= limits) != (labels > 0), np.abs(probs - (labels > 0)), 0.0)
        return wrong.max(axis=1), -np.abs(probs - limits).min(axis=1)
    ordered = np.sort(probs, axis=1)
    wrong = np.where(probs.argmax(axis=1) != labels, ordered[:, -1], 0.0)
    return wrong, ordered[:, -2] - ordered[:, -1]


def _first(paths: list[str], keys: NDArray[np.float64], allowed: NDArray[np.bool_]) -> tuple[str, ...]:
    """The paths with the smallest keys, among those allowed."""
    order = sorted(np.flatnonzero(allowed).tolist(), key=lambda i: (keys[i], paths[i]))
    return tuple(paths[i] for i in order[:SHOWN])
