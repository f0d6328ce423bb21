"""The text that describes a network, such as ``conv 5x3, pool 2, flatten, dense 128``, and what follows from it."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from tellapart.errors import RecipeError
from tellapart.grammar import Clause, Word, parse_clauses

TUTORIAL_LAYERS = "conv 5x3, pool 2, conv 32x3, pool 2, flatten, dense 128"

MAX_PARAMETERS = 250_000_000
"""As float32 just below the largest model file that is read back."""

MAX_LAYER_VALUES = 2**26
"""Most numbers that one layer may make of one image: 256 MiB."""

BATCH_NORM_EPSILON = 1e-5
"""Added to the variance of each channel."""

Kind = Literal["conv", "residual", "pool", "dropout", "batchnorm", "flatten", "average", "dense"]
Shape = tuple[int, ...]

_MAX_FILTERS = 65_536
_MAX_UNITS = 2**20
_MAX_SIZE_PX = 99
_MAX_STRIDE = 16
_MAX_RATE = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of a network, its shapes known.

    Attributes:
        kind: the word it begins with.
        name: for people and, with ``key``, for files: ``conv 1``; layers of a kind are numbered.
        clause: where it stands in the text.
        input_shape: (C, H, W) or (D,) of one image; H and W are equal.
        output_shape: likewise.
        units: filters of ``conv`` and ``residual``, units of ``dense``; 0 for the others.
        size: side of the window of ``conv`` and ``pool``, in pixels of its input.
        stride: step of the window.
        same: zeros around the image, so that only the stride makes it smaller.
        rate: share of the values that ``dropout`` sets to 0 in training, 0-1.
        bias: false where batch norm follows, which would subtract it again.
        relu: name of the ReLU right after the layer; empty where there is none.
    """

    kind: Kind
    name: str
    clause: Clause
    input_shape: Shape
    output_shape: Shape
    units: int = 0
    size: int = 1
    stride: int = 1
    same: bool = False
    rate: float = 0.0
    bias: bool = True
    relu: str = ""

    @property
    def key(self) -> str:
        """The name as it stands in arrays and graphs: ``conv_1``."""
        return name_key(self.name)

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros above and below the image, which are also those left and right; as in Keras, an odd one goes last."""
        if not self.same:
            return 0, 0
        covered = (self.output_shape[1] - 1) * self.stride + self.size
        total = max(covered - self.input_shape[1], 0)
        return total // 2, total - total // 2

    @property
    def parameters(self) -> int:
        """Number of values that training fits."""
        given, units = self.input_shape[0], self.units
        if self.kind == "residual":
            shortcut = 0 if given == units else given * units + 2 * units
            return 9 * given * units + 9 * units * units + 4 * units + shortcut
        if self.kind == "batchnorm":
            return 2 * given
        return self.size**2 * given * units + units * self.bias


def name_key(name: str) -> str:
    """A layer's name without spaces."""
    return name.replace(" ", "_")


def parse_layers(text: str, *, input_size_px: int, channels: int) -> tuple[Layer, ...]:
    """Read a network's layers and work out every shape. The output layer is not part of the text.

    The layers are:

    - ``conv 32x3``: 32 filters of 3 x 3 px, then ReLU. The filter stays inside the image, which loses a border, unless
      ``same`` follows; ``stride 2`` moves it by two pixels.
    - ``pool 2``: the largest value of each 2 x 2 window; rows and columns that fill no window are dropped.
    - ``residual 64``: two 3 x 3 convolutions of 64 filters with batch norm, ReLU between them, added to their input, then
      ReLU. Where the number of channels changes, a 1 x 1 convolution with batch norm adapts the input.
    - ``flatten``: the image becomes a vector, channel by channel, each row by row.
    - ``average``: the mean of each channel; a vector, too.
    - ``dense 128``: 128 weighted sums of a vector, then ReLU.
    - ``batchnorm``: only right after ``conv`` or ``dense``, and it acts before that layer's ReLU.
    - ``dropout 0.5``: in training, sets this share of the values to 0.

    Args:
        text: layers between commas.
        input_size_px: side S of the images.
        channels: of the images, after conversion to gray where that is asked for.

    Returns:
        At least one layer; the last one's output is a vector.

    Raises:
        RecipeError: bad-setting; the message underlines the wrong word.
    """
    layers: list[Layer] = []
    shape: Shape = (channels, input_size_px, input_size_px)
    for clause in parse_clauses("layers", text):
        layer = _number(_read_layer(clause, shape), layers)
        if layer.kind == "batchnorm":
            layers[-1], layer = _join(layers, layer)
        layers.append(layer)
        shape = layer.output_shape
        _require_size(layers)
    if not layers:
        raise RecipeError("bad-setting", "layers: expected at least one layer", hint=f"such as: {TUTORIAL_LAYERS}")
    if len(shape) > 1:
        raise layers[-1].clause.error("a comma, and 'flatten' or 'average', as the output layer takes a vector")
    return tuple(layers)


def count_parameters(layers: Sequence[Layer], outputs: int) -> int:
    """Number of values that training fits, those of the output layer included."""
    return sum(layer.parameters for layer in layers) + (embedding_dim(layers) + 1) * outputs


def embedding_dim(layers: Sequence[Layer]) -> int:
    """Length D of the vector that the output layer takes."""
    return layers[-1].output_shape[0]


def first_convolution(layers: Sequence[Layer]) -> Layer:
    """The convolution that sees the image itself.

    Raises:
        RecipeError: bad-setting, when there is none.
    """
    for layer in layers:
        if layer.kind == "conv":
            return layer
        if layer.kind in ("residual", "dense"):
            raise layer.clause.error(
                "'conv' first, as first_layer_filters sets its filters", layer.clause.words[0]
            )
    raise RecipeError("bad-setting", "first_layer_filters needs a 'conv' in layers, and there is none")


def _read_layer(clause: Clause, shape: Shape) -> Layer:
    """The layer without its number."""
    word = clause.words[0]
    if clause.name not in _READERS:
        error = clause.error("a layer: " + ", ".join(_READERS), word)
        near = difflib.get_close_matches(clause.name.lower(), _READERS, n=1)
        raise RecipeError(error.code, error.message, hint=f"did you mean {near[0]!r}?" if near else "")
    if clause.name == "dense" and len(shape) > 1:
        raise clause.error("'flatten' or 'average' first, as dense layers take a vector", word)
    if clause.name in _FOR_IMAGES and len(shape) == 1:
        raise clause.error("'dense' or 'dropout', as here is a vector and no image any more", word)
    return _READERS[clause.name](clause, shape)


def _number(layer: Layer, before: Sequence[Layer]) -> Layer:
    number = 1 + sum(other.kind == layer.kind for other in before)
    name = layer.kind if layer.kind in ("flatten", "average") else f"{layer.kind} {number}"
    relu = f"relu {1 + sum(bool(other.relu) for other in before)}" if layer.kind in ("conv", "dense") else ""
    return replace(layer, name=name, relu=relu)


def _join(before: Sequence[Layer], norm: Layer) -> tuple[Layer, Layer]:
    """The layer before a batch norm gives up its bias, and its ReLU comes after the batch norm."""
    if not before or before[-1].kind not in ("conv", "dense"):
        raise norm.clause.error("'conv' or 'dense' right before 'batchnorm'", norm.clause.words[0])
    return replace(before[-1], bias=False, relu=""), replace(norm, relu=before[-1].relu)


def _require_size(layers: Sequence[Layer]) -> None:
    last = layers[-1]
    parameters = sum(layer.parameters for layer in layers)
    if parameters > MAX_PARAMETERS:
        expected = f"at most {MAX_PARAMETERS:,} weights, and not {parameters:,} up to here"
        raise last.clause.error(expected, last.clause.words[-1])
    values = 1
    for length in last.output_shape:
        values *= length
    if values > MAX_LAYER_VALUES:
        expected = f"at most {MAX_LAYER_VALUES:,} values of one image, and not {values:,} as here"
        raise last.clause.error(expected, last.clause.words[-1])


def _read_conv(clause: Clause, shape: Shape) -> Layer:
    word, units, size = _filters_and_size(clause)
    stride, same = _conv_options(clause)
    side = shape[1]
    if not same and size > side:
        raise clause.error(f"filters of at most {side} px, as the image is {side} x {side} px here", word)
    side = -(-side // stride) if same else (side - size) // stride + 1
    return Layer(
        kind="conv",
        name="",
        clause=clause,
        input_shape=shape,
        output_shape=(units, side, side),
        units=units,
        size=size,
        stride=stride,
        same=same,
    )


def _filters_and_size(clause: Clause) -> tuple[Word, int, int]:
    expected = "filters and their side, such as 32x3"
    if not clause.arguments:
        raise clause.error(expected)
    word = clause.arguments[0]
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", word.text)
    if match is None:
        raise clause.error(expected, word)
    units, size = int(match[1]), int(match[2])
    if not 1 <= units <= _MAX_FILTERS or not 1 <= size <= _MAX_SIZE_PX:
        raise clause.error(f"1 to {_MAX_FILTERS:,} filters of 1 to {_MAX_SIZE_PX} px", word)
    return word, units, size


def _conv_options(clause: Clause) -> tuple[int, bool]:
    stride, same = 1, False
    index = 1
    while index < len(clause.arguments):
        word = clause.arguments[index]
        if word.text == "same" and not same:
            same = True
        elif word.text == "stride" and stride == 1:
            index += 1
            stride = _whole(clause, index, "a stride", low=2, high=_MAX_STRIDE)
        else:
            raise clause.error("'same', 'stride 2' or a comma", word)
        index += 1
    return stride, same


def _read_residual(clause: Clause, shape: Shape) -> Layer:
    clause.no_more(1)
    units = _whole(clause, 0, "a number of filters", low=1, high=_MAX_FILTERS)
    output_shape = (units, *shape[1:])
    return Layer(
        kind="residual",
        name="",
        clause=clause,
        input_shape=shape,
        output_shape=output_shape,
        units=units,
        size=3,
        same=True,
        bias=False,
    )


def _read_pool(clause: Clause, shape: Shape) -> Layer:
    clause.no_more(1)
    size = _whole(clause, 0, "the side of a window", low=2, high=_MAX_SIZE_PX)
    side = shape[1]
    if size > side:
        expected = f"a window of at most {side} px, as the image is {side} x {side} px here"
        raise clause.error(expected, clause.arguments[0])
    output_shape = (shape[0], side // size, side // size)
    return Layer(
        kind="pool",
        name="",
        clause=clause,
        input_shape=shape,
        output_shape=output_shape,
        size=size,
        stride=size,
    )


def _read_dropout(clause: Clause, shape: Shape) -> Layer:
    clause.no_more(1)
    rate = clause.number(0, "a share", low=0, high=_MAX_RATE)
    return Layer(kind="dropout", name="", clause=clause, input_shape=shape, output_shape=shape, rate=rate)


def _read_batchnorm(clause: Clause, shape: Shape) -> Layer:
    clause.no_more(0)
    return Layer(kind="batchnorm", name="", clause=clause, input_shape=shape, output_shape=shape)


def _read_flatten(clause: Clause, shape: Shape) -> Layer:
    clause.no_more(0)
    length = shape[0] * shape[1] * shape[2]
    return Layer(kind="flatten", name="", clause=clause, input_shape=shape, output_shape=(length,))


def _read_average(clause: Clause, shape: Shape) -> Layer:
    clause.no_more(0)
    return Layer(kind="average", name="", clause=clause, input_shape=shape, output_shape=shape[:1])


def _read_dense(clause: Clause, shape: Shape) -> Layer:
    clause.no_more(1)
    units = _whole(clause, 0, "a number of units", low=1, high=_MAX_UNITS)
    return Layer(kind="dense", name="", clause=clause, input_shape=shape, output_shape=(units,), units=units)


def _whole(clause: Clause, index: int, expected: str, *, low: int, high: int) -> int:
    value = clause.number(index, expected, low=low, high=high)
    if not value.is_integer():
        raise clause.error(f"{expected}, a whole number", clause.arguments[index])
    return int(value)


_READERS: Mapping[str, Callable[[Clause, Shape], Layer]] = MappingProxyType(
    {
        "conv": _read_conv,
        "residual": _read_residual,
        "pool": _read_pool,
        "dropout": _read_dropout,
        "batchnorm": _read_batchnorm,
        "flatten": _read_flatten,
        "average": _read_average,
        "dense": _read_dense,
    }
)

_FOR_IMAGES = frozenset({"conv", "residual", "pool", "flatten", "average"})
