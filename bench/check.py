"""Planted faults through the whole of `tellapart check`: what is found, and what is found that was not planted.

    python bench/check.py ../shared/data/cats_dogs [--seed 0]

Copies the photos into a folder of its own and plants there: 500 near-duplicates (100 of each kind of bench/duplicates.py) in the
class they belong to, 100 exact copies, 50 exact and 50 re-encoded copies in the other class, 50 exact copies across train and
test, and 25 each of unreadable, truncated and misnamed files and of images of nothing. Then the command runs as a user runs
it, and its issues.parquet is held against the list.
"""

import argparse
import io
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from duplicates import KINDS, NOTHING, altered, nothing
from train import command, save

# Of one picture that is there several times the gravest kinds are said, not each.
GRAVER = {"near-duplicate": {"label-conflict", "leak"}, "duplicate": {"label-conflict", "leak"}}


class Planter:
    """Copies of photos with faults, and what each file's fault is."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.planted: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        photos = sorted(folder.glob("train/*/*.jpg"))
        self.unused = [photos[i] for i in self.rng.permutation(len(photos))]

    def plant(self, kind: str, data: bytes, beside: Path, name: str) -> None:
        path = beside / f"planted_{kind}_{len(self.planted[kind])}_{name}"
        path.write_bytes(data)
        self.planted[kind].append((str(path), ""))

    def copies(self, kind: str, n: int, change: str, folder_of: dict[str, Path] | None = None) -> None:
        for _ in range(n):
            photo = self.unused.pop()
            data = photo.read_bytes()
            if change != "exact":
                image, quality = altered(Image.open(io.BytesIO(data)).convert("RGB"), change, self.rng)
                file = io.BytesIO()
                image.save(file, "JPEG", quality=quality)
                data = file.getvalue()
            beside = (folder_of or {}).get(photo.parent.name, photo.parent)
            path = (
                beside
                / f"planted_{kind}_{change.replace(' ', '_').replace('%', '')}_{len(self.planted[kind])}.jpg"
            )
            path.write_bytes(data)
            self.planted[kind].append((str(path), str(photo)))


def plant(folder: Path, seed: int) -> Planter:
    planter = Planter(folder, seed)
    names = sorted(path.name for path in (folder / "train").iterdir())
    other = dict(zip(names, [folder / "train" / name for name in reversed(names)], strict=True))
    test = {name: folder / "test" / name for name in names}
    for change in KINDS:
        planter.copies("near-duplicate", 100, change)
    planter.copies("duplicate", 100, "exact")
    planter.copies("label-conflict", 50, "exact", other)
    planter.copies("label-conflict", 50, "re-encoded", other)
    planter.copies("leak", 50, "exact", test)
    beside = folder / "train" / names[0]
    for i in range(25):
        data = planter.unused.pop().read_bytes()
        planter.plant("unreadable", (b"", b"some words", data[:200])[i % 3], beside, "x.jpg")
        planter.plant("truncated", data[: len(data) * 2 // 3], beside, "x.jpg")
        file = io.BytesIO()
        Image.open(planter.unused.pop()).save(file, "PNG")
        planter.plant("wrong-extension", file.getvalue(), beside, "x.jpg")
        for kind in NOTHING:
            file = io.BytesIO()
            Image.fromarray(nothing(planter.unused.pop().read_bytes(), kind, planter.rng)).save(
                file, "JPEG", quality=90
            )
            planter.plant(kind, file.getvalue(), beside, "x.jpg")
    return planter


def compare(planted: dict[str, list[tuple[str, str]]], issues: pl.DataFrame) -> list[dict]:
    """For each kind: how many of the planted are named, and issues of the kind that name none of them."""
    everything = {path for pairs in planted.values() for path, _ in pairs}
    rows = []
    for kind, pairs in planted.items():
        counted = issues.filter(pl.col("kind").is_in([kind, *GRAVER.get(kind, ())]))
        together = [set(paths) for paths in counted["paths"]]
        found = sum(
            any(path in paths and (not photo or photo in paths) for paths in together) for path, photo in pairs
        )
        of_kind = issues.filter(pl.col("kind") == kind)["paths"].to_list()
        unplanted = [paths for paths in of_kind if not everything & set(paths)]
        rows.append(
            {"kind": kind, "planted": len(pairs), "recall": found / len(pairs), "not_planted": len(unplanted)}
        )
        for paths in unplanted[:5]:
            print("  look at", kind, *(Path(path).name for path in paths))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        for path in sorted(options.folder.rglob("*.jpg")):
            copy = folder / path.relative_to(options.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        planter = plant(folder, options.seed)
        out = Path(name) / "out"
        arguments = [command(), "check", str(folder), "--out", str(out), "--json"]
        start = time.perf_counter()
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        seconds = round(time.perf_counter() - start, 1)
        counts = json.loads(done.stdout)["dataset"]
        rows = compare(planter.planted, pl.read_parquet(out / "issues.parquet"))
    for row in rows:
        print(row)
    sums = counts["used"] + counts["refused"] + counts["duplicates"] + counts["skipped"]
    print(f"{counts['seen']} files seen, {sums} accounted for, {seconds} s")
    save("check", rows)


if __name__ == "__main__":
    main()
