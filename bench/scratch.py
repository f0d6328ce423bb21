"""Training speed of the recipe `scratch` at CIFAR's size, beside the most that was measured on the same cores.

    python bench/scratch.py [--images 5000]

Images are noise: speed does not depend on what they show. The peak is the best of several large float32 products, of matrices
(2,048 x 2,048) and as a convolution (256 to 256 channels), which PyTorch hands to different libraries.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import numpy as np
import torch

from tellapart.models.layers import parse_layers
from tellapart.models.network import build_network
from tellapart.models.normalize import fit_transform
from tellapart.training.checkpoint import CheckpointFolder
from tellapart.training.loop import LoopData, train_network
from tellapart.training.loop_recipe import scratch
from tellapart.training.objective import Classification
from train import save

SIDE_PX, CLASSES, SIZE = 32, 10, 2048


def peak_flops() -> float:
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    conv = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(16, 256, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        matrices = 2 * SIZE**3 / best_seconds(lambda: a @ b)
        convolution = 2 * 16 * 32 * 32 * conv.weight.numel() / best_seconds(lambda: conv(x))
    return max(matrices, convolution)


def best_seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def flops_an_image(network: torch.nn.Module) -> int:
    """Of a forward pass: two for each multiplication of a convolution or a matrix."""
    counted = 0

    def count(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal counted
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim in (2, 4):
            counted += 2 * weight.numel() * (output.shape[2] * output.shape[3] if weight.ndim == 4 else 1)

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    network.eval()(torch.zeros(1, 3, SIDE_PX, SIDE_PX))
    for hook in hooks:
        hook.remove()
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    n = parser.parse_args().images
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    recipe = scratch(epochs=3).sized(SIDE_PX)
    layers = parse_layers(recipe.layers, input_size_px=SIDE_PX, channels=3)
    transform = fit_transform(pixels, color="rgb", normalize=recipe.normalize_words)
    network = build_network(layers, transform, outputs=CLASSES, seed=0)
    data = LoopData(
        pixels=pixels, labels=rng.integers(0, CLASSES, n), names=[""] * n, train=np.arange(n), val=np.arange(0)
    )
    flops = 3 * flops_an_image(network)  # backward takes two products for each of forward
    before = peak_flops()
    with tempfile.TemporaryDirectory() as folder:
        result = train_network(
            network,
            Classification(class_weights=torch.ones(CLASSES)),
            data,
            recipe,
            seed=0,
            checkpoints=CheckpointFolder(Path(folder)),
            progress=lambda *_: None,
            on_epoch=lambda _: None,
        )
    peak = max(before, peak_flops())
    rate = max(entry.images_per_s for entry in result.log)
    row = {
        "what": f"scratch, {SIDE_PX} px",
        "images_per_s": round(rate),
        "mflop_an_image": round(flops / 1e6, 1),
        "gflop_per_s": round(rate * flops / 1e9, 1),
        "peak_gflop_per_s": round(peak / 1e9, 1),
        "share_of_peak": round(rate * flops / peak, 2),
    }
    save("scratch", [row])
    print(row)


if __name__ == "__main__":
    main()
