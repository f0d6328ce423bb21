"""Class activation maps inside the model file: where in the image the evidence for each class lies."""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tellapart.evaluation.metrics import Answer

HEATMAP = "heatmap"

# Between a spatial map and the embedding: they average over the map, or change nothing but the shape.
_AVERAGES = frozenset(["GlobalAveragePool"])
_RESHAPES = frozenset(["Concat", "Flatten"])


def add_heatmap(model: onnx.ModelProto, weight: NDArray[np.float32]) -> bool:
    """Add the output ``heatmap`` (float32 [N, K, h, w]) where the embedding is the average of a spatial map.

    The head is applied to every place of the map instead of to its average, so the mean over h and w and the head's bias are the
    logit: what is positive speaks for the class.

    Args:
        model: a composed graph, changed in place.
        weight: (D, K) of the head.

    Returns:
        Whether there is such a map.

    Source: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", section 2.
    """
    spatial = _spatial_map({name: node for node in model.graph.node for name in node.output}, "embedding")
    if spatial is None:
        return False
    kernel = np.ascontiguousarray(weight.T[:, :, None, None], dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "heatmap.weight"))
    model.graph.node.append(
        helper.make_node("Conv", [spatial, "heatmap.weight"], [HEATMAP], name=HEATMAP, kernel_shape=[1, 1])
    )
    shape = ["N", weight.shape[1], "h", "w"]
    model.graph.output.append(helper.make_tensor_value_info(HEATMAP, TensorProto.FLOAT, shape))
    return True


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


def _spatial_map(producers: Mapping[str, onnx.NodeProto], name: str) -> str | None:
    """The array whose average over height and width is the named one; None where it is none."""
    node = producers.get(name)
    while node is not None and node.op_type in _RESHAPES and len(node.input) == 1:
        node = producers.get(node.input[0])
    return node.input[0] if node is not None and node.op_type in _AVERAGES else None
