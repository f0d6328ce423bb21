"""Read what every layer makes of an image out of ``model.onnx`` itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from tellapart.imaging.decode import Pixels
from tellapart.inference.engine import OpenVINOEngine
from tellapart.inference.model import ModelFile

MAX_CONVOLUTIONS_SHOWN = 6
"""A network with more is summed up: the first convolution, and the last maps of each size."""

_LAYERS = frozenset(
    [
        *("Conv", "Relu", "Clip", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"),
        *("Flatten", "Concat", "Gemm", "MatMul"),
    ]
)
_NORMALISATION = frozenset(["MatMul", "ReduceMean"])
_ACTIVATIONS = frozenset(["Relu", "Clip"])

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One layer and what it made of the image.

    Attributes:
        operator: its name in ONNX.
        values: (C, H, W) feature maps, or a vector (D,); float32, finite.
        input_shape: of what went in, without the batch axis; empty where it is not known.
        attributes: the operator's settings, such as ``kernel_shape``.
        constants: its weights and bounds, in the operator's order: Conv (F, C, h, w) and (F,), Clip two numbers.
        convolutions: how many the network has up to here.
        skipped: whether layers between the step before and this one are left out.
    """

    operator: str
    values: NDArray[np.float32]
    input_shape: Shape
    attributes: Mapping[str, Any]
    constants: tuple[NDArray[np.float32], ...]
    convolutions: int
    skipped: bool = False

    @property
    def shape(self) -> Shape:
        """(C, H, W) or (D,)."""
        return self.values.shape

    @property
    def filters(self) -> NDArray[np.float32] | None:
        """(F, C, h, w) weights of a convolution; None where they are not constant."""
        return next((constant for constant in self.constants if constant.ndim == 4), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """The way of one image through a network.

    Attributes:
        steps: the layers in the order of the graph; what normalises the input is none.
        input_range: smallest and largest number that goes into the first of them.
        convolutions: how many the network has.
        whole: False when the network is too deep to show every layer.
    """

    steps: tuple[Step, ...]
    input_range: tuple[float, float]
    convolutions: int
    whole: bool


def read_walk(model: ModelFile, pixels: Pixels) -> Walk:
    """Run the model on one image, in 32-bit floats, with the outputs of its layers made outputs of the graph.

    Layers are told by their operators, never by their names. Arithmetic, such as normalisation, is no layer.

    Args:
        model: a verified model file; it is not changed.
        pixels: (S, S, 3) uint8.

    Raises:
        ModelError: damaged-model, when the engine cannot make sense of the graph.
    """
    graph = onnx.load_model_from_string(model.onnx_bytes)
    shapes = _shapes(graph)
    layers = _layers(_on_the_way_to("probs", graph.graph.node), shapes)
    convolutions = sum(node.op_type == "Conv" for node in layers)
    whole = convolutions <= MAX_CONVOLUTIONS_SHOWN
    shown = layers if whole else _landmarks(layers, shapes)
    first_input = layers[0].input[0] if layers else "images"
    values = _run(model, graph, [*(node.output[0] for node in shown), first_input], pixels)
    return Walk(
        steps=_steps(graph, layers, shown, shapes, values),
        input_range=(float(values[first_input].min()), float(values[first_input].max())),
        convolutions=convolutions,
        whole=whole,
    )


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of all arrays that can be told without running the model, without the batch axis."""
    graph = shape_inference.infer_shapes(model).graph
    return {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim[1:])
        for info in (*graph.input, *graph.value_info, *graph.output)
    }


def _on_the_way_to(name: str, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in their order; other outputs have nodes of their own."""
    needed, found = {name}, []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            found.append(node)
    return found[::-1]


def _layers(nodes: Sequence[onnx.NodeProto], shapes: Mapping[str, Shape]) -> list[onnx.NodeProto]:
    """The layers. What the input's normalisation may be made of counts only after the first of the others."""
    found = [node for node in nodes if node.op_type in _LAYERS and len(shapes.get(node.output[0], ())) in (1, 3)]
    first = next((i for i, node in enumerate(found) if node.op_type not in _NORMALISATION), len(found))
    return [node for node in found[first:] if not _changes_nothing(node, shapes)]


def _changes_nothing(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> bool:
    """Flattening maps of one pixel, or joining one vector: the same numbers would be shown twice."""
    if node.op_type == "Concat":
        return len(node.input) == 1
    return node.op_type == "Flatten" and shapes.get(node.input[0], ())[1:] in ((), (1, 1))


def _landmarks(layers: Sequence[onnx.NodeProto], shapes: Mapping[str, Shape]) -> list[onnx.NodeProto]:
    """Of a deep network: the first convolution and its activation, the last maps of each size, and all that is no map."""
    activation = next((i for i, node in enumerate(layers) if node.op_type in _ACTIVATIONS), 0)
    shown = {0, activation}
    last_of_size = {
        shapes[node.output[0]][1:]: i for i, node in enumerate(layers) if len(shapes[node.output[0]]) == 3
    }
    shown |= set(last_of_size.values())
    # The inner dense layers of attention blocks are no landmarks; what follows the last map is.
    shown |= {i for i in range(max(last_of_size.values()), len(layers)) if len(shapes[layers[i].output[0]]) == 1}
    return [layers[i] for i in sorted(shown)]


def _run(
    model: ModelFile, graph: onnx.ModelProto, names: Sequence[str], pixels: Pixels
) -> dict[str, NDArray[np.float32]]:
    """Values of the named arrays for one image, without the batch axis."""
    present = {output.name for output in graph.graph.output} | {"images"}
    for name in dict.fromkeys(names):
        if name not in present:
            graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    side = model.card.preprocess.input_size_px
    engine = OpenVINOEngine(graph.SerializeToString(), input_size_px=side, precision="f32")
    outputs = {"images": pixels[None].astype(np.float32), **engine.run(pixels[None])}
    return {name: np.nan_to_num(outputs[name][0]) for name in names}


def _steps(
    graph: onnx.ModelProto,
    layers: Sequence[onnx.NodeProto],
    shown: Sequence[onnx.NodeProto],
    shapes: Mapping[str, Shape],
    values: Mapping[str, NDArray[np.float32]],
) -> tuple[Step, ...]:
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    names = {node.output[0] for node in shown}
    steps: list[Step] = []
    convolutions, skipped = 0, False
    for node in layers:
        convolutions += node.op_type == "Conv"
        if node.output[0] not in names:
            skipped = True
            continue
        found = values[node.output[0]]
        steps.append(
            Step(
                operator=node.op_type,
                values=found.reshape(-1) if found.shape[1:] == (1, 1) else found,
                input_shape=shapes.get(node.input[0], ()),
                attributes={entry.name: helper.get_attribute_value(entry) for entry in node.attribute},
                constants=tuple(
                    numpy_helper.to_array(constants[name]) for name in node.input if name in constants
                ),
                convolutions=convolutions,
                skipped=skipped,
            )
        )
        skipped = False
    return tuple(steps)
