"""explain: what a model makes of one image, and which places of it matter."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tellapart.evaluation.decide import decide
from tellapart.evaluation.task import RULES
from tellapart.explain.evidence import map_evidence, occlusion_evidence
from tellapart.explain.layers import read_walk
from tellapart.explain.page import render_page
from tellapart.explain.poster import render_poster
from tellapart.explain.story import tell
from tellapart.imaging.decode import decode_image, read_image_bytes
from tellapart.imaging.preprocess import load_input
from tellapart.inference.engine import Engine, OpenVINOEngine
from tellapart.inference.heatmap import HEATMAP, class_evidence
from tellapart.inference.model import read_model
from tellapart.records import Prediction, Progress, no_progress
from tellapart.storage import write_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """An explained image: the model's answer, and where the pages about it lie."""

    prediction: Prediction
    html_path: Path
    png_path: Path


def explain(
    model: str | Path, image: bytes | str | os.PathLike[str], *, out: str | Path, progress: Progress = no_progress
) -> Explanation:
    """Walk one image through a model and write what happens as a page and as a picture.

    Args:
        model: a model file.
        image: an image's path, or the bytes of its file.
        out: folder for ``explain.html`` and ``explain.png``; made where it is missing.
        progress: called with the stage ``occlusion``, where the file has no class maps of its own.

    Returns:
        The prediction, computed in 32-bit floats, and the two paths.

    Raises:
        ModelError: the model file cannot be read or run.
        ImageError: the image cannot be read.
        StorageError: cannot-write.
    """
    file = read_model(model)
    card, name = file.card, "" if isinstance(image, bytes) else Path(image).name
    data = image if isinstance(image, bytes) else read_image_bytes(image)
    pixels = load_input(data, card.preprocess)
    engine: Engine = OpenVINOEngine(file.onnx_bytes, input_size_px=len(pixels), precision="f32")
    answer = {output: values[0] for output, values in engine.run(pixels[None]).items()}
    prediction = decide(name, answer, card)
    best = int(np.argmax(answer["probs"]))
    label = card.class_names[best]
    if HEATMAP in answer:
        evidence = map_evidence(
            class_evidence(answer, best, exclusive=RULES[card.task].activation == "Softmax"), label
        )
    else:
        evidence = occlusion_evidence(engine, pixels, best, label, progress)
    story = tell(decode_image(data), pixels, read_walk(file, pixels), evidence, prediction, card)
    explanation = Explanation(
        prediction=prediction, html_path=Path(out) / "explain.html", png_path=Path(out) / "explain.png"
    )
    write_bytes(explanation.html_path, render_page(story))
    write_bytes(explanation.png_path, render_poster(story))
    return explanation
