"""What a source holds, and how it becomes a Dataset: the same rules whatever way the images came."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import polars as pl

from tellapart.data.dataset import SCHEMA, Dataset, Split, Status
from tellapart.errors import DataError, RecipeError
from tellapart.imaging.decode import StoredImage
from tellapart.imaging.files import natural_key
from tellapart.records import SourceOptions, Task

# Keras' test folders, Kaggle's archives, torchvision's ImageFolder and Hugging Face's files all use some of these.
SPLIT_NAMES: Mapping[str, Split] = MappingProxyType(
    {
        "train": "train",
        "training": "train",
        "training_set": "train",
        "val": "val",
        "valid": "val",
        "validation": "val",
        "validation_set": "val",
        "calib": "calib",
        "calibration": "calib",
        "test": "test",
        "testing": "test",
        "test_set": "test",
    }
)
_SHOWN_NAMES = 8


class Rows:
    """Rows of a Dataset in the making, column by column: a million of them must stay small."""

    def __init__(self) -> None:
        self._columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names()}

    def use(
        self,
        path: str,
        *,
        label: str | None = None,
        labels: list[str] | None = None,
        group: str | None = None,
        split: Split | None = None,
    ) -> None:
        """Add an image."""
        self._add(path, label, labels, group, None, split, "used", "", "", None)

    def set_aside(
        self, path: str, status: Status, reason: str, detail: str = "", split: Split | None = None
    ) -> None:
        """Add a file, row or member that is not used, and why."""
        self._add(path, None, None, None, None, split, status, reason, detail, None)

    def table(self) -> pl.DataFrame:
        """All rows, with the columns of a Dataset."""
        return pl.DataFrame(self._columns, schema=SCHEMA)

    def _add(self, *cells: object) -> None:
        for column, cell in zip(self._columns.values(), cells, strict=True):
            column.append(cell)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Everything a source was found to hold, before it is decided which part and which classes count.

    Attributes:
        table: as in Dataset; ``split`` is there also for rows that are not used.
        root: the folder the paths begin with.
        shown: what messages call the source.
        class_names: those that must be there, such as the class folders; empty: those of the images.
        stored: images that lie inside other files, by path.
        notes: what was recognised.
        hint: what to give instead, where there is no image.
        add_hint: what to do about a class without images; ``{}`` is its name.
    """

    table: pl.DataFrame
    root: Path
    shown: str
    task: Task = "classification"
    class_names: tuple[str, ...] = ()
    stored: Mapping[str, StoredImage] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    hint: str = ""
    add_hint: str = "add images of {!r}, or leave it out"

    def dataset(self, table: pl.DataFrame, class_names: tuple[str, ...]) -> Dataset:
        """A Dataset of these rows; what is not used has no split."""
        split = pl.when(pl.col("status") == "used").then("split")
        return Dataset(
            table=table.with_columns(split=split),
            class_names=class_names,
            root=self.root,
            stored=self.stored,
            task=self.task,
            notes=self.notes,
        )


def with_groups(listing: Listing, options: SourceOptions) -> pl.DataFrame:
    """The rows, with groups from the pattern on the path where there is one.

    Raises:
        RecipeError: bad-setting, when the pattern is found in no path.
    """
    if not options.group_pattern:
        return listing.table
    pattern = re.compile(options.group_pattern)
    prefix = f"{listing.root}/"
    groups = [_group_of(pattern, path.removeprefix(prefix)) for path in listing.table["path"]]
    if not any(groups):
        example = listing.table["path"][0].removeprefix(prefix) if len(groups) else "nothing"
        message = f"group_pattern {options.group_pattern!r} is found in no path of {listing.shown}"
        raise RecipeError("bad-setting", message, hint=f"paths look like {example}")
    return listing.table.with_columns(pl.Series("group", groups, dtype=pl.String))


def training_dataset(listing: Listing, options: SourceOptions) -> Dataset:
    """All that a source holds, to learn from.

    Raises:
        DataError: no-images, single-class, empty-class, class-names-clash, class-mismatch.
        RecipeError: bad-setting.
    """
    table = with_groups(listing, options)
    used = table.filter(pl.col("status") == "used")
    learned = used.filter(pl.col("split").is_null() | (pl.col("split") == "train"))
    class_names = listing.class_names or _in_natural_order(_labels(learned))
    _require_distinct(class_names)
    dataset = listing.dataset(table, class_names)
    _require_images(listing, used)
    _require_known(used, class_names)
    _require_classes(listing, learned, class_names)
    return dataset


def test_dataset(
    listing: Listing, class_names: tuple[str, ...], options: SourceOptions, task: Task | None
) -> Dataset:
    """What a source holds to measure a model on: its test part, or all of it.

    Raises:
        DataError: no-images, class-mismatch, task-mismatch.
    """
    table = with_groups(listing, options)
    used = pl.col("status") == "used"
    if table.filter(used & (pl.col("split") == "test")).height:
        table = table.filter(pl.col("split") == "test")
    _require_images(listing, table.filter(used))
    listing, table = _as_task(listing, table, task)
    table = table.with_columns(split=pl.when(used).then(pl.lit("test")))
    dataset = listing.dataset(table, class_names)
    _require_columns(listing, class_names)
    unknown = _unknown(dataset.used().table, class_names)
    detail = f"the model knows {', '.join(class_names)}"
    if unknown.height == len(dataset.used()):
        found = ", ".join(dict.fromkeys(_labels(unknown)))
        message = f"no label in {listing.shown} is one of the model's classes ({', '.join(class_names)})"
        raise DataError("class-mismatch", message, hint=f"found: {found}; names must match to the letter")
    return dataset.with_outcome("refused", dict.fromkeys(unknown["path"], ("unknown-class", detail)))


def names_in_words(names: Iterable[str]) -> str:
    """The first of them, and how many more."""
    names = list(names)
    more = f" and {len(names) - _SHOWN_NAMES:,} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _group_of(pattern: re.Pattern[str], path: str) -> str | None:
    found = pattern.search(path)
    if found is None:
        return None
    return found.group(1) if pattern.groups else found.group()


def _labels(rows: pl.DataFrame) -> list[str]:
    """Every label of every row, again and again."""
    several = rows["labels"].drop_nulls().explode(empty_as_null=False)
    return [*rows["label"].drop_nulls(), *several]


def _in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=lambda name: (natural_key(name), name)))


def _unknown(rows: pl.DataFrame, class_names: Sequence[str]) -> pl.DataFrame:
    known = pl.Series(class_names, dtype=pl.String).implode()
    other = ~pl.col("label").is_in(known)
    others = pl.col("labels").list.set_difference(pl.lit(list(class_names))).list.len() > 0
    return rows.filter(other.fill_null(False) | others.fill_null(False))


def _as_task(listing: Listing, table: pl.DataFrame, task: Task | None) -> tuple[Listing, pl.DataFrame]:
    """One class an image is a list of one label; the reverse is not true."""
    if task in (None, listing.task):
        return listing, table
    if task == "classification":
        message = f"{listing.shown} has several labels an image, the model has one"
        raise DataError(
            "task-mismatch", message, hint="name a column with one class an image: --label-column NAME"
        )
    listed = pl.when(pl.col("label").is_not_null()).then(pl.concat_list("label"))
    table = table.with_columns(labels=listed, label=pl.lit(None, pl.String)).cast(SCHEMA)
    return replace(listing, task="multilabel", class_names=()), table


def _require_columns(listing: Listing, class_names: tuple[str, ...]) -> None:
    """Without a column for one of the model's labels nothing is known of that label."""
    if listing.task == "multilabel" and listing.class_names:
        missing = [name for name in class_names if name not in listing.class_names]
        if missing:
            message = f"{listing.shown} says nothing about {names_in_words(missing)}, which the model answers for"
            raise DataError(
                "class-mismatch", message, hint=f"it has {names_in_words(listing.class_names)}; see --labels"
            )


def _require_distinct(class_names: tuple[str, ...]) -> None:
    by_folded: dict[str, str] = {}
    for name in class_names:
        other = by_folded.setdefault(name.casefold(), name)
        if other != name:
            message = f"the classes {other!r} and {name!r} have names that differ only by case"
            raise DataError("class-names-clash", message, hint="write both alike, or rename one")


def _require_images(listing: Listing, used: pl.DataFrame) -> None:
    if used.height:
        return
    message = f"no image with a label was found in {listing.shown}"
    refused = listing.table.filter(pl.col("status") == "refused")
    if refused.height:
        reasons = refused["reason"].value_counts().sort("count", "reason", descending=[True, False])
        counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.iter_rows())
        message = f"none of the {refused.height:,} images of {listing.shown} can be used: {counted}; {refused['detail'][0]}"
    raise DataError("no-images", message, hint=listing.hint)


def _require_known(used: pl.DataFrame, class_names: tuple[str, ...]) -> None:
    """What is tested and not taught could never be answered."""
    unknown = _unknown(used, class_names)
    if unknown.height:
        path, split = unknown["path"][0], unknown["split"][0]
        found = ", ".join(name for name in dict.fromkeys(_labels(unknown)) if name not in class_names)
        message = (
            f"{path} is of a class ({found}) that none of the training images has ({names_in_words(class_names)})"
        )
        raise DataError("class-mismatch", message, hint=f"rename that class in {split}, or leave it out")


def _require_classes(listing: Listing, learned: pl.DataFrame, class_names: tuple[str, ...]) -> None:
    if len(class_names) < 2:
        only = next(iter(class_names), "")
        message = f"all images in {listing.shown} are of one class, {only!r}; telling apart needs two"
        raise DataError("single-class", message, hint=f"add images of something else than {only!r}")
    counts = Counter(_labels(learned))
    for name in class_names:
        if not counts[name]:
            message = f"class {name!r} has no image in {listing.shown}"
            raise DataError("empty-class", message, hint=listing.add_hint.format(name))
