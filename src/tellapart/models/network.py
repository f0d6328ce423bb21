"""The network that is trained."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tellapart.errors import RecipeError
from tellapart.models.layers import BATCH_NORM_EPSILON, Layer, embedding_dim, first_convolution, name_key
from tellapart.models.normalize import GRAY_WEIGHTS, STD_EPSILON, InputTransform

_MOMENTUM = (
    0.1  # share of the newest batch in the running moments; Keras' 0.01 would need many more steps than we take
)


class Network(nn.Module):
    """Layers from a text, between the normalisation of the input and the output layer.

    ``state_dict`` names what is trained after the layers: ``trunk.conv_1.weight`` ... ``output.bias``; the normalisation
    is not in it, as ``InputTransform`` keeps that. ``flatten`` runs channel by channel, each row by row, whatever the memory
    format.
    """

    def __init__(self, layers: Sequence[Layer], transform: InputTransform, outputs: int) -> None:
        super().__init__()
        self.normalize = _Normalize(transform)
        self.trunk = nn.Sequential(OrderedDict(_modules(layers)))
        self.output = _Dense(embedding_dim(layers), outputs, bias=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """From images to logits.

        Args:
            images: (B, 3, S, S), RGB in 0-1; fastest in the memory format channels_last.

        Returns:
            ``embedding``: (B, D), what the output layer takes.
            ``logits``: (B, outputs).
        """
        # With the channels of a pixel side by side, a step of the tutorial's network takes 0.7 of the time on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        embedding = self.trunk(self.normalize(images))
        return {"embedding": embedding, "logits": self.output(embedding)}


def build_network(
    layers: Sequence[Layer],
    transform: InputTransform,
    *,
    outputs: int,
    seed: int,
    first_filters: NDArray[np.float32] | None = None,
    freeze_first: bool = False,
) -> Network:
    """Build a network and draw its weights. The global random state is neither used nor changed.

    Args:
        layers: from ``parse_layers``, for images of the transform's number of channels.
        transform: fitted on the training images.
        outputs: number of classes K; 1 for two classes: the logit of the second.
        seed: of the weights.
        first_filters: (filters, channels, size, size) of the first convolution, in place of drawn ones.
        freeze_first: ``first_filters`` stay as they are; the bias is learned all the same.

    Raises:
        RecipeError: bad-setting: no convolution that could take the filters, or none of their shape; nothing to freeze.
    """
    if freeze_first and first_filters is None:
        message = "freeze_first_layer keeps predetermined filters, and first_layer_filters is learned"
        raise RecipeError(
            "bad-setting", message, hint="first_layer_filters can be sobel, gabor, laplacian or a .npy file"
        )
    network = Network(layers, transform, outputs)
    _draw_weights(network, seed)
    if first_filters is not None:
        _set_filters(network, first_convolution(layers), first_filters, freeze=freeze_first)
    return network


def state_arrays(network: Network) -> dict[str, NDArray[np.float32]]:
    """Copies of all weights and running moments, under the names of ``state_dict``."""
    return {name: np.array(value.cpu().numpy(), order="C") for name, value in network.state_dict().items()}


def _modules(layers: Sequence[Layer]) -> Iterator[tuple[str, nn.Module]]:
    """The trunk's parts in the order in which they run.

    Max pooling runs before the ReLU that the text puts before it: the values and the gradients are the same, and the ReLU
    has fewer of them to pass.
    """
    relu = ""
    for layer in layers:
        if relu and layer.kind != "pool":
            yield name_key(relu), nn.ReLU()
            relu = ""
        yield layer.key, _module(layer)
        if relu:
            yield name_key(relu), nn.ReLU()
        relu = layer.relu
    if relu:
        yield name_key(relu), nn.ReLU()


def _module(layer: Layer) -> nn.Module:
    match layer.kind:
        case "conv":
            return _Conv(
                layer.input_shape[0],
                layer.units,
                layer.size,
                stride=layer.stride,
                pads=layer.pads,
                bias=layer.bias,
            )
        case "residual":
            return _Residual(layer.input_shape[0], layer.units)
        case "pool":
            return nn.MaxPool2d(layer.size)
        case "dropout":
            return nn.Dropout(layer.rate)
        case "batchnorm":
            return _BatchNorm(layer.input_shape[0])
        case "flatten":
            return nn.Flatten()
        case "average":
            return _Average()
        case "dense":
            return _Dense(layer.input_shape[0], layer.units, bias=layer.bias)


class _Normalize(nn.Module):
    """``InputTransform.apply`` on (B, 3, S, S) images that are already scaled to 0-1."""

    gray: Tensor
    mean: Tensor
    scale: Tensor
    zca: Tensor

    def __init__(self, transform: InputTransform) -> None:
        super().__init__()
        self._transform = transform
        for name, value in _constants(transform).items():
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        transform, x = self._transform, images
        if transform.color == "gray":
            x = (x * self.gray).sum(dim=1, keepdim=True)
        if transform.samplewise_center:
            x = x - x.mean(dim=(1, 2, 3), keepdim=True)
        if transform.samplewise_std:
            x = x / (x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + STD_EPSILON)
        if transform.mean is not None:
            x = x - self.mean
        if transform.std is not None:
            x = x * self.scale
        if transform.zca is not None:
            x = (x.flatten(1) @ self.zca).view(x.shape)
        return x


def _constants(transform: InputTransform) -> dict[str, NDArray[np.float32]]:
    constants: dict[str, NDArray[np.float32]] = {}
    if transform.color == "gray":
        constants["gray"] = GRAY_WEIGHTS[:, None, None]
    if transform.mean is not None:
        constants["mean"] = transform.mean[:, None, None]
    if transform.std is not None:
        constants["scale"] = np.reciprocal(transform.std[:, None, None] + np.float32(STD_EPSILON))
    if transform.zca is not None:
        constants["zca"] = transform.zca
    return constants


# The parts below exist because PyTorch's own draw weights from the global random state when they are made.


class _Conv(nn.Module):
    """Convolution; ``pads`` are the zeros above and left, and below and right."""

    def __init__(
        self, given: int, filters: int, size: int, *, stride: int = 1, pads: tuple[int, int] = (0, 0), bias: bool
    ) -> None:
        super().__init__()
        shape = (filters, given, size, size)
        self.weight = nn.Parameter(torch.empty(shape, memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(filters)) if bias else None
        before, after = pads
        self._stride = stride
        self._extra = after - before
        self._padding = before

    def forward(self, x: Tensor) -> Tensor:
        if self._extra:
            x = functional.pad(x, (0, self._extra, 0, self._extra))
        return functional.conv2d(x, self.weight, self.bias, self._stride, self._padding)


class _Dense(nn.Module):
    def __init__(self, given: int, units: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, given))
        self.bias = nn.Parameter(torch.zeros(units)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class _BatchNorm(nn.Module):
    """Batch norm whose state is four float arrays, without a counter.

    Source: Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=_MOMENTUM,
            eps=BATCH_NORM_EPSILON,
        )


class _Residual(nn.Module):
    """Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 3."""

    def __init__(self, given: int, filters: int) -> None:
        super().__init__()
        self.conv_1 = _Conv(given, filters, 3, pads=(1, 1), bias=False)
        self.batchnorm_1 = _BatchNorm(filters)
        self.conv_2 = _Conv(filters, filters, 3, pads=(1, 1), bias=False)
        self.batchnorm_2 = _BatchNorm(filters)
        self.shortcut: nn.Module = nn.Identity()
        if given != filters:
            parts = {
                "conv": _Conv(given, filters, 1, bias=False),
                "batchnorm": _BatchNorm(filters),
            }
            self.shortcut = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.batchnorm_1(self.conv_1(x)), inplace=True)
        added: Tensor = self.batchnorm_2(self.conv_2(inner)) + self.shortcut(x)
        return functional.relu(added, inplace=True)


class _Average(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def _draw_weights(network: Network, seed: int) -> None:
    """Uniform between plus and minus sqrt(6 / (inputs + outputs)), counted as Keras does; biases stay 0.

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks",
    equation 16.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (_Conv, _Dense)):
            units, given, *window = module.weight.shape
            limit = (6 / ((units + given) * math.prod(window))) ** 0.5
            nn.init.uniform_(module.weight, -limit, limit, generator=generator)


def _set_filters(network: Network, layer: Layer, filters: NDArray[np.float32], *, freeze: bool) -> None:
    convolution = network.trunk.get_submodule(layer.key)
    weight = convolution.get_parameter("weight")
    if filters.shape != tuple(weight.shape):
        message = f"first_layer_filters: expected the shape {tuple(weight.shape)}, got {filters.shape}"
        raise RecipeError("bad-setting", message)
    weight.data.copy_(torch.from_numpy(filters))
    weight.requires_grad_(not freeze)
