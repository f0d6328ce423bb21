"""Classifier: images in, predictions out."""

import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from tellapart.errors import ImageError
from tellapart.evaluation.decide import decide, require_coverage
from tellapart.imaging.files import iter_files
from tellapart.inference.engine import ImageSource, OpenVINOEngine, Outputs, Precision, iter_outputs
from tellapart.inference.model import ModelFile, read_model
from tellapart.records import ModelCard, Prediction

NamedImage = tuple[str, ImageSource]

VERDICT_OUTPUTS = ("probs", "familiarity")
"""What a verdict is made from. Heat maps of a thousand classes would cost a sixth of the time."""


def name_of(image: ImageSource | NamedImage) -> str:
    """The name an image came with, or its path; empty for bytes and arrays."""
    if isinstance(image, tuple):
        return image[0]
    return os.fspath(image) if isinstance(image, str | os.PathLike) else ""


class Classifier:
    """A model file, ready to answer.

    Args:
        model: a verified model file.
        precision: ``f32`` or ``bf16``; best for this processor when None.
        coverage: of the prediction sets, one of those in the file; the model's own when None.
        outputs: names of those that the engine computes; by default what a verdict needs.

    Raises:
        ModelError: no-such-coverage; damaged-model, when the engine cannot make sense of it.

    Attributes:
        model: the file.
        card: what it says about itself.
        engine: runs the file's graph.
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        precision: Precision | None = None,
        coverage: float | None = None,
        outputs: Collection[str] = VERDICT_OUTPUTS,
    ) -> None:
        self.model = model
        self.card: ModelCard = model.card
        self.coverage = coverage
        if coverage is not None:
            require_coverage(model.card, coverage)
        size = model.card.preprocess.input_size_px
        self.engine = OpenVINOEngine(model.onnx_bytes, input_size_px=size, precision=precision, outputs=outputs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of ``Prediction.probs``."""
        return self.card.class_names

    @property
    def precision(self) -> Precision:
        """What the engine computes in."""
        return self.engine.precision

    def predict(self, images: ImageSource | Iterable[ImageSource]) -> list[Prediction]:
        """Predict a few images at once.

        Args:
            images: a path, a folder (all images below it), the bytes of an image file, an (H, W, 3) uint8 RGB array, or any
                number of these.

        Returns:
            One prediction an image, in order; unreadable ones have the verdict ``error``, nothing is raised for them.
        """
        single = isinstance(images, bytes | str | os.PathLike | np.ndarray)
        return list(self.iter_predictions(_expand([images] if single else images)))  # type: ignore[list-item, arg-type]

    def iter_predictions(self, images: Iterable[ImageSource | NamedImage]) -> Iterator[Prediction]:
        """Predict any number of images in bounded memory, in order; see ``predict``, but folders are not searched.

        An image may come as a pair with the name that its prediction is to have as ``path``.
        """
        names: deque[str] = deque()  # of the images under way

        def named() -> Iterator[ImageSource]:
            for image in images:
                names.append(name_of(image))
                yield image[1] if isinstance(image, tuple) else image

        for answer in iter_outputs(self.engine, self.card.preprocess, named()):
            name = names.popleft()
            if isinstance(answer, ImageError):
                yield Prediction(path=name, verdict="error", error=answer.code, message=answer.message)
            else:
                yield decide(name, answer, self.card, self.coverage)

    def iter_answers(self, images: Iterable[ImageSource]) -> Iterator[Outputs | ImageError]:
        """What the file says of each image, by output, or why the image cannot be used; in order."""
        yield from iter_outputs(self.engine, self.card.preprocess, images)


def load(path: str | Path, *, coverage: float | None = None) -> Classifier:
    """Open a model file.

    Args:
        path: of the file.
        coverage: of the prediction sets, one of those in the file; the model's own when None.

    Raises:
        ModelError: the file is missing, damaged, foreign, unsafe or newer than this version; no-such-coverage.
    """
    return Classifier(read_model(path), coverage=coverage)


def _expand(images: Iterable[ImageSource]) -> Iterator[ImageSource]:
    for image in images:
        if isinstance(image, str | os.PathLike) and Path(image).is_dir():
            yield from (found.path for found in iter_files(Path(image)) if not found.skip)
        else:
            yield image
