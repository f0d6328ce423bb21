"""A whole network of timm, trained on from the probe."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from tellapart.data.dataset import Dataset
from tellapart.inference.model import LinearHead
from tellapart.models.backbone import Pretrained, export, load_pretrained
from tellapart.records import Progress
from tellapart.training.backbones import open_features
from tellapart.training.finetune import FinetuneWay
from tellapart.training.loop import ImageData
from tellapart.training.loop_recipe import FinetuneRecipe
from tellapart.training.objective import Objective
from tellapart.training.probe_recipe import ProbeRecipe
from tellapart.training.tail import second_against_first


class WholeWay(FinetuneWay):
    """All layers of a network of timm; size, crop and filter are those of the weights' record.

    Arguments are those of ``LoopWay``.
    """

    def __init__(self, recipe: FinetuneRecipe, folder: Path, **told: Any) -> None:
        _, features = open_features(recipe.fallback)
        seen = features.preprocess
        recipe = replace(
            recipe,
            input_size_px=seen.input_size_px,
            resize=seen.resize,
            interpolation=seen.interpolation,
            crop_share=seen.crop_share,
            feature_stages=(),
        )
        super().__init__(recipe, folder, **told)
        self._pretrained = load_pretrained(
            recipe.backbone, weights_file=recipe.weights, input_size_px=recipe.input_size_px
        )

    def _data(self, dataset: Dataset, seed: int, progress: Progress) -> ImageData:  # noqa: ARG002  nothing to compute
        train, val = dataset.used("train"), dataset.used("val")
        labels, names = self._labels(train, val)
        return ImageData(
            pixels=self._images.pixels,
            labels=labels,
            names=names,
            train=self._images.indices(train.contents),
            val=self._images.indices(val.contents),
        )

    def _network(self, head: LinearHead, objective: Objective) -> "Whole":
        return Whole(self._pretrained, head, objective.num_outputs)

    def _depth(self, network: nn.Module) -> Callable[[str], int]:
        inner: Any = network.get_submodule("network")
        # timm's own groups: the stem, the stages or blocks, what follows them.
        layers: dict[str, int] = group_parameters(inner, inner.group_matcher(coarse=True), reverse=True)
        last = max(layers.values())

        def depth(name: str) -> int:
            part, _, rest = name.partition(".")
            return 1 + last - layers[rest] if part == "network" else 0

        return depth

    def _trunk(self, network: nn.Module, features: ProbeRecipe) -> bytes:  # noqa: ARG002  timm's own embedding
        inner = network.cpu().eval().get_submodule("network")
        content: bytes = export(replace(self._pretrained, network=inner)).SerializeToString()
        return content


class Whole(nn.Module):
    """A network of timm with an output layer.

    Batch norm keeps the statistics of the pretraining, as in ``Tail``: batches are small, and what ships is what was measured.

    Args:
        pretrained: the network, which is trained in place, and how its input is normalised.
        head: of the probe.
        outputs: K, or 1 for two classes: the logit of the second.

    Attributes:
        images_at_once: of a batch, on a CPU. No layer looks at more than one, so the gradients are the same; 40 % of the
            memory for 64, and no slower (docs/experiments.md).
    """

    images_at_once = 16
    center: Tensor
    spread: Tensor

    def __init__(self, pretrained: Pretrained, head: LinearHead, outputs: int) -> None:
        super().__init__()
        self.network = pretrained.network.requires_grad_(True)
        self.register_buffer("center", torch.tensor(pretrained.mean)[:, None, None])
        self.register_buffer("spread", torch.tensor(pretrained.std)[:, None, None])
        weight, bias = (head.weight, head.bias) if outputs > 1 else second_against_first(head)
        self.output = nn.Linear(len(weight), outputs, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.output.weight.copy_(torch.from_numpy(weight.T))
            self.output.bias.copy_(torch.from_numpy(bias))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """From (B, 3, S, S) in 0-1 to ``embedding`` (B, D) and ``logits`` (B, outputs)."""
        embedding = self.network((images - self.center) / self.spread).float()
        return {"embedding": embedding, "logits": self.output(embedding)}

    def train(self, mode: bool = True) -> "Whole":
        """Train all but batch norm's statistics."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self
