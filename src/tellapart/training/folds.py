"""Folds and samples: which images learn and which are asked, copies and groups on one side, every class dealt out evenly."""

import numpy as np
import polars as pl

from tellapart.data.copies import stay_together
from tellapart.data.dataset import Dataset
from tellapart.evaluation.metrics import IntArray
from tellapart.training.train import learning_part

MAX_SEARCH_IMAGES = 5_000
"""The strength is chosen on at most so many images; it hardly moves with more, and the search would."""

_LEAST_OF_A_CLASS = 10  # images that are learned from, however little time there is


def halves(part: Dataset, seed: int) -> IntArray:
    """(N,) 0 or 1 for each image: half of each class, groups kept whole."""
    strata = strata_of(part.labels)
    groups = groups_of(part)
    if groups is None or len(np.unique(groups)) < 2:
        return even_folds(strata, 2, seed)
    return group_folds(strata, groups, 2, seed)


def groups_of(part: Dataset) -> IntArray | None:
    """(N,) number of each image's group, an image without one being its own; None where there are no groups."""
    names = stay_together(part)
    if not any(name is not None for name in names):
        return None
    keys = [(name or "", i if name is None else -1) for i, name in enumerate(names)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def strata_of(labels: IntArray) -> IntArray:
    """(N,) what folds and samples are balanced by: the class of each image, or of (N, K) labels its rarest one, K for none."""
    if labels.ndim == 1:
        return labels
    counts = np.where(labels, labels.sum(axis=0), np.iinfo(np.int64).max)
    rarest: IntArray = np.where(labels.any(axis=1), counts.argmin(axis=1), labels.shape[1])
    return rarest


def even_folds(labels: IntArray, folds: int, seed: int) -> IntArray:
    """(N,) fold of each image: every class is dealt out evenly, in an order drawn by the seed."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for k in range(int(labels.max()) + 1):
        of_class = rng.permutation(np.flatnonzero(labels == k))
        fold[of_class] = (dealt + np.arange(len(of_class))) % folds
        dealt += len(of_class)
    return fold


def group_folds(strata: IntArray, groups: IntArray, folds: int, seed: int) -> IntArray:
    """(N,) fold of each image: groups are dealt out whole, the largest first, each where its classes are rarest."""
    rng = np.random.default_rng(seed)
    names, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(strata.max()) + 1))
    np.add.at(counts, (group, strata), 1)
    dealt = np.zeros((folds, counts.shape[1]))
    fold_of_group = np.empty(len(names), dtype=np.int64)
    shuffled = rng.permutation(len(names))
    for i in shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]:
        fold = min(range(folds), key=lambda f: (float(dealt[f] @ counts[i]), float(dealt[f].sum())))
        fold_of_group[i] = fold
        dealt[fold] += counts[i]
    result: IntArray = fold_of_group[group]
    return result


def sample_rows(labels: IntArray, limit: int, seed: int, *, least: int = 2) -> IntArray:
    """Rows, ascending: all of them up to the limit, else a stratified draw that leaves every class so many at least.

    Args:
        labels: (N,) class indices, or (N, K) of 0 and 1.
        limit: rows that are wanted; a few more come where classes are small.
        seed: draws them.
        least: of a class, where it has as many.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    share = limit / len(labels)
    drawn = []
    strata = strata_of(labels)
    for k in range(int(strata.max()) + 1):
        of_class = rng.permutation(np.flatnonzero(strata == k))
        drawn.append(of_class[: max(least, round(share * len(of_class)))])
    return np.sort(np.concatenate(drawn))


def draw_images(learning: Dataset, images: int) -> IntArray:
    """Rows of about so many images, the same share of each class, and of none too few."""
    return sample_rows(learning.labels, images, seed=0, least=_LEAST_OF_A_CLASS)


def thin_out(dataset: Dataset, images: int) -> Dataset:
    """Leave about so many images to learn from; the others are skipped, and that is said. Test images stay."""
    learning = learning_part(dataset)
    drawn = draw_images(learning, images)
    if len(drawn) == len(learning):
        return dataset
    why = f"there was time to learn from {len(drawn):,} of {len(learning):,} images, drawn at random"
    skipped = learning.where(~pl.int_range(pl.len()).is_in(drawn))
    return dataset.with_outcome("skipped", dict.fromkeys(skipped.paths, ("no-time", why))).with_notes(why)
