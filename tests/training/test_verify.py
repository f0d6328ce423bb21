"""Whether a composed file is the fitted model: what rounding may turn round, and what it may not."""

from types import SimpleNamespace

import numpy as np
import pytest

from tellapart.errors import ModelError
from tellapart.records import Preprocess
from tellapart.training import verify as module
from tellapart.training.verify import verify

SURE = (0.9, 0.07, 0.03)
TURNED = (0.07, 0.9, 0.03)
N = 40
CARD = SimpleNamespace(task="classification", label_thresholds=(), preprocess=Preprocess(input_size_px=16))


class Part(SimpleNamespace):
    def __len__(self):
        return len(self.images)


class Table:
    """An engine that knows the answer to the picture of each gray."""

    def __init__(self, probs, precision):
        self.precision, self._probs = precision, np.asarray(probs, np.float32)

    def run(self, images):
        return {"probs": self._probs[images[:, 0, 0, 0]]}


def with_first(*first):
    """Answers to all images, the first of which are given."""
    return np.array([*first, *[SURE] * (N - len(first))])


def verified(monkeypatch, fitted, file, full=None):
    """``full``: the file's answers in full precision, where its own are not."""
    part = Part(images=[np.full((16, 16, 3), i, np.uint8) for i in range(N)], paths=[f"{i}.png" for i in range(N)])
    monkeypatch.setattr(module, "OpenVINOEngine", lambda *_args, **_options: Table(full, "f32"))
    precision = "f32" if full is None else "bf16"
    classifier = SimpleNamespace(engine=Table(file, precision), precision=precision)
    model = SimpleNamespace(card=CARD, onnx_bytes=b"")
    return verify(classifier, model, part, {"probs": fitted}, lambda *_: None)


def leading(by):
    """The first class leads the second by this."""
    return (0.45 + by / 2, 0.45 - by / 2, 0.1)


SAME = with_first()
WRONG_FILE = np.roll(SAME, 1, axis=1)
GOOD = {
    "the same": (SAME, SAME, None),
    "a tie": (with_first(leading(0.015)), with_first(leading(-0.015)), None),
    "a tie where rounding does little": (*[with_first(leading(by)) for by in (0.015, -0.015, -0.015)],),
    "as far as rounding goes elsewhere": (
        with_first(leading(0.1), SURE),
        with_first(leading(-0.1), (0.87, 0.1, 0.03)),
        with_first(leading(-0.1), SURE),
    ),
    "as far as rounding goes here": (*[with_first(leading(by)) for by in (0.1, -0.02, 0.08)],),
}
BAD = {
    "no tie": (with_first(leading(0.03)), with_first(leading(-0.03)), None),
    "farther than rounding goes": (*[with_first(leading(by)) for by in (0.1, -0.1, -0.095)],),
    "a clear answer, whatever rounding does": (
        with_first(SURE, SURE),
        with_first(TURNED, TURNED),
        with_first(TURNED, SURE),
    ),
    "another model": (SAME, WRONG_FILE, None),
    "another model in both precisions": (SAME, WRONG_FILE, WRONG_FILE),
}


@pytest.mark.parametrize(("fitted", "file", "full"), GOOD.values(), ids=GOOD)
def test_the_file_is_the_fitted_model(monkeypatch, fitted, file, full):
    found, answers = verified(monkeypatch, fitted, file, full)
    assert found["n"] == len(answers) == N
    assert found["top1_differs"] == found["ties"] == (fitted.argmax(1) != file.argmax(1)).sum()
    assert found["max_abs_difference"] == pytest.approx(np.abs(fitted - file).max(), abs=1e-6)
    assert ("against_f32" in found) == (full is not None)
    if full is not None:
        assert found["against_f32"]["max_abs_difference"] == pytest.approx(np.abs(full - file).max(), abs=1e-6)
        assert found["against_f32"]["top1_differs"] == (full.argmax(1) != file.argmax(1)).sum()
    assert np.allclose([answer["probs"] for answer in answers.values()], file)


@pytest.mark.parametrize(("fitted", "file", "full"), BAD.values(), ids=BAD)
def test_the_file_is_not_the_fitted_model(monkeypatch, fitted, file, full):
    with pytest.raises(ModelError) as caught:
        verified(monkeypatch, fitted, file, full)
    assert caught.value.code == "model-disagrees"
    assert f"of {N} images" in str(caught.value)
