"""Verify a composed model file: its own answers, from raw bytes, against the model that was fitted."""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.data.dataset import Dataset
from tellapart.errors import ImageError, ModelError
from tellapart.evaluation.metrics import Answer, FloatArray, IntArray
from tellapart.evaluation.task import RULES
from tellapart.imaging.decode import Pixels
from tellapart.inference.engine import Engine, OpenVINOEngine, Outputs, iter_outputs
from tellapart.inference.model import ModelFile
from tellapart.inference.predict import Classifier
from tellapart.records import ModelCard, Progress
from tellapart.training.answers import Answers, verdict_outputs

TIE_MARGIN = 0.02
"""Two classes whose probabilities are closer than this are a tie: rounding may put either first."""

_CLEAR_MARGIN = 0.5  # no rounding turns an answer round that leads by so much

_REFERENCE = "probs in full precision"


def verify(
    classifier: Classifier,
    model: ModelFile,
    part: Dataset,
    fitted: Answer,
    in_full: Callable[[IntArray], FloatArray],
    progress: Progress,
) -> tuple[Mapping[str, Any], Answers]:
    """Compare the file's answers with the fitted model's, and reduced precision with full.

    In reduced precision the two are computed by different programs of the engine's, and each rounds in its own way. So where
    they call an image differently that is no tie, both are asked in full precision, and there they must agree.

    Args:
        classifier: the composed file, opened as it will be used.
        model: the same, to be opened in full precision too.
        part: images of the calib part, or of train where there is none.
        fitted: what the fitted model says of them: ``probs`` (N, K) and, where it has the score, ``familiarity`` (N,).
        in_full: what the fitted model says of some rows of the part in full precision: (n,) to (n, K) probabilities.
        progress: called as the images are answered.

    Returns:
        What was found, for the model card and the report; and the file's answers.

    Raises:
        ModelError: model-disagrees, when the most probable class differs on an image that is no tie.
        ImageError: an image that was read before cannot be read now.
    """
    reduced = classifier.precision != "f32"
    engine: Engine = classifier.engine
    if reduced:
        size = model.card.preprocess.input_size_px
        engine = _WithReference(engine, OpenVINOEngine(model.onnx_bytes, input_size_px=size, precision="f32"))
    answers: Answers = {}
    full: list[NDArray[np.float32]] = []
    with closing(iter_outputs(engine, model.card.preprocess, part.images)) as outputs:
        for path, output in zip(part.paths, outputs, strict=True):
            if isinstance(output, ImageError):
                hint = "it was there when the run began; leave the images alone until it ends, and train again"
                raise ImageError(output.code, f"{path} can no longer be read: {output.message}", hint=hint)
            answers[path] = verdict_outputs(output)
            full.append(output[_REFERENCE] if reduced else output["probs"])
            progress("verifying", len(answers), len(part))
    probs = np.stack([answer["probs"] for answer in answers.values()])
    found: dict[str, Any] = {
        "n": len(part),
        "precision": classifier.precision,
        **_difference(fitted["probs"], probs, model.card),
    }
    if reduced and found["top1_differs"] > found["ties"]:
        differs, margin = _disagreement(fitted["probs"], probs, model.card)
        disputed = np.flatnonzero(differs & (margin >= TIE_MARGIN) & (margin < _CLEAR_MARGIN))
        if len(disputed):
            again, margin = _disagreement(in_full(disputed), np.stack(full)[disputed], model.card)
            found["ties"] += int((~again | (margin < TIE_MARGIN)).sum())
    if "familiarity" in fitted:
        scores = np.array([answer["familiarity"] for answer in answers.values()])
        found["familiarity_max_abs_difference"] = float(np.abs(fitted["familiarity"] - scores).max())
    if found["top1_differs"] > found["ties"]:
        message = (
            f"{found['top1_differs']} of {len(part)} images get another class from the file than from the model"
        )
        raise ModelError(
            "model-disagrees", message, hint="please report this, with your versions of openvino and onnx"
        )
    if reduced:
        found["against_f32"] = _difference(np.stack(full), probs, model.card)
    return found, answers


class _WithReference:
    """Two engines on the same pixels, so that every image is decoded once."""

    def __init__(self, engine: Engine, reference: Engine) -> None:
        self.precision = engine.precision
        self._engine, self._reference = engine, reference

    def run(self, images: Pixels) -> Outputs:
        return {**self._engine.run(images), _REFERENCE: self._reference.run(images)["probs"]}


def _disagreement(
    expected: FloatArray, found: FloatArray, card: ModelCard
) -> tuple[NDArray[np.bool_], FloatArray]:
    return RULES[card.task].disagreement(expected, found, card.label_thresholds)


def _difference(expected: FloatArray, found: FloatArray, card: ModelCard) -> dict[str, Any]:
    """How far two sets of (N, K) probabilities lie apart."""
    differs, margin = _disagreement(expected, found, card)
    return {
        "top1_differs": int(differs.sum()),
        "ties": int((differs & (margin < TIE_MARGIN)).sum()),
        "max_abs_difference": float(np.abs(expected - found).max()),
    }
