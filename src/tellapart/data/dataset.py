"""Dataset: one row for every file that was seen, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tellapart.imaging.decode import StoredImage
from tellapart.records import Counts, Task
from tellapart.storage import atomic_file, sha256

Split = Literal["train", "val", "calib", "test"]
Status = Literal["used", "refused", "duplicate", "skipped"]

SCHEMA = pl.Schema(
    {
        "path": pl.String(),  # as opened: the source's folder, then the way down
        "label": pl.String(),  # class name; null outside class folders and for several labels an image
        "labels": pl.List(
            pl.String
        ),  # of an image that may have several or none; null where there is one class an image
        "group": pl.String(),  # images of one group (patient, place, video) lie on one side of every split; null without groups
        "picture": pl.String(),  # path of the first image that shows the same picture; null where no other does
        "split": pl.String(),  # train, val, calib or test; null until split, and for what is not used
        "status": pl.String(),  # used, refused, duplicate or skipped
        "reason": pl.String(),  # error code or skip rule; empty for what is used
        "detail": pl.String(),  # the same in words; for a duplicate, the path that is kept
        "content": pl.String(),  # SHA-256 of the file's bytes; null until read
    }
)

LABEL_KEY = pl.coalesce("label", pl.col("labels").list.sort().list.join(", ")).alias("label")
"""An image's label, or its labels, as one text."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled images and everything that was found beside them.

    Attributes:
        table: one row a file, columns as in ``SCHEMA``, in the order the files were found.
        class_names: K names in natural order; a label's index is its place here.
        root: the folder the paths begin with.
        stored: images that lie inside other files, by path.
        task: ``classification``, or ``multilabel``: any number of labels an image.
        notes: what was recognised in the source, in words, to be said aloud.
    """

    table: pl.DataFrame
    class_names: tuple[str, ...]
    root: Path
    stored: Mapping[str, StoredImage] = field(default_factory=dict, repr=False)
    task: Task = "classification"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.table.schema != SCHEMA:
            raise ValueError(f"expected the columns {SCHEMA}, got {self.table.schema}")

    def __len__(self) -> int:
        return self.table.height

    @property
    def paths(self) -> list[str]:
        """Paths, in order."""
        return self.table["path"].to_list()

    @property
    def images(self) -> list[str | StoredImage]:
        """What to read the images from, in order: paths, or their places inside other files."""
        return [self.stored.get(path, path) for path in self.paths]

    @property
    def contents(self) -> list[str]:
        """Content hashes, in order."""
        return self.table["content"].to_list()

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices in 0..K-1, (N,); or (N, K) of 0 and 1 where an image may have several labels.

        Every row must have a label, or a list of them.
        """
        index = {name: i for i, name in enumerate(self.class_names)}
        if self.task == "classification":
            return np.array([index[label] for label in self.table["label"]], dtype=np.int64)
        present = np.zeros((len(self), len(index)), dtype=np.int64)
        for row, names in enumerate(self.table["labels"].to_list()):
            present[row, [index[name] for name in names]] = 1
        return present

    def where(self, *conditions: pl.Expr) -> "Dataset":
        """The rows that meet all conditions."""
        return replace(self, table=self.table.filter(*conditions))

    def used(self, *splits: Split) -> "Dataset":
        """The images in use; of the given parts only, when any is given."""
        part = self.where(pl.col("status") == "used")
        return part.where(pl.col("split").is_in(splits)) if splits else part

    def without(self, status: Status) -> "Dataset":
        """The files of every other status."""
        return self.where(pl.col("status") != status)

    def with_columns(self, *columns: pl.Expr | pl.Series) -> "Dataset":
        """The same files with columns replaced."""
        return replace(self, table=self.table.with_columns(*columns).cast(SCHEMA))

    def with_notes(self, *notes: str) -> "Dataset":
        """The same files with more to be said aloud."""
        return replace(self, notes=(*self.notes, *notes))

    def with_outcome(self, status: Status, outcomes: dict[str, tuple[str, str]]) -> "Dataset":
        """Take files out of use.

        Args:
            status: what becomes of them.
            outcomes: for each path, the reason's code and the same in words.
        """
        if not outcomes:
            return self
        rows = pl.DataFrame(
            {
                "path": list(outcomes),
                "new_reason": [reason for reason, _ in outcomes.values()],
                "new_detail": [detail for _, detail in outcomes.values()],
            }
        )
        hit = pl.col("new_reason").is_not_null()
        table = self.table.join(rows, on="path", how="left", maintain_order="left").with_columns(
            status=pl.when(hit).then(pl.lit(status)).otherwise("status"),
            split=pl.when(hit).then(None).otherwise("split"),
            reason=pl.coalesce("new_reason", "reason"),
            detail=pl.coalesce("new_detail", "detail"),
        )
        return replace(self, table=table.select(SCHEMA.names()))

    def counts(self) -> Counts:
        """What became of the files, as a sum that adds up."""
        n = dict(self.table["status"].value_counts().iter_rows())
        return Counts(
            seen=self.table.height,
            used=n.get("used", 0),
            refused=n.get("refused", 0),
            duplicates=n.get("duplicate", 0),
            skipped=n.get("skipped", 0),
        )

    def reasons(self) -> dict[str, int]:
        """Number of files for each reason they are not used, most frequent first."""
        unused = self.table.filter(pl.col("status") != "used")
        counts = unused.group_by("reason").len().sort("len", "reason", descending=[True, False])
        return dict(counts.iter_rows())

    def class_counts(self, *splits: Split) -> dict[str, int]:
        """Number of images in use for each class, also where it is none."""
        table = self.used(*splits).table
        named = table["label"] if self.task == "classification" else table["labels"].explode()
        found = dict(named.value_counts().iter_rows())
        return {name: found.get(name, 0) for name in self.class_names}

    def fingerprint(self) -> str:
        """SHA-256 over labels, splits and contents of the images in use, whatever their names and order."""
        rows = self.used().table.select("content", LABEL_KEY, "split").sort(pl.all())
        return sha256("\n".join(map("|".join, rows.fill_null("").iter_rows())).encode())

    def write_parquet(self, path: Path) -> None:
        """Write the table atomically."""
        with atomic_file(path) as file:
            self.table.write_parquet(file)
