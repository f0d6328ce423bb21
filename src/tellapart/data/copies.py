"""Copies that are not the same bytes: kept on one side of the split, or reported where the user's own split parts them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tellapart.data.dataset import Dataset
from tellapart.data.near_duplicates import find_near_duplicates
from tellapart.data.quality import Finding
from tellapart.imaging.decode import Pixels
from tellapart.records import Progress, no_progress

MAX_SHARE = 0.5
"""Of a class that may show one picture: were it more, a part of the split would be left without the class."""

MIN_PICTURES = 5
"""Different ones that a class must show, for the same reason."""


def find_copies(dataset: Dataset, part: Dataset, thumbnails: Pixels, progress: Progress = no_progress) -> Dataset:
    """Fill in ``picture`` for images that show the same one, so that they lie on one side of every split.

    Copies are grouped only where every class still has pictures enough
    for all parts of a split, and a note says where they are not.

    Args:
        dataset: every file.
        part: the rows of it that are split, in use.
        thumbnails: (N, 32, 32) uint8 of the part's images; see ``make_thumbnails``.
        progress: called with the number of pairs looked at closely.
    """
    found = find_near_duplicates(thumbnails, progress=_renamed(progress))
    kept, parted = _affordable(part, found)
    dataset = dataset.with_notes(*_notes(kept, parted))
    paths = part.paths
    first = {paths[i]: paths[finding.indices[0]] for finding in kept for i in finding.indices}
    return dataset.with_columns(
        pl.col("path").replace_strict(first, default=None, return_dtype=pl.String).alias("picture")
    )


def stay_together(part: Dataset) -> list[str | None]:
    """For each image a name it shares with all that must lie on its side of every split; None for an image by itself.

    Images of one group stay together, and images that show one picture; groups that share a picture become one.
    """
    groups, pictures = part.table["group"].to_list(), part.table["picture"].to_list()
    first: dict[tuple[str, str], int] = {}
    edges = [
        (first.setdefault((kind, name), i), i)
        for kind, names in (("group", groups), ("picture", pictures))
        for i, name in enumerate(names)
        if name is not None
    ]
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (ends[0], ends[1])), shape=(len(part), len(part)))
    component = connected_components(graph, directed=False)[1].tolist()
    names: dict[int, str] = {}
    for i, (group, picture) in enumerate(zip(groups, pictures, strict=True)):
        if group is not None or picture is not None:
            names.setdefault(component[i], f"group {group}" if group is not None else f"picture {picture}")
    return [names.get(number) for number in component]


def leaked_paths(learned: Dataset, tested: Dataset, thumbnails: Pixels) -> list[str]:
    """Test images that show the same picture as an image that trained, chose or calibrated the model.

    Args:
        learned: M images of the other parts.
        tested: N test images.
        thumbnails: (M + N, 32, 32) uint8 of the first, then of the second.
    """
    leaked = set()
    for finding in find_near_duplicates(thumbnails):
        tests = {i - len(learned) for i in finding.indices if i >= len(learned)}
        if len(tests) < len(finding.indices):
            leaked |= tests
    paths = tested.paths
    return [paths[i] for i in sorted(leaked)]


def _affordable(part: Dataset, found: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """The findings whose images can stay together, and the others."""
    labels = part.table.select("label", "labels").iter_rows()
    names = [[label] if several is None else several for label, several in labels]
    copies = [Counter(name for i in finding.indices for name in names[i]) for finding in found]
    images = part.class_counts()
    pictures = Counter(images)
    for counts in copies:
        pictures.subtract(counts)
        pictures[counts.most_common(1)[0][0]] += 1  # the class that the picture counts for in a split
    kept: list[Finding] = []
    parted: list[Finding] = []
    for finding, counts in zip(found, copies, strict=True):
        fits = all(n <= MAX_SHARE * images[name] and pictures[name] >= MIN_PICTURES for name, n in counts.items())
        (kept if fits else parted).append(finding)
    return kept, parted


def _notes(kept: Sequence[Finding], parted: Sequence[Finding]) -> list[str]:
    notes = []
    if kept:
        images = sum(len(finding.indices) for finding in kept)
        pictures = f"{len(kept):,} picture{'s' * (len(kept) > 1)}"
        notes.append(
            f"{images:,} images are near-copies ({pictures}): each picture stays on one side of the split"
        )
    if parted:
        images = sum(len(finding.indices) for finding in parted)
        notes.append(
            f"{images:,} images look alike, and their class has hardly any other: they are split all the same"
        )
    return notes


def _renamed(progress: Progress) -> Progress:
    return lambda _stage, done, total: progress("copies", done, total)
