"""The last stages of a bundled backbone as a PyTorch network: what is trained when the rest stays as it is."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tellapart.inference.bundled import (
    LAST_STAGE,
    Block,
    BundledWeights,
    Pooling,
    State,
    fold_norm,
    stage_blocks,
    unfold_norm,
)
from tellapart.inference.model import LinearHead


class Tail(nn.Module):
    """Stages after a cut, their pooled outputs, and the output layer.

    Batch norm is part of the convolutions: its statistics are those of the pretraining and stay so, and a convolution
    with a bias takes less time than one with batch norm behind it. Depthwise kernels and their biases stay as they are, too:
    they are a fiftieth of the weights, and PyTorch's gradient of them takes longer than all the rest.

    ``state_dict`` names what is trained ``stages.6.0.0.weight`` ... ``stages.8.0.bias``, ``output.weight``, ``output.bias``.

    Args:
        state: arrays of the bundled weights.
        bundled: says which network it is.
        cut: the last stage that stays as it is, 1-7.
        map_side: height and width of its maps.
        feature_stages: ascending; whose pooled outputs the embedding is made of.
        pooling: how.
        head: of the probe.
        outputs: K, or 1 for two classes: the logit of the second.

    Attributes:
        images_at_once: of a batch, on a CPU. No layer looks at more than one, so the gradients are the same; half the memory,
            and no slower (docs/experiments.md).
    """

    images_at_once = 32

    def __init__(
        self,
        state: State,
        bundled: BundledWeights,
        *,
        cut: int,
        map_side: int,
        feature_stages: tuple[int, ...],
        pooling: Pooling,
        head: LinearHead,
        outputs: int,
    ) -> None:
        super().__init__()
        self._feature_stages = tuple(stage for stage in feature_stages if stage > cut)
        self._pooling = pooling
        blocks = stage_blocks(bundled)
        self._map_channels = len(state[f"{blocks[cut][-1].name}._bn2.weight"])
        self._map_side = map_side
        parts: dict[str, nn.Module] = {}
        for stage in range(cut + 1, max(feature_stages) + 1):
            if stage == LAST_STAGE:
                parts[str(stage)] = nn.Sequential(_Conv(state, "_conv_head", "_bn1"))
            else:
                parts[str(stage)] = nn.Sequential(*(_Block(state, block) for block in blocks[stage]))
        self.stages = nn.ModuleDict(parts)
        weight, bias = (head.weight, head.bias) if outputs > 1 else second_against_first(head)
        self.output = nn.Linear(len(weight), outputs, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.output.weight.copy_(torch.from_numpy(weight.T))
            self.output.bias.copy_(torch.from_numpy(bias))

    def forward(self, given: Tensor) -> dict[str, Tensor]:
        """From what the cut gave to logits.

        Args:
            given: (B, H * W * C + F): maps after the cut, channels last, and the pooled outputs of the stages before it.

        Returns:
            ``embedding``: (B, D).
            ``logits``: (B, outputs).
        """
        maps = given[:, : self._map_side**2 * self._map_channels]
        x = maps.reshape(len(given), self._map_side, self._map_side, self._map_channels).permute(0, 3, 1, 2)
        pooled = given[:, maps.shape[1] :]
        parts = [pooled]
        for stage, module in self.stages.items():
            x = module(x)
            if int(stage) in self._feature_stages:
                parts.append(x.mean(dim=(2, 3)))
                if self._pooling == "mean-max" and int(stage) != LAST_STAGE:
                    parts.append(x.amax(dim=(2, 3)))
        embedding = torch.cat([part.float() for part in parts], dim=1)
        return {"embedding": embedding, "logits": self.output(embedding)}


def tail_state(state: State, tail: nn.Module, bundled: BundledWeights) -> State:
    """The arrays of the whole backbone with what the tail has learned in place."""
    arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in tail.state_dict().items()}
    learned = dict(state)
    for stage in sorted({name.split(".")[1] for name in arrays if name.startswith("stages.")}):
        prefix = f"stages.{stage}"
        if int(stage) == LAST_STAGE:
            learned |= unfold_norm(arrays[f"{prefix}.0.weight"], arrays[f"{prefix}.0.bias"], "_conv_head", "_bn1")
            continue
        for i, block in enumerate(stage_blocks(bundled)[int(stage)]):
            for name, (conv, norm) in _layers(state, block).items():
                layer = f"{prefix}.{i}.{name}"
                learned |= unfold_norm(arrays[f"{layer}.weight"], arrays[f"{layer}.bias"], conv, norm)
    return learned


def depth_below_head(name: str) -> int:
    """How many stages lie between a parameter and the output layer: 0 for that, 1 for stage 8, 2 for stage 7 ..."""
    part, _, rest = name.partition(".")
    return LAST_STAGE + 1 - int(rest.partition(".")[0]) if part == "stages" else 0


class _Conv(nn.Module):
    """A convolution with TensorFlow's padding, batch norm folded in."""

    def __init__(self, state: State, conv: str, norm: str, *, stride: int = 1, relu6: bool = True) -> None:
        super().__init__()
        weight, bias = fold_norm(state, conv, norm)
        self.weight = nn.Parameter(torch.from_numpy(weight).contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.from_numpy(bias))
        self._stride = stride
        depthwise = weight.shape[1] == 1
        self._groups = len(weight) if depthwise else 1
        self.requires_grad_(not depthwise)
        self._relu6 = relu6

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.shape[-1]
        side = x.shape[-1]
        total = max((math.ceil(side / self._stride) - 1) * self._stride + size - side, 0)
        before, after = total // 2, total - total // 2
        if before != after:
            x = functional.pad(x, (before, after, before, after))
        padding = before if before == after else 0
        if self._groups == 1:
            x = functional.conv2d(x, self.weight, self.bias, self._stride, padding)
        else:  # every place and then some of them: the gradient through a depthwise stride takes fifty times as long
            x = functional.conv2d(x, self.weight, self.bias, 1, padding, 1, self._groups)
            x = x[:, :, :: self._stride, :: self._stride].contiguous(memory_format=torch.channels_last)
        return functional.relu6(x, inplace=True) if self._relu6 else x


class _Block(nn.Module):
    """Source: Sandler et al. 2018, "MobileNetV2", section 3."""

    def __init__(self, state: State, block: Block) -> None:
        super().__init__()
        self._residual = block.residual
        for name, (conv, norm) in _layers(state, block).items():
            stride = block.stride if name == "depthwise" else 1
            self.add_module(name, _Conv(state, conv, norm, stride=stride, relu6=name != "project"))

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for layer in self.children():
            inner = layer(inner)
        return inner + x if self._residual else inner


def _layers(state: State, block: Block) -> Mapping[str, tuple[str, str]]:
    """Convolution and batch norm of each layer of a block, by our name for it."""
    layers = {
        "expand": (f"{block.name}._expand_conv", f"{block.name}._bn0"),
        "depthwise": (f"{block.name}._depthwise_conv", f"{block.name}._bn1"),
        "project": (f"{block.name}._project_conv", f"{block.name}._bn2"),
    }
    return {name: layer for name, layer in layers.items() if f"{layer[0]}.weight" in state}


def second_against_first(head: LinearHead) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two classes' logits as one, whose sigmoid is the probability of the second."""
    return head.weight[:, 1:] - head.weight[:, :1], head.bias[1:] - head.bias[:1]
