"""What a model file says of labelled images, asked with their raw bytes, and how good that is."""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from tellapart.data.copies import leaked_paths
from tellapart.data.dataset import Dataset
from tellapart.errors import ImageError
from tellapart.evaluation.measure import measure
from tellapart.imaging.decode import Pixels
from tellapart.inference.engine import Outputs, WithThumbnails, iter_outputs
from tellapart.inference.predict import VERDICT_OUTPUTS, Classifier
from tellapart.records import ModelCard, Progress

Answers = dict[str, Outputs]
"""What the model file says of each image, by path: the outputs a verdict is made from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What came of asking a model file about images.

    Attributes:
        answers: of the images that can be decoded, by path.
        thumbnails: (32, 32) uint8 of the same.
        refused: code and message of the others, by path.
        seconds: that it took.
    """

    answers: Answers
    thumbnails: dict[str, Pixels]
    refused: dict[str, tuple[str, str]]
    seconds: float = 0.0


def answer(classifier: Classifier, part: Dataset, progress: Progress, *, stage: str = "testing") -> Answered:
    """Ask the model file about images, from their files.

    Args:
        classifier: the open file.
        part: the images.
        progress: called as they are answered.
        stage: what that is called.
    """
    begun = time.perf_counter()
    found = Answered(answers={}, thumbnails={}, refused={})
    engine = WithThumbnails(classifier.engine)
    outputs = iter_outputs(engine, classifier.card.preprocess, part.images)
    for done, (path, output) in enumerate(zip(part.paths, outputs, strict=True), start=1):
        if isinstance(output, ImageError):
            found.refused[path] = (output.code, output.message)
        else:
            found.answers[path] = verdict_outputs(output)
            found.thumbnails[path] = output["thumbnail"]
        progress(stage, done, len(part))
    return replace(found, seconds=time.perf_counter() - begun)


def verdict_outputs(outputs: Outputs) -> Outputs:
    """The outputs that a verdict is made from."""
    return {name: outputs[name] for name in VERDICT_OUTPUTS if name in outputs}


def measure_answers(part: Dataset, answers: Answers, card: ModelCard) -> dict[str, Any]:
    """Measure a model file's answers about the images in use of one part."""
    rows = [answers[path] for path in part.paths]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return measure(part.labels, stacked, card)


def measure_leaks(
    learned: Dataset, thumbnails: Pixels, test: Dataset, tested: Answered, card: ModelCard
) -> dict[str, Any]:
    """Test images that show the same picture as an image of another part, and the metrics without them.

    Args:
        learned: images that trained, chose or calibrated the model.
        thumbnails: (N, 32, 32) uint8 of them.
        test: the test images in use.
        tested: what the model file says of them.
        card: the model's.

    Returns:
        ``n``, ``paths`` and ``test_without``. The last is None where nothing leaks, and where nothing is left.
    """
    shown = [tested.thumbnails[path] for path in test.paths]
    paths = leaked_paths(learned, test, np.concatenate([thumbnails, np.stack(shown)]))
    rest = test.where(~pl.col("path").is_in(paths))
    measured = measure_answers(rest, tested.answers, card) if paths and len(rest) else None
    return {"n": len(paths), "paths": paths, "test_without": measured}
