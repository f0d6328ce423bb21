"""Class maps: their mean is the logit, in every runtime, and only where there is a map to speak of."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import SIDE_PX, tiny_backbone, tiny_card

import tellapart
from tellapart.inference.bundled import open_backbone
from tellapart.inference.engine import OpenVINOEngine
from tellapart.inference.heatmap import HEATMAP, add_heatmap, class_evidence
from tellapart.inference.model import LinearHead, compose, pack, parse_model, read_model
from tellapart.inference.predict import VERDICT_OUTPUTS, Classifier
from tellapart.records import Preprocess

RNG = np.random.default_rng(0)


def random_head(dim, classes):
    weight = RNG.normal(0, 0.1, (dim, classes)).astype(np.float32)
    return LinearHead(weight=weight, bias=RNG.normal(0, 1, classes).astype(np.float32))


def made(stages, classes=3, side=64, pooling="mean"):
    """A model file on the bundled backbone, and its head."""
    backbone = open_backbone("efficientnet_lite0", stages, pooling)
    head = random_head(backbone.embedding_dim, classes)
    card = tiny_card(
        preprocess=Preprocess(input_size_px=side),
        embedding_dim=backbone.embedding_dim,
        class_names=tuple(f"class {k}" for k in range(classes)),
    )
    return pack(compose(backbone.onnx_bytes, head, temperature=2.0), card), head


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize(
    ("classes", "stages", "pooling"),
    [
        (2, (8,), "mean"),
        (7, (8,), "mean"),
        (3, (3,), "mean-max"),
        (3, (3, 4, 5, 6, 7), "mean-max"),
        (2, (8, 4), "mean"),
    ],
)
def test_the_mean_of_a_class_map_and_the_bias_are_the_logit(side, classes, stages, pooling):
    model, head = made(stages, classes, side, pooling)
    images = RNG.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    outputs = OpenVINOEngine(model.onnx_bytes, input_size_px=side, precision="f32").run(images)
    assert outputs[HEATMAP].shape == (3, classes, *[side // (8 if stages == (3,) else 32)] * 2)
    logits = head.logits(outputs["embedding"])
    assert outputs[HEATMAP].mean(axis=(2, 3)) + head.bias == pytest.approx(logits, abs=1e-3)
    session = onnxruntime.InferenceSession(model.onnx_bytes)
    (found,) = session.run([HEATMAP], {"images": images})
    assert found == pytest.approx(outputs[HEATMAP], abs=1e-3)


@pytest.mark.parametrize("side", [72, 260])
def test_sizes_that_do_not_halve_evenly(side):
    model, _ = made((3, 5, 7), side=side, pooling="mean-max")
    outputs = OpenVINOEngine(model.onnx_bytes, input_size_px=side).run(np.zeros((1, side, side, 3), np.uint8))
    assert outputs[HEATMAP].shape == (1, 3, *[-(-side // 32)] * 2)
    assert np.isfinite(outputs[HEATMAP]).all()


def test_no_map_where_the_embedding_is_no_pooled_map():
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["floats"], ["embedding"], axis=1),
        ],
        "flat",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "S", "S", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 12])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert not add_heatmap(model, np.zeros((12, 2), np.float32))
    assert [output.name for output in model.graph.output] == ["embedding"]


def pooled_by_mean(opset, axes, keepdims):
    """A backbone as PyTorch exports one: the mean is a reduction, the rest of the shape is dropped by Reshape."""
    attributes = {"axes": axes} if opset < 18 else {}
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "ReduceMean",
            ["channels", *([] if attributes else ["axes"])],
            ["means"],
            keepdims=keepdims,
            **attributes,
        ),
        helper.make_node("Reshape", ["means", "shape"], ["embedding"]),
    ]
    dims = 3 if set(axes) in ({2, 3}, {-1, -2}) else SIDE_PX
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "S", "S", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", dims])],
        [numpy_helper.from_array(np.array(axes), "axes"), numpy_helper.from_array(np.array([-1, dims]), "shape")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9
    ).SerializeToString()


@pytest.mark.parametrize(("axes", "keepdims"), [([2, 3], 1), ([-1, -2], 0)])
@pytest.mark.parametrize("opset", [17, 20])
def test_a_mean_over_height_and_width_is_pooling_too(opset, axes, keepdims):
    head = random_head(3, 3)
    model = pack(compose(pooled_by_mean(opset, axes, keepdims), head, temperature=1.0), tiny_card())
    images = RNG.integers(0, 256, (2, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    outputs = OpenVINOEngine(model.onnx_bytes, input_size_px=SIDE_PX, precision="f32").run(images)
    expected = np.tensordot(images.astype(np.float32), head.weight, axes=1).transpose(0, 3, 1, 2)
    assert outputs[HEATMAP] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("axes", [[1, 2], [1, 3], [3, 1]])
def test_a_mean_over_anything_else_is_not(axes):
    model = compose(pooled_by_mean(20, axes, 1), random_head(SIDE_PX, 2), temperature=1.0)
    assert HEATMAP not in {output.name for output in model.graph.output}


@pytest.mark.parametrize("change", ["classes", "rank"])
def test_a_map_that_does_not_fit_is_refused(change):
    backbone = tiny_backbone()
    model = compose(backbone.onnx_bytes, random_head(3, 3), temperature=1.0)
    (port,) = [output for output in model.graph.output if output.name == HEATMAP]
    dims = port.type.tensor_type.shape.dim
    if change == "classes":
        dims[1].dim_value = 4
    else:
        del dims[3]
    with pytest.raises(tellapart.TellapartError, match="heatmap"):
        pack(model, tiny_card())


def test_predicting_does_not_compute_what_it_does_not_need():
    model = pack(compose(tiny_backbone().onnx_bytes, random_head(3, 3), temperature=1.0), tiny_card())
    image = np.zeros((1, SIDE_PX, SIDE_PX, 3), np.uint8)
    few, all_of_them = Classifier(model), Classifier(model, outputs=("probs", "embedding", HEATMAP))
    assert set(few.engine.run(image)) <= set(VERDICT_OUTPUTS)
    assert set(all_of_them.engine.run(image)) == {"probs", "embedding", HEATMAP}
    assert few.engine.run(image)["probs"] == pytest.approx(all_of_them.engine.run(image)["probs"], abs=1e-6)
    assert parse_model(model.onnx_bytes).card == model.card


def test_the_recipes_that_have_maps(run):
    graph_outputs = read_model(run.model_path)
    outputs = Classifier(graph_outputs, outputs=(HEATMAP,)).engine.run(np.zeros((1, 224, 224, 3), np.uint8))
    assert outputs[HEATMAP].shape == (1, 3, 7, 7)


@pytest.mark.parametrize(
    ("probs", "k", "exclusive", "expected"),
    [
        ([0.7, 0.2, 0.1], 0, True, lambda maps: maps[0] - (2 * maps[1] + maps[2]) / 3),
        ([0.2, 0.8], 1, True, lambda maps: maps[1] - maps[0]),
        ([1.0, 0.0, 0.0], 0, True, lambda maps: maps[0] - (maps[1] + maps[2]) / 2),
        ([0.7, 0.9, 0.1], 1, False, lambda maps: maps[1]),
    ],
)
def test_class_evidence(probs, k, exclusive, expected):
    maps = RNG.normal(size=(len(probs), 4, 5)).astype(np.float32)
    answer = {"probs": np.array(probs, np.float32), HEATMAP: maps}
    found = class_evidence(answer, k, exclusive=exclusive)
    assert found == pytest.approx(expected(maps), abs=1e-5)
    shared = class_evidence({**answer, HEATMAP: maps + 3}, k, exclusive=exclusive)
    assert not exclusive or shared == pytest.approx(found, abs=1e-5), "what all classes share decides nothing"
