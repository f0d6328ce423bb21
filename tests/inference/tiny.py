"""A backbone small enough to damage every byte of: its embedding is the image's mean red, green and blue."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from tellapart.inference.model import LinearHead, compose, pack
from tellapart.records import (
    Backbone,
    Calibration,
    ConformalRule,
    ModelCard,
    Preprocess,
    SetLevel,
    Weights,
)
from tellapart.storage import sha256

SIDE_PX = 16
CLASS_NAMES = ("red", "green", "blue")
WEIGHTS = Weights(name="tiny", source="made for tests", license="CC0-1.0", sha256="0" * 64)
PREPROCESS = Preprocess(input_size_px=SIDE_PX)


def tiny_backbone():
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["channels"], perm=[0, 3, 1, 2]),
            helper.make_node("GlobalAveragePool", ["channels"], ["means"]),
            helper.make_node("Flatten", ["means"], ["embedding"], axis=1),
        ],
        "backbone",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "S", "S", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content = model.SerializeToString()
    return Backbone(onnx_bytes=content, sha256=sha256(content), embedding_dim=3, weights=WEIGHTS)


def one_level(coverage, min_prob, n):
    level = SetLevel(coverage=coverage, min_probs=(min_prob,))
    return ConformalRule(coverage=coverage, levels=(level,), method="calib", per_class=False, n=n)


def tiny_card(**changes):
    values = {
        "class_names": CLASS_NAMES,
        "preprocess": PREPROCESS,
        "calibration": Calibration(temperature=2.0, method="calib", n=60),
        "conformal": ConformalRule(
            coverage=0.9,
            levels=(SetLevel(coverage=0.9, min_probs=(0.25,)),),
            method="calib",
            per_class=False,
            n=60,
        ),
        "embedding_dim": 3,
        "weights": WEIGHTS,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return ModelCard(**values | changes)


def tiny_model(**changes):
    """The most probable class is the strongest color."""
    head = LinearHead(weight=np.eye(3, dtype=np.float32) / 50, bias=np.zeros(3, np.float32))
    return pack(compose(tiny_backbone().onnx_bytes, head, temperature=2.0), tiny_card(**changes))


def parsed(model_file):
    return onnx.load_model_from_string(model_file.onnx_bytes)
