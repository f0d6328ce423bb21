"""Class activation maps inside the model file: where in the image the evidence for each class lies."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tellapart.evaluation.metrics import Answer

HEATMAP = "heatmap"

_MEAN, _MAX = "GlobalAveragePool", "GlobalMaxPool"
_REDUCE_MEAN = "ReduceMean"  # over height and width it is the same as the first; PyTorch writes it so
_RESHAPES = frozenset(["Flatten", "Reshape", "Squeeze"])  # of (N, C, 1, 1)
_PLACES = [{2, 3}, {-2, -1}]


def add_heatmap(model: onnx.ModelProto, weight: NDArray[np.float32]) -> bool:
    """Add the output ``heatmap`` (float32 [N, K, h, w]) where the embedding is made of pooled spatial maps.

    The head is applied to every place of the maps instead of to what they are pooled to; a largest value counts where it is
    found. So the mean over h and w and the head's bias are the logit, and what is positive speaks for the class. Maps of several
    sizes are brought to the size of the smallest, exactly where they halve evenly.

    Args:
        model: a composed graph, changed in place.
        weight: (D, K) of the head.

    Returns:
        Whether there are such maps.

    Source: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", section 2.
    """
    graph = _Graph(model.graph)
    pooled = graph.pooled_maps("embedding")
    if not pooled:
        return False
    dims = [graph.channels(source) for _, source in pooled] if len(pooled) > 1 else [len(weight)]
    if sum(dims) != len(weight):
        return False
    strides = [graph.stride(source) for _, source in pooled]
    rows = np.split(weight, np.cumsum(dims)[:-1])
    parts = [
        graph.evidence(operator, source, part, max(strides) // stride)
        for (operator, source), part, stride in zip(pooled, rows, strides, strict=True)
    ]
    graph.sum(parts)
    shape = ["N", weight.shape[1], "h", "w"]
    model.graph.output.append(helper.make_tensor_value_info(HEATMAP, TensorProto.FLOAT, shape))
    return True


class _Graph:
    """A graph that class maps are added to; methods that add return the name of what they made."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._producers = {name: node for node in graph.node for name in node.output}
        self._shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self._integers = {
            tensor.name: numpy_helper.to_array(tensor).ravel().tolist()
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.INT64
        }
        self._count = 0

    def pooled_maps(self, name: str) -> list[tuple[str, str]]:
        """Operator and input of each pooling that an array is joined from; none where it is made otherwise."""
        node = self._producers.get(name)
        if node is None:
            return []
        if node.op_type in (_MEAN, _MAX):
            return [(node.op_type, node.input[0])]
        if node.op_type == _REDUCE_MEAN and set(self._axes(node)) in _PLACES:
            return [(_MEAN, node.input[0])]
        if node.op_type in _RESHAPES:
            return self.pooled_maps(node.input[0])
        parts = [self.pooled_maps(part) for part in node.input] if node.op_type == "Concat" else []
        return [pooled for part in parts for pooled in part] if all(parts) else []

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        """That a node reduces: an attribute in old graphs, a constant input in new ones."""
        given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"]
        given += [self._integers[name] for name in node.input[1:2] if name in self._integers]
        return given[0] if given else []

    def channels(self, name: str) -> int:
        """Of a spatial map: those of the convolution it comes from; 0 where there is none."""
        for node in self._way_back(name):
            if node.op_type == "Conv":
                return int(self._shapes[node.input[1]][0])
        return 0

    def stride(self, name: str) -> int:
        """How many pixels of the image lie between neighbours in a spatial map."""
        steps = [
            attribute.ints[0]
            for node in self._way_back(name)
            for attribute in node.attribute
            if attribute.name == "strides"
        ]
        return int(np.prod(steps, dtype=np.int64))

    def evidence(self, operator: str, source: str, weight: NDArray[np.float32], shrink: int) -> str:
        """One map a class, from (D, K) weights of what a spatial map is pooled to; ``shrink`` times smaller."""
        if operator == _MAX:
            source = self._at_the_largest(source)
        kernel = np.ascontiguousarray(weight.T[:, :, None, None], dtype=np.float32)
        maps = self._add("Conv", [source, self._constant(kernel)], kernel_shape=[1, 1])
        if shrink == 1:
            return maps
        window = [shrink, shrink]
        return self._add("AveragePool", [maps], kernel_shape=window, strides=window, auto_pad="SAME_UPPER")

    def sum(self, parts: Sequence[str]) -> None:
        """The output, of maps of one size."""
        functools.reduce(lambda first, second: self._add("Add", [first, second]), parts)
        self._graph.node[-1].output[0] = HEATMAP  # the last node made it

    def _at_the_largest(self, source: str) -> str:
        """A map that is 0 but where it is largest, and whose mean is its largest value."""
        largest = self._add(_MAX, [source])
        there = self._add("Cast", [self._add("Equal", [source, largest])], to=TensorProto.FLOAT)
        share = self._add(_MEAN, [there])
        return self._add("Div", [self._add("Mul", [source, there]), share])

    def _way_back(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes an array comes from, following the first input."""
        while node := self._producers.get(name):
            yield node
            name = node.input[0]

    def _constant(self, value: NDArray[np.float32]) -> str:
        self._count += 1
        name = f"{HEATMAP}.weight_{self._count}"
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        self._count += 1
        name = f"{HEATMAP}.{operator.lower()}_{self._count}"
        self._graph.node.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name


def class_evidence(answer: Answer, class_index: int, *, exclusive: bool) -> NDArray[np.float32]:
    """What speaks for a class at each place of an image, and what against it.

    Where classes exclude each other, evidence that all of them share decides nothing: the mean map of the others, each weighed
    by its probability, is taken away.

    Args:
        answer: of one image, with ``probs`` (K,) and ``heatmap`` (K, h, w).
        class_index: 0..K-1.
        exclusive: whether an image has exactly one class.

    Returns:
        (h, w) float32 in units of the logit; its mean is, but for the biases, the class' lead over the others.
    """
    maps = answer[HEATMAP].astype(np.float32)
    if not exclusive:
        own: NDArray[np.float32] = maps[class_index]
        return own
    weights = answer["probs"].astype(np.float64)
    weights += np.finfo(np.float64).tiny  # the others may all have no probability at all
    weights[class_index] = 0.0
    evidence: NDArray[np.float32] = maps[class_index] - np.tensordot(weights / weights.sum(), maps, axes=1)
    return evidence.astype(np.float32)
