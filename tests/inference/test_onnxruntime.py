"""The model file answers without anything of ours: the documentation's script, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tellapart
from tellapart.inference.model import read_model
from tellapart.inference.predict import Classifier

PAGE = Path(__file__).parents[2] / "docs" / "onnxruntime.md"
NOT_NEEDED = ("tellapart", "openvino", "onnx", "torch", "sklearn", "scipy", "polars", "simplejpeg")


def documented_script():
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return script


def run_script(model_path, image_path):
    """Probabilities by class as the script prints them, where what is not needed cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + documented_script(), str(model_path), str(image_path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: float(prob) for name, prob in lines}


def wide_picture(photos, path):
    """Larger than the model's input and not square, so that resizing matters."""
    names = ["blobs/blobs1.png", "dots/dots1.png", "stripes/stripes1.png"]
    rows = [np.asarray(Image.open(photos / name)) for name in names]
    Image.fromarray(np.concatenate(rows, axis=1).repeat(3, axis=0).repeat(3, axis=1)).save(path)
    return path


@pytest.mark.parametrize("build", [lambda photos, _path: photos / "dots" / "dots1.png", wide_picture])
def test_the_documented_script_answers_like_tellapart(run, photos, tmp_path, build):
    image = build(photos, tmp_path / "picture.png")
    (expected,) = Classifier(read_model(run.model_path), precision="f32").predict(image)
    found = run_script(run.model_path, image)
    assert next(iter(found)) == expected.label
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for name, prob in zip(run.report["test"]["class_names"], expected.probs, strict=True):
        assert found[name] == pytest.approx(prob, abs=1e-4), name
    assert len(found) == len(expected.probs)


def test_the_script_sees_the_picture(run, photos):
    """Two pictures, two answers, each what tellapart says of that picture at the precision of this processor."""
    images = [photos / "blobs" / "blobs1.png", photos / "stripes" / "stripes1.png"]
    expected = tellapart.load(run.model_path).predict(images)
    answers = [run_script(run.model_path, image) for image in images]
    assert [next(iter(answer)) for answer in answers] == [prediction.label for prediction in expected]
    assert answers[0] != answers[1]
