"""split: which images teach, which calibrate, which test."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import polars as pl

from tellapart.data.copies import stay_together
from tellapart.data.dataset import Dataset, Split
from tellapart.errors import DataError
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
    teaching = used.where(pl.col("split").is_null() | (pl.col("split") == "train"))
    if teaching.table["label"].is_null().any() or teaching.table["group"].is_not_null().any():
        drawn = _draw_units(_units(teaching, seed), fractions, optional={"calib"} if cross_fit else set())
    else:
        drawn = _draw_classes(teaching, fractions, seed, at_least_one={"test"} if cross_fit else set(fractions))
    if cross_fit and sum(part == "calib" for part in drawn.values()) < MIN_CALIB_IMAGES:
        drawn = {path: "train" if part == "calib" else part for path, part in drawn.items()}
    if val_calibrates:
        drawn.update(dict.fromkeys(used.where(pl.col("split") == "val").paths, "calib"))
    parts = pl.DataFrame({"path": list(drawn), "part": list(drawn.values())})
    joined = dataset.table.join(parts, on="path", how="left", maintain_order="left")
    return dataset.with_columns(joined.select(pl.coalesce("part", "split").alias("split"))["split"])


def _draw_classes(
    teaching: Dataset, fractions: Mapping[Split, float], seed: int, *, at_least_one: Collection[Split]
) -> dict[str, Split]:
    """Each class on its own, picture by picture; one that is in several classes goes with the one it is most often in."""
    of_class: defaultdict[str, list[list[str]]] = defaultdict(list)
    for unit in _units(teaching, seed):
        of_class[unit.labels.most_common(1)[0][0]].append(unit.paths)
    drawn: dict[str, Split] = {}
    for label in teaching.class_names:
        drawn.update(_draw(of_class[label], fractions, at_least_one=at_least_one))
    return drawn


def _draw(
    units: list[list[str]], fractions: Mapping[Split, float], *, at_least_one: Collection[Split]
) -> dict[str, Split]:
    """Cut a shuffled class into its parts, in the order of ``fractions``."""
    drawn: dict[str, Split] = {}
    rest = units
    for part, fraction in fractions.items():
        left = sum(map(len, rest))
        room = left - MIN_TRAIN_IMAGES
        size = min(max(math.floor(fraction * left + 0.5), int(part in at_least_one)), max(0, room))
        size = max(size, int(part == "test"))
        taken, rest = _take(rest, size)
        if not taken and size and len(rest) > 1:
            taken, rest = _take_smallest(rest)
        drawn.update({path: part for unit in taken for path in unit})
    drawn.update({path: "train" for unit in rest for path in unit})
    return drawn


def _take(units: list[list[str]], size: int) -> tuple[list[list[str]], list[list[str]]]:
    """The first units that make up at most ``size`` images together, and the others."""
    taken, rest = [], []
    for unit in units:
        if len(unit) <= size:
            taken.append(unit)
            size -= len(unit)
        else:
            rest.append(unit)
    return taken, rest


def _take_smallest(units: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    smallest = min(range(len(units)), key=lambda i: len(units[i]))
    return [units[smallest]], units[:smallest] + units[smallest + 1 :]


@dataclass(kw_only=True)
class _Unit:
    """Images that stay on one side: a group, copies of one picture, or a single image."""

    paths: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)


def _units(teaching: Dataset, seed: int) -> list[_Unit]:
    """The units in an order drawn by the seed; an image without any label counts under a label of its own."""
    units: defaultdict[str, _Unit] = defaultdict(_Unit)
    columns = teaching.table.select("path", "label", "labels", "content")
    for (path, label, labels, content), name in zip(columns.iter_rows(), stay_together(teaching), strict=True):
        unit = units[content if name is None else name]
        unit.paths.append(path)
        unit.labels.update([label] if label is not None else labels or [""])
    return [units[key] for key in sorted(units, key=lambda key: sha256(f"{seed}:{key}".encode()))]


def _draw_units(
    units: list[_Unit], fractions: Mapping[Split, float], *, optional: Collection[Split]
) -> dict[str, Split]:
    """Deal out units so that each part gets its share of every label, the rarest label first.

    Raises:
        DataError: too-few-groups, when a part that is not optional, or a label in train, would be without images.

    Source: Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data", algorithm 1; here a unit is
    dealt out whole.
    """
    shares = _shares(fractions)
    total = sum((unit.labels for unit in units), Counter[str]())
    wanted = {part: {label: share * n for label, n in total.items()} for part, share in shares.items()}
    by_label: defaultdict[str, list[int]] = defaultdict(list)
    for i, unit in enumerate(units):
        for label in unit.labels:
            by_label[label].append(i)
    drawn: dict[int, Split] = {}
    for label in sorted(total, key=lambda name: (total[name], name)):
        for i in by_label[label]:
            if i in drawn:
                continue
            part = max(shares, key=lambda name: (wanted[name][label], sum(wanted[name].values())))
            drawn[i] = part
            for other, n in units[i].labels.items():
                wanted[part][other] -= n
    for part in shares:
        if part not in drawn.values() and part not in optional:
            _fill(part, units, drawn, total)
    _require_taught(units, drawn, total)
    return {path: part for i, part in drawn.items() for path in units[i].paths}


def _fill(part: Split, units: list[_Unit], drawn: dict[int, Split], total: Counter[str]) -> None:
    """Give an empty part the smallest unit of train that no label there depends on."""
    taught = sum((units[i].labels for i, place in drawn.items() if place == "train"), Counter[str]())
    spare = [
        i
        for i, place in drawn.items()
        if place == "train" and all(taught[label] > n for label, n in units[i].labels.items())
    ]
    if not spare:
        what = "groups" if any(len(unit.paths) > 1 for unit in units) else "images"
        message = f"{len(units)} {what} of {len(total)} labels cannot be dealt out: {part} would be empty"
        hint = "a group stays on one side of the split; use smaller groups, or more of them"
        raise DataError("too-few-groups", message, hint=hint)
    drawn[min(spare, key=lambda i: (len(units[i].paths), i))] = part


def _require_taught(units: list[_Unit], drawn: Mapping[int, Split], total: Counter[str]) -> None:
    taught = sum((units[i].labels for i, part in drawn.items() if part == "train"), Counter[str]())
    missing = [label for label in total if label and not taught[label]]
    if missing:
        message = f"{missing[0]!r} would have no image to learn from: its images are in too few groups"
        raise DataError("too-few-groups", message, hint="use smaller groups, or add images of it in other groups")


def _shares(fractions: Mapping[Split, float]) -> dict[Split, float]:
    """Share of all images for each part; each fraction is of what the parts before it leave."""
    shares: dict[Split, float] = {}
    left = 1.0
    for part, fraction in fractions.items():
        shares[part] = fraction * left
        left -= shares[part]
    return {**shares, "train": left}
