"""Planted near-duplicates and images of nothing: how many are found, and what is found that is none.

    python bench/duplicates.py ../shared/data/cats_dogs [--seeds 3]

500 copies of different photos, 100 of each kind: re-encoded at quality 50, half the size, a 95 % crop anywhere, mirrored, and
brighter or darker. Beyond the target, 100 copies with all of it at once, and 100 crops of 85 %. Measured with the backbone's
embeddings and without. A group is a false merge where it holds two photos that were not planted as one; real copies among
the photos must be looked at, so their paths are printed. Fifty images of nothing are planted as well.
"""

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from tellapart.data.near_duplicates import find_near_duplicates
from tellapart.data.quality import Finding, find_odd, make_preview, measure_quality, quality_of
from tellapart.imaging.decode import decode_image
from tellapart.imaging.pool import batched, map_ordered
from tellapart.imaging.preprocess import preprocess_image
from tellapart.imaging.thumbnail import make_thumbnail
from tellapart.inference.bundled import open_backbone
from tellapart.inference.engine import BATCH_SIZE, OpenVINOEngine
from tellapart.training.recipes import build_recipe
from train import save

KINDS = ("re-encoded", "half size", "95 % crop", "mirrored", "brightness")
HARDER = ("all at once", "85 % crop")
NOTHING = ("blank", "dark", "bright", "blurred")
COPIES = 100  # of each kind
TARGET_PX = 224


def altered(image: Image.Image, kind: str, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """The image changed in one way, and the JPEG quality to store it with."""
    width, height = image.size
    if kind == "half size":
        return image.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BICUBIC), 90
    if kind.endswith("crop"):
        share = float(kind.split()[0]) / 100
        inner = round(width * share), round(height * share)
        left, top = (int(rng.integers(0, outer - side + 1)) for outer, side in zip(image.size, inner, strict=True))
        return image.crop((left, top, left + inner[0], top + inner[1])), 90
    if kind == "mirrored":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90
    if kind == "brightness":
        return ImageEnhance.Brightness(image).enhance(float(rng.choice([0.6, 0.75, 1.25, 1.5]))), 90
    if kind == "all at once":
        for each in KINDS[1:]:
            image, _ = altered(image, each, rng)
    return image, 50


def recall(groups: Sequence[Sequence[int]], shows: np.ndarray, copies: np.ndarray) -> tuple[float, int]:
    """Share of ``copies`` in a group with another image of the same picture; and groups of several pictures."""
    found = 0
    for group in groups:
        shown = shows[list(group)]
        found += sum(1 for i in group if i in copies and np.count_nonzero(shown == shows[i]) > 1)
    return found / len(copies), sum(len(set(shows[list(group)].tolist())) > 1 for group in groups)


def plant(photos: list[bytes], seed: int) -> tuple[list[bytes], np.ndarray, list[str]]:
    """Files to append, the photo that each shows, and its kind."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in (*KINDS, *HARDER) for _ in range(COPIES)]
    # The copies that count are of different photos; the harder ones are drawn anew.
    chosen = [rng.choice(len(photos), len(part) * COPIES, replace=False) for part in (KINDS, HARDER)]
    files = []
    for i, kind in zip(np.concatenate(chosen), kinds, strict=True):
        image, quality = altered(Image.open(io.BytesIO(photos[i])).convert("RGB"), kind, rng)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return files, np.concatenate(chosen), kinds


def look(data: bytes) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
    """Thumbnail, quality, size and the backbone's input."""
    pixels = decode_image(data, target_px=TARGET_PX)
    preview = make_preview(pixels)
    size = Image.open(io.BytesIO(data)).size
    preprocess = build_recipe("probe", {}).preprocess
    inputs = preprocess_image(pixels, preprocess)
    return make_thumbnail(inputs), measure_quality(preview), size, inputs


def embed(inputs: Sequence[np.ndarray]) -> np.ndarray:
    recipe = build_recipe("probe", {})
    backbone = open_backbone(recipe.backbone, recipe.feature_stages, recipe.feature_pooling)
    engine = OpenVINOEngine(backbone.onnx_bytes, input_size_px=TARGET_PX)
    batches = map_ordered(lambda batch: engine.run(np.stack(batch))["embedding"], batched(inputs, BATCH_SIZE))
    return np.concatenate(list(batches))


def nothing(photo: bytes, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A photo with nothing left to see."""
    pixels = decode_image(photo, target_px=TARGET_PX)
    if kind == "blurred":
        radius = 10 * min(pixels.shape[:2]) / TARGET_PX
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    if kind == "dark":
        return (pixels * 0.1).astype(np.uint8)
    if kind == "bright":
        return (255 - (255 - pixels) * 0.08).astype(np.uint8)
    noise = rng.normal(rng.integers(0, 256), 1.5, pixels.shape)
    return noise.clip(0, 255).astype(np.uint8)


def duplicates_row(name: str, found: list[Finding], shows: np.ndarray, kinds: list[str], seconds: float) -> dict:
    groups = [finding.indices for finding in found]
    start = len(shows) - len(kinds)
    row: dict = {"what": name, "images": len(shows), "seconds": round(seconds, 2)}
    planted = np.array(kinds)
    for kind in dict.fromkeys(kinds):
        row[kind] = recall(groups, shows, start + np.flatnonzero(planted == kind))[0]
    counted = start + np.flatnonzero(np.isin(planted, KINDS))
    row["recall"], row["mixed_groups"] = recall(groups, shows, counted)
    return row


def measure_seed(
    photos: list[bytes], seen: list, embeddings: np.ndarray, seed: int, names: list[str]
) -> list[dict]:
    files, chosen, kinds = plant(photos, seed)
    more = list(map_ordered(look, files))
    thumbnails, _, sizes, _ = zip(*seen, *more, strict=True)
    vectors = np.concatenate([embeddings, embed([each[3] for each in more])])
    shows = np.concatenate([np.arange(len(photos)), chosen])
    rows = []
    for harder in (False, True):
        n = len(photos) + COPIES * (len(KINDS) + len(HARDER) * harder)
        for what, given in (("thumbnails", None), ("thumbnails and embeddings", vectors[:n])):
            start = time.perf_counter()
            found = find_near_duplicates(np.stack(thumbnails[:n]), given, sizes=np.array(sizes[:n]))
            seconds = time.perf_counter() - start
            name = f"{what}{', harder ones too' * harder}, seed {seed}"
            rows.append(duplicates_row(name, found, shows[:n], kinds[: n - len(photos)], seconds))
            print(rows[-1], flush=True)
            for finding in found:
                shown = set(shows[list(finding.indices)].tolist())
                if len(shown) > 1:
                    print("  look at", *(names[i] for i in sorted(shown)), finding.evidence)
    return rows


def measure_nothing(photos: list[bytes], seen: list) -> dict:
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(photos), len(NOTHING) * 50, replace=False)
    kinds = [kind for kind in NOTHING for _ in range(50)]
    planted = [nothing(photos[i], kind, rng) for i, kind in zip(chosen, kinds, strict=True)]
    rows = np.stack([each[1] for each in seen] + [measure_quality(make_preview(pixels)) for pixels in planted])
    sizes = np.array([each[2] for each in seen] + [seen[i][2] for i in chosen])
    found = find_odd(quality_of(rows), sizes)
    row: dict = {"what": "images of nothing", "images": len(rows)}
    for kind in NOTHING:
        of_kind = {finding.indices[0] for finding in found if finding.kind == kind}
        truth = {len(photos) + k for k, each in enumerate(kinds) if each == kind}
        row[kind] = len(of_kind & truth) / len(truth)
        row[f"{kind} among the photos"] = sum(i < len(photos) for i in of_kind)
    for kind in ("odd-size", "odd-shape"):
        row[kind] = sum(finding.kind == kind and finding.indices[0] < len(photos) for finding in found)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    paths = sorted(options.folder.rglob("*.jpg"))
    photos = [path.read_bytes() for path in paths]
    seen = list(map_ordered(look, photos))
    embeddings = embed([each[3] for each in seen])
    rows = []
    for seed in range(options.seeds):
        rows += measure_seed(photos, seen, embeddings, seed, [str(path) for path in paths])
    save("duplicates", [dict.fromkeys(rows[-1], "") | row for row in rows])
    odd = measure_nothing(photos, seen)
    print(odd)
    save("odd", [odd])


if __name__ == "__main__":
    main()
