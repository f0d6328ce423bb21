"""The floor: what decoding and the backbone alone cost on these images, with all processors and nothing else.

    python bench/floor.py FOLDER

Decoding is simplejpeg's, scaled to at least the model's input. The backbone runs in the best precision on arrays already in
memory, at the best of several batch sizes. Both are the fastest of the repeats; a program that did nothing else would need
their sum.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import simplejpeg

from tellapart.imaging.pool import cpu_count
from tellapart.inference.bundled import open_backbone
from tellapart.inference.engine import best_precision

SIDE = 224


def measure_floor(folder: Path, *, repeats: int = 3) -> dict[str, float]:
    """Seconds to decode every JPEG below ``folder``, and to run the backbone on as many images."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    decode = min(_decode_seconds(files) for _ in range(repeats))
    run = min(_run_seconds(len(files), batch) for batch in (2, 4, 8, 16) for _ in range(repeats))
    return {
        "images": len(files),
        "decode_seconds": decode,
        "backbone_seconds": run,
        "floor_seconds": decode + run,
    }


def _decode_seconds(files: list[Path]) -> float:
    def decode(path: Path) -> None:
        simplejpeg.decode_jpeg(path.read_bytes(), min_height=SIDE, min_width=SIDE)

    start = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as pool:
        for _ in pool.map(decode, files):
            pass
    return time.perf_counter() - start


def _run_seconds(images: int, batch: int) -> float:
    core = openvino.Core()
    model = core.read_model(model=open_backbone("efficientnet_lite0").onnx_bytes)
    model.reshape([batch, SIDE, SIDE, 3])
    config = {"NUM_STREAMS": str(cpu_count()), "INFERENCE_PRECISION_HINT": best_precision()}
    queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", config))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
    start = time.perf_counter()
    for _ in range(0, images, batch):
        queue.start_async({0: pixels})
    queue.wait_all()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in measure_floor(parser.parse_args().folder).items():
        print(f"{name:18} {value:8.2f}")


if __name__ == "__main__":
    main()
