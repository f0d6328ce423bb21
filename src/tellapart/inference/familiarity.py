"""The score of familiarity as nodes of the model file's graph."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tellapart.evaluation.familiarity import FREE_LENGTHS, LENGTH_WEIGHT, SURENESS_WEIGHT, Familiarity

_AXES_ARE_AN_INPUT = (
    18  # the opset from which reductions take them so; timm's networks are exported to one of these
)


def add_familiarity(model: onnx.ModelProto, score: Familiarity) -> None:
    """Add the output ``familiarity`` (float32 [N]), made of ``embedding`` and ``logits`` as ``Familiarity.score`` does."""
    graph, gaussian = model.graph, score.gaussian
    dim = len(gaussian.mean)
    constants = {
        "mean": gaussian.mean,
        "axes": gaussian.axes,
        "variances": gaussian.variances,
        "rest": np.array(gaussian.rest),
        "dim": np.array(dim),
        "rank": np.array(len(gaussian.variances)),
        "nothing": np.array(0.0),
        "least": np.array(1e-30),
        "one": np.array(1.0),
        "distance_mean": np.array(score.distance[0]),
        "distance_spread": np.array(score.distance[1]),
        "length_mean": np.array(score.length[0]),
        "length_spread": np.array(score.length[1]),
        "free_lengths": np.array(FREE_LENGTHS),
        "length_weight": np.array(LENGTH_WEIGHT),
        "sureness_weight": np.array(SURENESS_WEIGHT),
        "logit_mean": np.array(score.logit[0]),
        "logit_spread": np.array(score.logit[1]),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), f"familiarity.{name}")
        for name, value in constants.items()
    )
    (opset,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= _AXES_ARE_AN_INPUT:
        graph.initializer.append(numpy_helper.from_array(np.array([1]), "familiarity.axis"))
    for operator, inputs, output, attributes in _steps():
        names = [f"familiarity.{name}" if name not in ("embedding", "logits") else name for name in inputs]
        if "axes" in attributes and opset >= _AXES_ARE_AN_INPUT:
            names, attributes = [*names, "familiarity.axis"], {"keepdims": attributes["keepdims"]}
        result = "familiarity" if output == "score" else f"familiarity.{output}"
        graph.node.append(helper.make_node(operator, names, [result], name=f"familiarity_{output}", **attributes))
    graph.output.append(helper.make_tensor_value_info("familiarity", TensorProto.FLOAT, ["N"]))


def _steps() -> list[tuple[str, list[str], str, dict[str, Any]]]:
    """Operator, inputs, output and attributes of each node."""
    over: dict[str, Any] = {"axes": [1], "keepdims": 0}
    return [
        ("Abs", ["embedding"], "sizes", {}),
        ("Sqrt", ["sizes"], "root_sizes", {}),
        ("Sign", ["embedding"], "signs", {}),
        ("Mul", ["signs", "root_sizes"], "roots", {}),
        ("ReduceMean", ["sizes"], "mean_size", {"axes": [1], "keepdims": 1}),
        ("Mul", ["mean_size", "dim"], "size", {}),  # the squared length of the roots
        ("Max", ["size", "least"], "size_above_0", {}),
        ("Sqrt", ["size_above_0"], "length", {}),
        ("Div", ["roots", "length"], "directions", {}),
        ("Sub", ["directions", "mean"], "centered", {}),
        ("MatMul", ["centered", "axes"], "along", {}),
        ("Mul", ["along", "along"], "along_squares", {}),
        ("Mul", ["centered", "centered"], "squares", {}),
        ("ReduceMean", ["squares"], "mean_square", over),
        ("Mul", ["mean_square", "dim"], "whole", {}),
        ("ReduceMean", ["along_squares"], "along_mean", over),
        ("Mul", ["along_mean", "rank"], "along_whole", {}),
        ("Sub", ["whole", "along_whole"], "beside", {}),
        ("Max", ["beside", "nothing"], "beside_above_0", {}),
        ("Div", ["beside_above_0", "rest"], "beside_scaled", {}),
        ("Div", ["along_squares", "variances"], "along_scaled", {}),
        ("ReduceMean", ["along_scaled"], "along_scaled_mean", over),
        ("Mul", ["along_scaled_mean", "rank"], "along_scaled_whole", {}),
        ("Add", ["along_scaled_whole", "beside_scaled"], "squared_distance", {}),
        ("Sqrt", ["squared_distance"], "distance", {}),
        ("Sub", ["distance_mean", "distance"], "nearer", {}),
        ("Div", ["nearer", "distance_spread"], "nearness", {}),
        ("ReduceMax", ["logits"], "largest_logit", over),
        ("Sub", ["largest_logit", "logit_mean"], "surer", {}),
        ("Div", ["surer", "logit_spread"], "sureness", {}),
        ("Min", ["sureness", "one"], "capped_sureness", {}),
        ("Mul", ["capped_sureness", "sureness_weight"], "weighed_sureness", {}),
        ("Add", ["nearness", "weighed_sureness"], "near_and_sure", {}),
        ("ReduceMean", ["length"], "own_length", over),
        ("Sub", ["own_length", "length_mean"], "longer", {}),
        ("Abs", ["longer"], "off", {}),
        ("Div", ["off", "length_spread"], "oddness", {}),
        ("Sub", ["oddness", "free_lengths"], "too_odd", {}),
        ("Max", ["too_odd", "nothing"], "too_odd_above_0", {}),
        ("Mul", ["too_odd_above_0", "length_weight"], "weighed_oddness", {}),
        ("Sub", ["near_and_sure", "weighed_oddness"], "score", {}),
    ]
