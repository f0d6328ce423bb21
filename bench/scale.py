"""Time and memory of scanning images and searching for near-duplicates, as the number of images grows.

    python bench/scale.py [--images 10000 30000 100000]

The images are small and generated: cloudy fields with shapes on them, 32 to 64 px, JPEG. One in a hundred has a copy that is
re-encoded, of half the size, cropped to 95 %, mirrored or of another brightness. Each number of images is measured in a process
of its own; the last line carries the time and memory per image of the two largest on to a million.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from duplicates import KINDS, altered, recall
from tellapart.data.near_duplicates import find_near_duplicates
from tellapart.data.quality import find_odd, make_preview, measure_quality, quality_of
from tellapart.imaging.decode import decode_image
from tellapart.imaging.pool import batched, cpu_count, map_ordered
from tellapart.imaging.preprocess import preprocess_image
from tellapart.imaging.thumbnail import make_thumbnail
from tellapart.records import Preprocess
from train import save

COPIED = 100  # one image in so many has a copy
A_FOLDER = 1_000
MILLION = 1_000_000
PREPROCESS = Preprocess(input_size_px=224)


def generate(folder: Path, n: int) -> np.ndarray:
    """Write ``n`` images; return for each what it shows: its own index, or that of the image it is a copy of."""
    shows = np.arange(n)
    originals = n - n // COPIED
    shows[originals:] = np.random.default_rng(n).choice(originals, n - originals, replace=False)
    with ThreadPoolExecutor(cpu_count()) as pool:
        for part in batched(range(n), A_FOLDER):
            below = folder / f"{part[0] // A_FOLDER:04d}"
            below.mkdir()
            jpegs = pool.map(lambda i: jpeg(i, int(shows[i])), part)
            for i, data in zip(part, jpegs, strict=True):
                (below / f"{i:07d}.jpg").write_bytes(data)
    return shows


def jpeg(i: int, shown: int) -> bytes:
    picture = scene(shown)
    if i == shown:
        return simplejpeg.encode_jpeg(picture, quality=90)
    image, quality = altered(Image.fromarray(picture), KINDS[i % len(KINDS)], np.random.default_rng(i))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def scene(seed: int) -> np.ndarray:
    """Light from one side, clouds of four scales, strongest where largest as in photos, and a few things; 32 to 64 px a side."""
    rng = np.random.default_rng([7, seed])
    height, width = rng.integers(32, 65, 2).tolist()
    down, across = rng.normal(0, 30, 2)
    light = down * np.linspace(-1, 1, height)[:, None] + across * np.linspace(-1, 1, width)
    picture = 128 + light[:, :, None].repeat(3, axis=2).astype(np.float32)
    for cells, strength in ((2, 25), (4, 18), (8, 12), (16, 9)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        clouds = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        picture += (clouds[:, :, None] - 128) * (rng.uniform(0.6, 1.4, 3).astype(np.float32) * strength / 64)
    for _ in range(rng.integers(1, 5)):
        top, left = rng.integers(0, height - 6), rng.integers(0, width - 6)
        picture[top : top + rng.integers(5, 24), left : left + rng.integers(5, 24)] += rng.normal(0, 50, 3)
    return picture.clip(0, 255).astype(np.uint8)


def look(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thumbnails, quality and sizes of some files."""
    thumbnails, rows, sizes = [], [], []
    for path in paths:
        pixels = decode_image(path, target_px=PREPROCESS.input_size_px)
        preview = make_preview(pixels)
        thumbnails.append(make_thumbnail(preprocess_image(pixels, PREPROCESS)))
        rows.append(measure_quality(preview))
        sizes.append(pixels.shape[1::-1])
    return np.stack(thumbnails), np.stack(rows), np.array(sizes)


def measure(folder: Path) -> dict:
    """Scan a folder and search it; runs in a process of its own."""
    start = time.perf_counter()
    paths = sorted(folder.rglob("*.jpg"))
    listed = time.perf_counter()
    parts = zip(*map_ordered(look, batched(paths, 64)), strict=True)
    thumbnails, rows, sizes = (np.concatenate(part) for part in parts)
    seen = time.perf_counter()
    found = find_near_duplicates(thumbnails, sizes=sizes)
    searched = time.perf_counter()
    odd = find_odd(quality_of(rows), sizes)
    return {
        "images": len(paths),
        "list_seconds": round(listed - start, 2),
        "look_seconds": round(seen - listed, 2),
        "search_seconds": round(searched - seen, 2),
        "odd_seconds": round(time.perf_counter() - searched, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "odd": len(odd),
        "groups": [finding.indices for finding in found],
    }


def one_size(n: int) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        shows = generate(Path(scratch), n)
        print(f"{n:,} images generated in {time.perf_counter() - start:.0f} s", flush=True)
        output = subprocess.run([sys.executable, __file__, "--folder", scratch], capture_output=True, check=True)
    result = json.loads(output.stdout)
    copies = np.arange(n - n // COPIED, n)
    found, false = recall(result.pop("groups"), shows, copies)
    return result | {"copies": len(copies), "recall": round(found, 4), "false_merges": false}


def extrapolated(smaller: dict, larger: dict) -> dict:
    """A million images: looking grows as they do; the search, as it did from the smaller number to the larger, or faster."""
    n, times = larger["images"], MILLION / larger["images"]
    growth = np.log(larger["search_seconds"] / smaller["search_seconds"]) / np.log(n / smaller["images"])
    bytes_an_image = (larger["peak_mb"] - smaller["peak_mb"]) * 1e6 / (n - smaller["images"])
    return dict.fromkeys(larger, "") | {
        "images": f"{MILLION} (extrapolated: n^{max(1.0, growth):.2f}, {bytes_an_image:.0f} bytes an image)",
        "list_seconds": round(larger["list_seconds"] * times),
        "look_seconds": round(larger["look_seconds"] * times),
        "search_seconds": round(larger["search_seconds"] * times ** max(1.0, float(growth))),
        "peak_mb": round(larger["peak_mb"] + bytes_an_image * (MILLION - n) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measure(options.folder)))
        return
    rows = []
    for n in options.images:
        rows.append(one_size(n))
        print(rows[-1], flush=True)
    if len(rows) > 1:
        rows.append(extrapolated(*rows[-2:]))
        print(rows[-1])
    save("scale", rows)


if __name__ == "__main__":
    main()
