"""What each layer does, in a sentence that a newcomer understands and an expert signs."""

import numpy as np

from tellapart.explain.layers import Step, Walk


def number(value: float) -> str:
    """Three significant digits, and no more zeros than needed."""
    return f"{float(value):.3g}"


def percent(share: float) -> str:
    """A share 0-1 as a percentage that never claims certainty by rounding."""
    if 0.9995 <= share < 1:
        return "over 99.9%"
    if 0 < share < 0.0005:
        return "under 0.1%"
    return f"{share:.1%}"


def map_sentence(step: Step, walk: Walk) -> str:
    """What a layer does that makes maps, or what the layers that are left out have done."""
    if step.skipped:
        return (
            f"This is what is left of the image after {step.convolutions} of {walk.convolutions} convolutions: less of"
            " where, more of what. A map is bright where it found what it looks for."
        )
    if step.operator == "Conv":
        return _convolution_sentence(step)
    if step.operator == "MaxPool":
        return _pooling_sentence(step)
    if step.operator in ("Relu", "Clip"):
        return f"{_activation_sentence(step)} What remains says where each pattern was found."
    return "The numbers of the layers before, put together."


def _convolution_sentence(step: Step) -> str:
    height, width = step.attributes.get("kernel_shape", (1, 1)) if step.filters is None else step.filters.shape[2:]
    stride = max(step.attributes.get("strides", (1, 1)))
    moves = "" if stride == 1 else f" in steps of {stride} pixels"
    if step.convolutions == 1:
        over, depth = "the image", "all three colours" if step.input_shape[:1] == (3,) else "the gray image"
    else:
        over, depth = "the maps", "its own map" if step.attributes.get("group", 1) > 1 else "all maps"
    return (
        f"Each filter slides over {over}{moves}. Everywhere it multiplies the {height} x {width} numbers below it, in {depth},"
        " with its weights, and adds them up and its bias to them. High numbers: the place looks like the filter; low ones: it"
        " looks like its opposite."
    )


def _pooling_sentence(step: Step) -> str:
    height, width = step.attributes["kernel_shape"]
    stride = max(step.attributes.get("strides", (1, 1)))
    return (
        f"Of each {height} x {width} square, one every {stride} pixels, only the largest number is kept. The maps get smaller,"
        " and it matters less where exactly a pattern was found."
    )


def _activation_sentence(step: Step) -> str:
    bounds = [number(bound.item()) for bound in step.constants if bound.size == 1]
    if step.operator == "Clip" and len(bounds) == 2:
        low, high = bounds
        return (
            f"Numbers below {low} become {low}, numbers above {high} become {high}, the others stay as they are."
        )
    return "Negative numbers become 0, positive ones stay as they are."


def vector_sentence(step: Step) -> str:
    """What a layer does that makes one row of numbers."""
    if step.operator in ("Gemm", "MatMul"):
        weights = sum(constant.size for constant in step.constants)
        return f"Each number is a weighted sum of {_all_before(step)}, plus a bias: {weights:,} weights and biases in all."
    if step.operator in ("GlobalAveragePool", "ReduceMean"):
        return "Each map is averaged to one number: how much of its pattern there is, wherever it is."
    if step.operator == "GlobalMaxPool":
        return "Of each map the largest number is kept: how clearly its pattern is there at one place."
    if step.operator in ("Relu", "Clip"):
        return _activation_sentence(step)
    if step.operator == "Flatten":
        lengths = " x ".join(str(length) for length in step.input_shape)
        return f"The {lengths} numbers are laid out one after another. Nothing is computed."
    return "The numbers of the layers before, put together."


def _all_before(step: Step) -> str:
    return (
        f"all {int(np.prod(step.input_shape)):,} numbers before it"
        if step.input_shape
        else "all numbers before it"
    )
