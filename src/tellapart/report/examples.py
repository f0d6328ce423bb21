"""Which test images are worth a look."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tellapart.data.dataset import Dataset
from tellapart.evaluation.metrics import Answer
from tellapart.records import ModelCard
from tellapart.report.story import CERTAIN

SHOWN = 12
"""Images of each kind, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Paths of test images to look at.

    Attributes:
        most_wrong: answered wrong, the highest probability of what is wrong first.
        least_sure: those whose answer was closest to another one first.
        least_familiar: the least like the training images first; none where the model file does not say.
        about: index of the class that caption and heat map of each image are about: the answer; of several labels the one
            that is most wrong, or where none is, the one hardest to decide.
        contradicted: number of all test images, not only of those chosen, whose label is contradicted with ``CERTAIN`` or more.
    """

    most_wrong: tuple[str, ...] = ()
    least_sure: tuple[str, ...] = ()
    least_familiar: tuple[str, ...] = ()
    about: Mapping[str, int] = field(default_factory=dict)
    contradicted: int = 0

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
    wrongness, doubt, about = _judge(probs, part.labels, card)
    familiar = [answers[path].get("familiarity") for path in part.paths]
    known = [float(score) for score in familiar if score is not None]
    every = np.ones(len(part), dtype=np.bool_)
    found = Examples(
        most_wrong=_first(part.paths, -wrongness, wrongness > 0),
        least_sure=_first(part.paths, -doubt, every),
        least_familiar=_first(part.paths, np.array(known), every) if len(known) == len(part) else (),
        contradicted=int((wrongness >= CERTAIN).sum()),
    )
    subjects = dict(zip(part.paths, about.tolist(), strict=True))
    return replace(found, about={path: subjects[path] for path in found.paths})


def _judge(
    probs: NDArray[np.float64], labels: NDArray[np.int64], card: ModelCard
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """For each image, the probability of what is wrong (0 where nothing is), how undecided the answer was, and its subject."""
    if card.task == "multilabel":
        limits = np.asarray(card.label_thresholds)
        wrong = np.where((probs >= limits) != (labels > 0), np.abs(probs - (labels > 0)), 0.0)
        margins = np.abs(probs - limits)
        about = np.where(wrong.any(axis=1), wrong.argmax(axis=1), margins.argmin(axis=1))
        return wrong.max(axis=1), -margins.min(axis=1), about
    ordered = np.sort(probs, axis=1)
    wrong = np.where(probs.argmax(axis=1) != labels, ordered[:, -1], 0.0)
    return wrong, ordered[:, -2] - ordered[:, -1], probs.argmax(axis=1)


def _first(paths: list[str], keys: NDArray[np.float64], allowed: NDArray[np.bool_]) -> tuple[str, ...]:
    """The paths with the smallest keys, among those allowed."""
    order = sorted(np.flatnonzero(allowed).tolist(), key=lambda i: (keys[i], paths[i]))
    return tuple(paths[i] for i in order[:SHOWN])
