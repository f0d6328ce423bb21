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


def verified(monkeypatch, fitted, file, full=None, fitted_full=None):
    """``full`` and ``fitted_full``: the answers in full precision, where the others are not."""
    part = Part(images=[np.full((16, 16, 3), i, np.uint8) for i in range(N)], paths=[f"{i}.png" for i in range(N)])
    monkeypatch.setattr(module, "OpenVINOEngine", lambda *_args, **_options: Table(full, "f32"))
    precision = "f32" if full is None else "bf16"
    classifier = SimpleNamespace(engine=Table(file, precision), precision=precision)
    model = SimpleNamespace(card=CARD, onnx_bytes=b"")
    asked = []

    def in_full(rows):
        asked.extend(rows.tolist())
        return fitted_full[rows]

    return *verify(classifier, model, part, {"probs": fitted}, in_full, lambda *_: None), asked


def leading(by):
    """The first class leads the second by this."""
    return (0.45 + by / 2, 0.45 - by / 2, 0.1)


SAME = with_first()
WRONG_FILE = np.roll(SAME, 1, axis=1)
# Answers of the fitted model and of the file; then of the file and of the fitted model in full precision.
GOOD = {
    "the same": (SAME, SAME),
    "a tie": (with_first(leading(0.015)), with_first(leading(-0.015))),
    "a tie in reduced precision": (with_first(leading(0.015)), with_first(leading(-0.015)), SAME),
    "rounded: both lead in full": (*[with_first(SURE, leading(by)) for by in (0.1, -0.1, -0.04, -0.04)],),
    "rounded: a tie in full": (*[with_first(leading(by)) for by in (0.1, -0.1, -0.01, 0.009)],),
    "two of them": (*[with_first(leading(by), SURE, leading(-by)) for by in (0.4, -0.4, 0.05, 0.05)],),
}
BAD = {
    "no tie": (with_first(leading(0.03)), with_first(leading(-0.03))),
    "in full, too": (*[with_first(leading(by)) for by in (0.1, -0.1, -0.1, 0.1)],),
    "one of two in full": (
        with_first(leading(0.1), leading(0.1)),
        with_first(leading(-0.1), leading(-0.1)),
        with_first(leading(-0.1), leading(-0.1)),
        with_first(leading(-0.1), leading(0.1)),
    ),
    "a clear answer, though not in full": (with_first(SURE), with_first(TURNED), SAME, SAME),
    "a clear answer beside one that was rounded": (
        with_first(SURE, leading(0.1)),
        with_first(TURNED, leading(-0.1)),
        SAME,
        SAME,
    ),
    "another model": (SAME, WRONG_FILE),
    "another model in both precisions": (SAME, WRONG_FILE, WRONG_FILE, SAME),
}


@pytest.mark.parametrize("answers", GOOD.values(), ids=GOOD)
def test_the_file_is_the_fitted_model(monkeypatch, answers):
    fitted, file, *full = answers
    found, given, asked = verified(monkeypatch, *answers)
    turned = np.flatnonzero(fitted.argmax(1) != file.argmax(1))
    assert found["n"] == len(given) == N
    assert found["top1_differs"] == found["ties"] == len(turned)
    assert found["max_abs_difference"] == pytest.approx(np.abs(fitted - file).max(), abs=1e-6)
    assert asked == (turned.tolist() if len(full) > 1 else [])  # and of no other image
    assert ("against_f32" in found) == bool(full)
    if full:
        assert found["against_f32"]["max_abs_difference"] == pytest.approx(np.abs(full[0] - file).max(), abs=1e-6)
        assert found["against_f32"]["top1_differs"] == (full[0].argmax(1) != file.argmax(1)).sum()
    assert np.allclose([one["probs"] for one in given.values()], file)


@pytest.mark.parametrize("answers", BAD.values(), ids=BAD)
def test_the_file_is_not_the_fitted_model(monkeypatch, answers):
    with pytest.raises(ModelError) as caught:
        verified(monkeypatch, *answers)
    assert caught.value.code == "model-disagrees"
    assert f"of {N} images" in str(caught.value)
