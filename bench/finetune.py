"""Images a second of fine-tuning the last stages: the recipe ``finetune`` against a plain PyTorch loop with timm.

Both train the same stages of the same network on the same images with AdamW; ``finetune`` leaves depthwise kernels as they
are. The plain loop runs the whole network at each step, batch norm in its own modules, in bfloat16 and channels last; or it
begins at the cut, too.

    python bench/finetune.py FOLDER_OF_IMAGES [--size 224] [--train-stages 3] [--seconds 20]
"""

import argparse
import time
from pathlib import Path

from tellapart.training.train import _prepare_process

_prepare_process()

import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from tellapart.imaging.preprocess import load_input  # noqa: E402
from tellapart.inference.bundled import BUNDLED, open_backbone, read_weights  # noqa: E402
from tellapart.inference.engine import OpenVINOEngine  # noqa: E402
from tellapart.inference.model import LinearHead  # noqa: E402
from tellapart.training.finetune import _frozen_stages, _map_side  # noqa: E402
from tellapart.training.loop_recipe import finetune  # noqa: E402
from tellapart.training.optim import AveragedWeights, Optimizer  # noqa: E402
from tellapart.training.tail import Tail, depth_below_head  # noqa: E402

BATCH, CLASSES = 64, 10


class PlainTail(nn.Module):
    """timm's own modules after the cut."""

    def __init__(self, network, cut):
        super().__init__()
        self.blocks, self.conv_head, self.bn2 = network.blocks[cut:], network.conv_head, network.bn2
        self.fc = nn.Linear(1280, CLASSES)

    def forward(self, x):
        return self.fc(self.bn2(self.conv_head(self.blocks(x))).mean((2, 3)))


def ours(recipe, images, labels, dtype):
    cut = 8 - recipe.train_stages
    graph, pooled = _frozen_stages(recipe, cut)
    engine = OpenVINOEngine(graph, input_size_px=recipe.input_size_px)
    outputs = engine.run(images)
    maps = outputs["maps"].transpose(0, 2, 3, 1).reshape(len(images), -1)
    given = torch.from_numpy(np.concatenate([maps, outputs["embedding"][:, :pooled]], axis=1).astype(np.float16))
    dim = open_backbone(recipe.backbone, recipe.feature_stages, recipe.feature_pooling).embedding_dim
    head = LinearHead(weight=np.zeros((dim, CLASSES), np.float32), bias=np.zeros(CLASSES, np.float32))
    tail = Tail(
        read_weights(recipe.backbone), BUNDLED[recipe.backbone], cut=cut, map_side=_map_side(recipe, cut),
        feature_stages=recipe.feature_stages, pooling=recipe.feature_pooling, head=head, outputs=CLASSES,
    ).to(memory_format=torch.channels_last).train()  # fmt: skip
    optimizer = Optimizer(tail, recipe, lambda name: recipe.lr_decay ** depth_below_head(name))
    average = AveragedWeights(tail, 0.99)

    def step():
        rows = torch.randint(len(images), (BATCH,))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            logits = tail(given[rows].float())["logits"]
        F.cross_entropy(logits.float(), labels[rows]).backward()
        nn.utils.clip_grad_norm_(tail.parameters(), 1.0)
        optimizer.step(1e-5)
        average.update(tail)

    return step


def plain(recipe, images, labels, dtype, *, trained_only):
    cut = 8 - recipe.train_stages
    network = timm.create_model("tf_" + recipe.backbone, pretrained=False)
    state = read_weights(recipe.backbone)
    arrays = [torch.from_numpy(np.array(value)) for value in state.values()]
    network.load_state_dict(dict(zip(network.state_dict(), arrays, strict=True)))
    network = network.to(memory_format=torch.channels_last).eval()
    tail = PlainTail(network, cut).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(tail.parameters(), lr=1e-5)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )

    def frozen(x):
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return network.blocks[:cut](network.bn1(network.conv_stem(x)))

    given = torch.cat([frozen(part) for part in pixels.split(64)]) if trained_only else pixels

    def step():
        rows = torch.randint(len(images), (BATCH,))
        x = given[rows].contiguous(memory_format=torch.channels_last)
        x = x if trained_only else frozen(x)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            logits = tail(x)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels[rows]).backward()
        optimizer.step()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--train-stages", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    recipe = finetune(input_size_px=options.size, train_stages=options.train_stages)
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[
        :256
    ]
    images = np.stack([load_input(path, recipe.preprocess) for path in paths])
    labels = torch.arange(len(images)) % CLASSES
    steps = {
        "finetune, float32": ours(recipe, images, labels, None),
        "finetune, bfloat16": ours(recipe, images, labels, torch.bfloat16),
        "plain bfloat16, whole network": plain(recipe, images, labels, torch.bfloat16, trained_only=False),
        "plain bfloat16, from the cut": plain(recipe, images, labels, torch.bfloat16, trained_only=True),
        "plain float32, from the cut": plain(recipe, images, labels, None, trained_only=True),
    }
    seen, spent = dict.fromkeys(steps, 0), dict.fromkeys(steps, 0.0)
    for step in steps.values():
        step()
    while min(spent.values()) < options.seconds / len(steps):  # taking turns: a busy machine is busy for all
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            spent[name] += time.perf_counter() - start
            seen[name] += BATCH
    rates = {name: seen[name] / spent[name] for name in steps}
    for name, rate in rates.items():
        print(
            f"{name:32} {rate:7.0f} images/s, finetune in bfloat16 is {rates['finetune, bfloat16'] / rate:5.2f} times that"
        )


if __name__ == "__main__":
    main()
