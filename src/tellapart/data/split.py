"""split: which images teach, which calibrate, which test."""

import math
from collections.abc import Collection, Mapping

import polars as pl

from tellapart.data.dataset import Dataset, Split
from tellapart.storage import sha256

MIN_CALIB_IMAGES = 50
"""With fewer, the images serve training instead and calibration is cross-fitted."""

MIN_TRAIN_IMAGES = 2
"""Images of each class that are left to learn from: cross-validation needs one on either side."""


def split(
    dataset: Dataset,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    calib_fraction: float = 0.1,
    cross_fit: bool = True,
) -> Dataset:
    """Give every image in use a part: train, val, calib or test.

    Folders the user made are kept: a test folder is the test part, and a val folder the val part, or the calib part where
    nothing is chosen by val. What is missing is drawn from the rest, the same share of each class. The order of the draw is a
    hash of the seed and of the image's bytes, so it does not depend on file names, and adding images moves few of the others
    to another part.

    Args:
        dataset: with contents read and duplicates set aside, so that no picture can lie in two parts.
        seed: another seed draws other images.
        test_fraction: share of all images without a test folder, at least one image a class.
        val_fraction: share of what is left, without a val folder; 0 for a recipe that chooses nothing by val.
        calib_fraction: share of what is left then.
        cross_fit: whether the recipe can calibrate without images of their own: then none are drawn when they would be under
            ``MIN_CALIB_IMAGES``. Otherwise val and calib have at least one image a class, where there are enough.
    """
    used = dataset.used()
    given = used.table["split"].unique().to_list()
    fractions: dict[Split, float] = {}
    if "test" not in given:
        fractions["test"] = test_fraction
    if val_fraction and "val" not in given:
        fractions["val"] = val_fraction
    val_calibrates = not val_fraction and "val" in given
    if not val_calibrates and "calib" not in given:
        fractions["calib"] = calib_fraction
    drawn: dict[str, Split] = {}
    for label in dataset.class_names:
        rows = used.table.filter(
            pl.col("label") == label, pl.col("split").is_null() | (pl.col("split") == "train")
        )
        pairs = zip(rows["content"], rows["path"], strict=True)
        shuffled = [path for _, path in sorted(pairs, key=lambda pair: sha256(f"{seed}:{pair[0]}".encode()))]
        drawn.update(_draw(shuffled, fractions, at_least_one={"test"} if cross_fit else set(fractions)))
    if cross_fit and sum(part == "calib" for part in drawn.values()) < MIN_CALIB_IMAGES:
        drawn = {path: "train" if part == "calib" else part for path, part in drawn.items()}
    if val_calibrates:
        drawn.update(dict.fromkeys(used.where(pl.col("split") == "val").paths, "calib"))
    parts = pl.DataFrame({"path": list(drawn), "part": list(drawn.values())})
    joined = dataset.table.join(parts, on="path", how="left", maintain_order="left")
    return dataset.with_columns(joined.select(pl.coalesce("part", "split").alias("split"))["split"])


def _draw(
    paths: list[str], fractions: Mapping[Split, float], *, at_least_one: Collection[Split]
) -> dict[str, Split]:
    """Cut a shuffled class into its parts, in the order of ``fractions``."""
    drawn: dict[str, Split] = {}
    rest = paths
    for part, fraction in fractions.items():
        room = len(rest) - MIN_TRAIN_IMAGES
        size = min(max(math.floor(fraction * len(rest) + 0.5), int(part in at_least_one)), max(0, room))
        size = max(size, int(part == "test"))
        drawn.update(dict.fromkeys(rest[:size], part))
        rest = rest[size:]
    drawn.update(dict.fromkeys(rest, "train"))
    return drawn
