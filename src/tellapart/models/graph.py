"""The trained network as an ONNX graph, made without PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tellapart.models.layers import BATCH_NORM_EPSILON, Layer, embedding_dim, name_key
from tellapart.models.normalize import GRAY_WEIGHTS, STD_EPSILON, InputTransform

Arrays = Mapping[str, NDArray[np.float32]]

_OPSET = 17  # as the bundled backbones have it
_IR_VERSION = 9


def build_trunk(layers: Sequence[Layer], arrays: Arrays, transform: InputTransform) -> onnx.ModelProto:
    """Build everything before the output layer, as it answers after training.

    Dropout is gone, and batch norm is part of the layer before it. The output of each step is named after its layer
    (``conv_1``, ``relu_1``, ``pool_1``), only the last one's is ``embedding``.

    Args:
        layers: as they were trained.
        arrays: of ``state_arrays``.
        transform: as it was fitted.

    Returns:
        A model from ``images`` (uint8 [N, S, S, 3]) to ``embedding`` (float32 [N, D]).
    """
    graph = _Graph(arrays)
    x = graph.normalize("images", transform, layers[0].input_shape)
    for i, layer in enumerate(layers):
        normed = i + 1 < len(layers) and layers[i + 1].kind == "batchnorm"
        x = graph.layer(x, layer, norm=f"trunk.{layers[i + 1].key}" if normed else "")
        if layer.relu:
            x = graph.add("Relu", [x], name_key(layer.relu))
    graph.nodes[-1].output[0] = "embedding"
    side = layers[0].input_shape[1]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "trunk",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", side, side, 3])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", embedding_dim(layers)])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="tellapart",
    )


def split_head(arrays: Arrays, outputs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The output layer as weights of a softmax over all classes.

    Args:
        arrays: of ``state_arrays``.
        outputs: as the network has them. One logit z becomes the two logits -z/2 and z/2, whose softmax is its sigmoid.

    Returns:
        (D, K) weight and (K,) bias, K at least 2.
    """
    weight, bias = arrays["output.weight"].T, arrays["output.bias"]
    if outputs == 1:
        signs = np.array([-0.5, 0.5], dtype=np.float32)
        return weight * signs, bias * signs
    return np.ascontiguousarray(weight), bias


class _Graph:
    """Nodes and constants of the graph under construction; methods return the name of their output."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, dtype=np.float32))

    def normalize(self, images: str, transform: InputTransform, shape: tuple[int, ...]) -> str:
        """What ``InputTransform.apply`` does."""
        x = self.add("Cast", [images], "pixels", to=TensorProto.FLOAT)
        x = self.add("Div", [x, self.number("white", 255)], "scaled")
        if transform.color == "gray":
            x = self.add("MatMul", [x, self.constant("gray_weights", GRAY_WEIGHTS[:, None])], "gray")
        x = self.add("Transpose", [x], "channels_first", perm=[0, 3, 1, 2])
        x = self.samplewise(x, transform)
        epsilon = np.float32(STD_EPSILON)
        if transform.mean is not None:
            mean = self.constant("transform.mean", transform.mean[:, None, None])
            x = self.add("Sub", [x, mean], "featurewise_centered")
        if transform.std is not None:
            std = self.constant("transform.std", transform.std[:, None, None] + epsilon)
            x = self.add("Div", [x, std], "featurewise_scaled")
        return x if transform.zca is None else self.whiten(x, transform.zca, shape)

    def samplewise(self, x: str, transform: InputTransform) -> str:
        over_image: dict[str, Any] = {"axes": [1, 2, 3], "keepdims": 1}
        if transform.samplewise_center:
            mean = self.add("ReduceMean", [x], "sample_mean", **over_image)
            x = self.add("Sub", [x, mean], "samplewise_centered")
        if transform.samplewise_std:
            squares = self.add("Mul", [x, x], "sample_squares")
            variance = self.add("ReduceMean", [squares], "sample_variance", **over_image)
            std = self.add("Sqrt", [variance], "sample_std")
            std = self.add("Add", [std, self.number("std_epsilon", STD_EPSILON)], "sample_std_above_0")
            x = self.add("Div", [x, std], "samplewise_scaled")
        return x

    def whiten(self, x: str, zca: NDArray[np.float32], shape: tuple[int, ...]) -> str:
        flat = self.constant("flat_shape", np.array([-1, len(zca)], dtype=np.int64))
        x = self.add("Reshape", [x, flat], "values")
        x = self.add("MatMul", [x, self.constant("transform.zca", zca)], "white_values")
        image = self.constant("image_shape", np.array([-1, *shape], dtype=np.int64))
        return self.add("Reshape", [x, image], "whitened")

    def layer(self, x: str, layer: Layer, *, norm: str) -> str:
        """One layer without its ReLU; ``norm`` is the path of the batch norm that follows, or empty."""
        path = f"trunk.{layer.key}"
        match layer.kind:
            case "conv":
                before, after = layer.pads
                pads = [before, before, after, after]
                return self.conv(x, path, norm, layer.key, pads=pads, strides=[layer.stride, layer.stride])
            case "residual":
                return self.residual(x, layer)
            case "pool":
                window = [layer.size, layer.size]
                return self.add("MaxPool", [x], layer.key, kernel_shape=window, strides=window)
            case "flatten":
                return self.add("Flatten", [x], layer.key, axis=1)
            case "average":
                x = self.add("GlobalAveragePool", [x], f"{layer.key}_image")
                return self.add("Flatten", [x], layer.key, axis=1)
            case "dense":
                weight, bias = self.folded(path, norm)
                inputs = [x, self.constant(f"{path}.weight", weight.T), self.constant(f"{path}.bias", bias)]
                return self.add("Gemm", inputs, layer.key)
            case "batchnorm" | "dropout":
                return x

    def conv(self, x: str, path: str, norm: str, name: str, **attributes: Any) -> str:
        weight, bias = self.folded(path, norm)
        inputs = [x, self.constant(f"{path}.weight", weight), self.constant(f"{path}.bias", bias)]
        return self.add("Conv", inputs, name, kernel_shape=weight.shape[2:], **attributes)

    def residual(self, x: str, layer: Layer) -> str:
        path, key, shortcut = f"trunk.{layer.key}", layer.key, x
        inner = self.conv(
            x, f"{path}.conv_1", f"{path}.batchnorm_1", f"{key}_conv_1", pads=[1, 1, 1, 1], strides=[1, 1]
        )
        inner = self.add("Relu", [inner], f"{key}_relu_1")
        inner = self.conv(
            inner, f"{path}.conv_2", f"{path}.batchnorm_2", f"{key}_conv_2", pads=[1, 1, 1, 1], strides=[1, 1]
        )
        if f"{path}.shortcut.conv.weight" in self.arrays:
            paths = f"{path}.shortcut.conv", f"{path}.shortcut.batchnorm"
            shortcut = self.conv(x, *paths, f"{key}_shortcut", pads=[0, 0, 0, 0], strides=[1, 1])
        total = self.add("Add", [inner, shortcut], f"{key}_sum")
        return self.add("Relu", [total], key)

    def folded(self, path: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight and bias of a layer, with its batch norm made part of them."""
        weight = self.arrays[f"{path}.weight"]
        if not norm:
            return weight, self.arrays[f"{path}.bias"]
        gamma, beta, mean, variance = (
            self.arrays[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        return scaled.astype(np.float32), (beta - mean * scale).astype(np.float32)
