"""The output ``familiarity`` of a model file against the score in numpy, in every engine."""

import numpy as np
import onnxruntime
import pytest
from tiny import SIDE_PX, tiny_backbone, tiny_card

from tellapart.errors import ModelError
from tellapart.evaluation.familiarity import fit_familiarity, fit_familiarity_rule
from tellapart.inference.engine import OpenVINOEngine
from tellapart.inference.model import LinearHead, compose, pack

HEAD = LinearHead(weight=np.eye(3, dtype=np.float32) / 50, bias=np.zeros(3, np.float32))
TRAIN = np.random.default_rng(0).integers(1, 255, (60, 3)).astype(np.float32)
FITTED = fit_familiarity(TRAIN, HEAD.logits(TRAIN), np.arange(60) % 2)
SCORE = FITTED.score
RULE = fit_familiarity_rule(-FITTED.distances, rate=0.05, method="cross-fit")
GRAPH = compose(tiny_backbone().onnx_bytes, HEAD, temperature=2.0, familiarity=SCORE)


def images():
    colors = np.random.default_rng(1).integers(0, 256, (6, 3)).astype(np.uint8)
    colors[0] = 0
    return np.broadcast_to(colors[:, None, None], (6, SIDE_PX, SIDE_PX, 3))


def onnx_runtime(content):
    session = onnxruntime.InferenceSession(content)
    return dict(
        zip(
            ("embedding", "familiarity"),
            session.run(["embedding", "familiarity"], {"images": images()}),
            strict=True,
        )
    )


def openvino(precision):
    return lambda content: OpenVINOEngine(content, input_size_px=SIDE_PX, precision=precision).run(images())


@pytest.mark.parametrize(
    ("run", "tolerance"), [(onnx_runtime, 1e-3), (openvino("f32"), 1e-3), (openvino("bf16"), 0.2)]
)
def test_the_file_scores_as_numpy_does(run, tolerance):
    model = pack(GRAPH, tiny_card(familiarity=RULE))
    assert model.card.familiarity == RULE
    found = run(model.onnx_bytes)
    expected = SCORE.score(found["embedding"], HEAD.logits(found["embedding"]))
    assert np.isfinite(expected).all()
    assert found["familiarity"].shape == (6,)
    assert found["familiarity"][1:] == pytest.approx(expected[1:], abs=tolerance)
    assert np.isfinite(found["familiarity"]).all()


def test_a_card_and_a_graph_that_disagree_about_the_output_are_refused():
    with pytest.raises(ModelError):
        pack(GRAPH, tiny_card())
    with pytest.raises(ModelError):
        pack(compose(tiny_backbone().onnx_bytes, HEAD, temperature=2.0), tiny_card(familiarity=RULE))
