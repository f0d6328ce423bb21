"""Near-duplicates: images that show the same picture re-encoded, resized, cropped, mirrored or brightened.

Three steps, none of which compares every image with every other where there are many. Candidates: each image's nearest few by
the low frequencies of its thumbnail, and by its embedding where there is one. Proof: two thumbnails are laid over each other,
moved and scaled until they fit, and their edges compared. Groups: every member is proven against the group's first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from tellapart.data.quality import Finding, FloatArray
from tellapart.errors import RecipeError
from tellapart.imaging.decode import Pixels
from tellapart.imaging.pool import map_ordered
from tellapart.records import Progress, no_progress

MIN_SIMILARITY = 0.75
"""Of the edges of two aligned thumbnails. Measured on photos: copies have 0.84 and more, strangers 0.55 and less."""

MAX_EXHAUSTIVE = 16_000
"""Up to so many images all pairs are screened; beyond, those that share a leaf of a random tree."""

IntArray = NDArray[np.int64]

_FREQUENCIES = 8
_NEIGHBORS = 4  # of an image that are looked at closely
_MIN_LOW_FREQUENCY_COSINE = 0.8
_MIN_EMBEDDING_COSINE = 0.65
_EMBEDDING_DIMS = 128
_FLAT_CONTRAST = 3.0  # gray levels: images of nothing all look alike, and are reported as such
_TREES = 8
_TREE_DIMS = 16
_LEAF_IMAGES = 2_048
_ROWS_A_BLOCK = 512
_PAIRS_A_BLOCK = 256  # their matrices fit into a processor's cache
# Side in pixels, Gauss-Newton steps at it, and the similarity that is needed to go on: it spares most strangers the dearer
# steps. Copies of photos, also the harder ones of bench/duplicates.py, had 0.72 and 0.65 at the least.
_STEPS = ((8, 4, 0.65), (16, 3, 0.55), (32, 2, 0.0))
_MAX_CHANGE = 0.25  # of scale, and of place in half widths
_ALIKE_MARGIN = 0.25
_ALIKE_MIN_IMAGES = 32  # with fewer it cannot be known how alike strangers are
# What it takes to name a change.
_CROP = 0.02
_GAIN = 0.08
_GRAY_LEVELS = 6.0
_RESIZE = 0.05


def find_near_duplicates(
    thumbnails: Pixels,
    embeddings: FloatArray | None = None,
    *,
    sizes: IntArray | None = None,
    min_similarity: float = MIN_SIMILARITY,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Find groups of images that show the same picture.

    Where the images of a data set are all alike (digits, X-rays) the similarity asked for rises with the usual one. Images of
    one gray are left out. Memory: 4 kB an image in all (bench/scale.py), and embeddings with a kilobyte more.

    Args:
        thumbnails: (N, 32, 32) uint8; see ``make_thumbnail``.
        embeddings: (N, D); they add pairs whose thumbnails lie far apart, such as large crops.
        sizes: (N, 2) width and height in pixels as stored; needed to tell ``resized``.
        min_similarity: 0.7-1.
        seed: draws the trees.
        progress: called with the number of pairs looked at closely.

    Returns:
        One ``near-duplicate`` a group, surest first. The group's first image is the one every other was compared with; evidence
        has, for each other in order, ``similarity`` (0-1) and ``changes``: any of mirrored, cropped, resized, brightened, or
        re-encoded where it is none of them.

    Raises:
        RecipeError: bad-setting.
    """
    if not 0.7 <= min_similarity <= 1:
        raise RecipeError("bad-setting", f"min_similarity must be 0.7 to 1, got {min_similarity}")
    screen = _Screen.of(thumbnails)
    spaces = [_Space(screen.even, screen.odd, _MIN_LOW_FREQUENCY_COSINE)]
    if embeddings is not None:
        spaces.append(_embedding_space(embeddings, screen.rows, seed))
    nearest = [_nearest(space, seed) for space in spaces]
    pairs = _unique_pairs(nearest, len(screen.rows))
    proof = _prove(screen, pairs, progress)
    needed = max(min_similarity, _usual_threshold(pairs, proof.similarity, nearest[0]))
    groups = list(_groups(screen, pairs[proof.similarity >= needed], needed))
    return sorted(_findings(screen, groups, sizes), key=lambda finding: (-finding.severity, finding.indices))


# Candidates.


@dataclass(frozen=True, kw_only=True, slots=True)
class _Screen:
    """The images worth comparing, with the low frequencies of their thumbnails.

    Attributes:
        rows: (n,) their rows among all images.
        thumbnails: all (N, 32, 32).
        even: (n, 32) parts of unit vectors that mirroring leaves as they are.
        odd: (n, 32) parts whose sign it turns.
    """

    rows: IntArray
    thumbnails: Pixels
    even: FloatArray
    odd: FloatArray

    @classmethod
    def of(cls, thumbnails: Pixels) -> "_Screen":
        basis = _cosines(thumbnails.shape[1])
        rows, vectors = [], []
        for start in range(0, len(thumbnails), _ROWS_A_BLOCK):
            block = thumbnails[start : start + _ROWS_A_BLOCK].astype(np.float32)
            lively = np.flatnonzero(block.std(axis=(1, 2)) >= _FLAT_CONTRAST)
            waves = basis.T @ block[lively] @ basis
            waves[:, 0, 0] = 0.0
            rows.append(start + lively)
            vectors.append(waves / (np.linalg.norm(waves, axis=(1, 2), keepdims=True) + np.float32(1e-6)))
        none = np.empty((0, _FREQUENCIES, _FREQUENCIES), np.float32)
        found: FloatArray = np.concatenate([none, *vectors])
        return cls(
            rows=np.concatenate([np.empty(0, np.int64), *rows]),
            thumbnails=thumbnails,
            even=found[:, :, 0::2].reshape(-1, _FREQUENCIES**2 // 2),
            odd=found[:, :, 1::2].reshape(-1, _FREQUENCIES**2 // 2),
        )

    def pair(self, pairs: IntArray) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """Both thumbnails of each pair, the second mirrored where that fits better; and where it was."""
        first, second = self.thumbnails[self.rows[pairs]].swapaxes(0, 1).astype(np.float32)
        mirrored = (self.odd[pairs[:, 0]] * self.odd[pairs[:, 1]]).sum(axis=1) < 0
        second[mirrored] = second[mirrored, :, ::-1]
        return first, second, mirrored


def _cosines(side: int) -> FloatArray:
    """(side, 8) lowest basis vectors of the cosine transform (DCT-II)."""
    places = (2 * np.arange(side)[:, None] + 1) * np.arange(_FREQUENCIES)
    basis = np.cos(np.pi * places / (2 * side)) * np.sqrt(2 / side)
    basis[:, 0] /= np.sqrt(2)
    lowest: FloatArray = basis.astype(np.float32)
    return lowest


@dataclass(frozen=True, slots=True)
class _Space:
    """Unit vectors, in two parts: images are as close as the cosine at the better sign of the second."""

    even: FloatArray
    odd: FloatArray
    min_cosine: float

    def cosines(self, rows: IntArray, others: IntArray) -> FloatArray:
        """(len(rows), len(others)), of whichever is closer: the other image, or its mirror image."""
        cosines: FloatArray = self.even[rows] @ self.even[others].T
        if self.odd.shape[1]:
            mirror = self.odd[rows] @ self.odd[others].T
            cosines += np.abs(mirror, out=mirror)
        return cosines


@dataclass(frozen=True, slots=True)
class _Nearest:
    """The nearest of each image: (n, 4) rows, -1 where there are fewer; and their cosines."""

    rows: NDArray[np.int32]
    cosines: FloatArray


def _embedding_space(embeddings: FloatArray, rows: IntArray, seed: int) -> _Space:
    """Centred embeddings of some rows in fewer dimensions, which keep their cosines to about 0.09.

    Source: Johnson and Lindenstrauss 1984, "Extensions of Lipschitz mappings into a Hilbert space", lemma 1.
    """
    dim = embeddings.shape[1]
    random = np.random.default_rng(seed).normal(size=(dim, min(dim, _EMBEDDING_DIMS))).astype(np.float32)
    blocks = [embeddings[rows[i : i + 8192]] @ random for i in range(0, len(rows), 8192)]
    projected = np.concatenate([np.empty((0, random.shape[1]), np.float32), *blocks])
    if len(projected):
        projected -= projected.mean(axis=0)
    projected /= np.linalg.norm(projected, axis=1, keepdims=True) + 1e-6
    return _Space(projected, np.empty((len(projected), 0), np.float32), _MIN_EMBEDDING_COSINE)


def _nearest(space: _Space, seed: int) -> _Nearest:
    """The nearest of each image among all, or among those of its leaves."""
    n = len(space.even)
    rows = np.full((n, _NEIGHBORS), -1, np.int32)
    cosines = np.full((n, _NEIGHBORS), -1.0, np.float32)
    blocks = (
        (leaf[i : i + _ROWS_A_BLOCK], leaf)
        for leaf in _leaves(space, seed)
        for i in range(0, len(leaf), _ROWS_A_BLOCK)
    )

    def search(task: tuple[IntArray, IntArray]) -> tuple[IntArray, _Nearest]:
        return task[0], _nearest_in_leaf(space, *task)

    # The threads keep all processors busy; a matrix library with threads of its own makes them slower.
    with threadpool_limits(1, user_api="blas"):
        for block, found in map_ordered(search, blocks):
            rows[block], cosines[block] = _closest(
                np.concatenate([rows[block], found.rows], axis=1),
                np.concatenate([cosines[block], found.cosines], axis=1),
            )
    return _Nearest(rows, cosines)


def _leaves(space: _Space, seed: int) -> Iterator[IntArray]:
    """Sets of images to compare with each other: all at once, or the leaves of several random trees.

    A tree cuts the images in two halves at the median of one direction after another, so no set ever grows. Its directions are
    random rotations of those in which the images differ most: there, copies lie close for their distance from the rest.

    Source: Dasgupta and Freund 2008, "Random projection trees and low dimensional manifolds", section 2.
    """
    n = len(space.even)
    if n <= MAX_EXHAUSTIVE:
        yield np.arange(n)
        return
    # The same for an image and its mirror image.
    features = np.concatenate([space.even, np.abs(space.odd)], axis=1)
    features -= features.mean(axis=0)
    _, directions = np.linalg.eigh(features.T @ features)
    principal = features @ directions[:, -_TREE_DIMS:]
    rng = np.random.default_rng(seed)
    for _ in range(_TREES):
        rotation, _ = np.linalg.qr(rng.normal(size=(_TREE_DIMS, _TREE_DIMS)))
        yield from _tree(principal @ rotation.astype(np.float32))


def _tree(places: FloatArray) -> Iterator[IntArray]:
    branches = [(np.arange(len(places)), 0)]
    while branches:
        rows, depth = branches.pop()
        if len(rows) <= _LEAF_IMAGES:
            yield rows
            continue
        half = len(rows) // 2
        order = np.argpartition(places[rows, depth % _TREE_DIMS], half)
        branches += [(rows[order[:half]], depth + 1), (rows[order[half:]], depth + 1)]


def _nearest_in_leaf(space: _Space, block: IntArray, leaf: IntArray) -> _Nearest:
    """The nearest of ``block`` in ``leaf``: the largest is taken out again and again, of the rows that still have one."""
    rows = np.full((len(block), _NEIGHBORS), -1, np.int32)
    cosines = np.full((len(block), _NEIGHBORS), -1.0, np.float32)
    left = space.cosines(block, leaf)
    left[block[:, None] == leaf] = -1.0
    live = np.arange(len(block))
    for k in range(_NEIGHBORS):
        best = left.argmax(axis=1)
        largest = left[np.arange(len(left)), best]
        near = largest >= space.min_cosine
        live, left, best = live[near], left if near.all() else left[near], best[near]
        if not len(live):
            break
        rows[live, k], cosines[live, k] = leaf[best], largest[near]
        left[np.arange(len(left)), best] = -1.0
    return _Nearest(rows, cosines)


def _closest(rows: NDArray[np.int32], cosines: FloatArray) -> tuple[NDArray[np.int32], FloatArray]:
    """The 4 closest different ones of each row of (B, 8) neighbours."""
    by_row = np.argsort(rows, axis=1, kind="stable")
    rows, cosines = np.take_along_axis(rows, by_row, axis=1), np.take_along_axis(cosines, by_row, axis=1)
    again = np.zeros(rows.shape, dtype=bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    rows[again], cosines[again] = -1, -1.0
    closest = np.argsort(-cosines, axis=1, kind="stable")[:, :_NEIGHBORS]
    return np.take_along_axis(rows, closest, axis=1), np.take_along_axis(cosines, closest, axis=1)


def _unique_pairs(nearest: list[_Nearest], n: int) -> IntArray:
    """(M, 2) pairs of neighbours, smaller row first, each once and in order."""
    keys = [np.empty(0, np.int64)]
    for found in nearest:
        image, place = np.nonzero(found.rows >= 0)
        other = found.rows[image, place].astype(np.int64)
        keys.append(np.minimum(image, other) * n + np.maximum(image, other))
    key = np.unique(np.concatenate(keys))
    return np.stack(np.divmod(key, max(n, 1)), axis=1)


def _usual_threshold(pairs: IntArray, similarity: FloatArray, nearest: _Nearest) -> float:
    """The similarity that stands out where strangers are alike: that of most images' fourth neighbour, and most of the rest to 1.

    An image rarely has four copies, and most images hardly ever: the fourth neighbour shows how alike strangers are.
    """
    n = len(nearest.rows)
    if n < _ALIKE_MIN_IMAGES:
        return 0.0
    last = nearest.rows[:, -1].astype(np.int64)
    image = np.flatnonzero(last >= 0)
    key = np.minimum(image, last[image]) * n + np.maximum(image, last[image])
    usual = np.zeros(n, np.float32)
    usual[image] = similarity[np.searchsorted(pairs[:, 0] * n + pairs[:, 1], key)]
    return 1 - _ALIKE_MARGIN * (1 - float(np.median(usual)))


# Proof.


@dataclass(frozen=True, slots=True)
class _Proof:
    """How M pairs compare.

    Attributes:
        similarity: (M,) correlation of their edges once aligned, 0-1; 0 where it was soon too low to go on.
        shift: (M, 4) scale - 1 and place along the width, then the height, of the first image in the second.
        gain: (M,) contrast of the second by the first's.
        offset: (M,) mean gray level of the second less the first's.
        mirrored: (M,) whether the second was mirrored.
    """

    similarity: FloatArray
    shift: FloatArray
    gain: FloatArray
    offset: FloatArray
    mirrored: NDArray[np.bool_]


def _prove(screen: _Screen, pairs: IntArray, progress: Progress = no_progress) -> _Proof:
    """Compare pairs, in threads."""
    blocks = (pairs[i : i + _PAIRS_A_BLOCK] for i in range(0, max(1, len(pairs)), _PAIRS_A_BLOCK))
    proofs = []
    with threadpool_limits(1, user_api="blas"):
        for proof in map_ordered(lambda block: _prove_block(screen, block), blocks):
            proofs.append(proof)
            progress("near-duplicates", min(len(proofs) * _PAIRS_A_BLOCK, len(pairs)), len(pairs))
    return _Proof(*(np.concatenate(parts) for parts in zip(*map(_parts, proofs), strict=True)))


def _parts(proof: _Proof) -> tuple[NDArray[Any], ...]:
    return proof.similarity, proof.shift, proof.gain, proof.offset, proof.mirrored


def _prove_block(screen: _Screen, pairs: IntArray) -> _Proof:
    first, second, mirrored = screen.pair(pairs)
    shift = np.zeros((len(pairs), 4), np.float32)
    similarity = np.zeros(len(pairs), np.float32)
    alive = np.arange(len(pairs))
    for side, steps, enough in _STEPS:
        a, b = _reduced(first[alive], side), _reduced(second[alive], side)
        moved = shift[alive]
        for _ in range(steps):
            moved = _gauss_newton(a, b, moved)
        still = np.zeros_like(moved)
        unmoved, better = _edge_correlation(a, b, still), _edge_correlation(a, b, moved)
        shift[alive] = np.where((better > unmoved)[:, None], moved, still)
        similarity[alive] = np.maximum(better, unmoved)
        hopeless = similarity[alive] < enough
        similarity[alive[hopeless]] = 0.0
        alive = alive[~hopeless]
    warped, inside = _warp(second, shift)
    (mean_a, std_a), (mean_b, std_b) = _moments(first, inside), _moments(warped, inside)
    return _Proof(similarity, shift, std_b / std_a, mean_b - mean_a, mirrored)


def _gauss_newton(first: FloatArray, second: FloatArray, shift: FloatArray) -> FloatArray:
    """One step towards the shift at which the second, of free contrast and brightness, equals the first.

    Source: Lucas and Kanade 1981, "An Iterative Image Registration Technique", section 4.3.
    """
    pairs, side, _ = first.shape
    warped, inside = _warp(second, shift)
    (mean_a, std_a), (mean_b, std_b) = _moments(first, inside), _moments(warped, inside)
    a = (first - mean_a[:, None, None]) * (inside / std_a[:, None, None])
    b = (warped - mean_b[:, None, None]) * (inside / std_b[:, None, None])
    slope = inside * (side / 4) / std_b[:, None, None]  # central differences, by half widths
    across, down = np.zeros_like(b), np.zeros_like(b)
    across[:, :, 1:-1] = warped[:, :, 2:] - warped[:, :, :-2]
    down[:, 1:-1] = warped[:, 2:] - warped[:, :-2]
    across, down = across * slope, down * slope
    place = _places(side)
    columns = (across * place, across, down * place[:, None], down, b, inside)
    jacobian = np.stack(columns, axis=1).reshape(pairs, len(columns), side * side)
    normal = jacobian @ jacobian.swapaxes(1, 2)
    # A little damping: where there is nothing to see, nothing moves.
    normal += 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 * np.eye(6, dtype=np.float32)
    step = np.linalg.solve(normal, jacobian @ (a - b).reshape(pairs, side * side, 1))[:, :4, 0]
    moved: FloatArray = np.clip(shift + np.clip(step, -0.1, 0.1), -_MAX_CHANGE, _MAX_CHANGE)
    return moved


def _warp(images: FloatArray, shift: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Images scaled and moved, by linear interpolation; and 1 where there is something to see, 0 beyond their edges."""
    side = images.shape[1]
    place = _places(side)
    across = (1 + shift[:, 0:1]) * place + shift[:, 1:2]
    down = (1 + shift[:, 2:3]) * place + shift[:, 3:4]
    columns = _lines(images.swapaxes(1, 2), across).swapaxes(1, 2)
    inside = (np.abs(down) <= 1)[:, :, None] & (np.abs(across) <= 1)[:, None, :]
    return _lines(columns, down), inside.astype(np.float32)


def _lines(images: FloatArray, place: FloatArray) -> FloatArray:
    """Rows of each image at places from -1 to 1, the outermost repeated beyond."""
    side = images.shape[1]
    position = np.clip((place + 1) * (side / 2) - 0.5, 0, side - 1)
    before = np.minimum(position.astype(np.int64), side - 2)
    weight = (position - before).astype(np.float32)[:, :, None]
    image = np.arange(len(images))[:, None]
    lines: FloatArray = images[image, before] * (1 - weight) + images[image, before + 1] * weight
    return lines


def _places(side: int) -> FloatArray:
    """Middles of pixels, from -1 to 1."""
    return ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)


def _reduced(images: FloatArray, side: int) -> FloatArray:
    by = images.shape[1] // side
    reduced: FloatArray = images.reshape(len(images), side, by, side, by).mean(axis=(2, 4))
    return reduced


def _moments(images: FloatArray, inside: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of the pixels inside, (M,) each."""
    n = inside.sum(axis=(1, 2)) + 1e-6
    mean = (images * inside).sum(axis=(1, 2)) / n
    variance = (np.square(images - mean[:, None, None]) * inside).sum(axis=(1, 2)) / n
    return mean, np.sqrt(variance) + 1e-3


def _edge_correlation(first: FloatArray, second: FloatArray, shift: FloatArray) -> FloatArray:
    """(M,) correlation, 0-1, of the roots of the differences between neighbouring pixels.

    Differences, because smooth light and shade is much the same in many photos; their roots, because a frame or a horizon
    would outweigh all the rest.
    """
    warped, inside = _warp(second, shift)
    seen = inside[:, 1:, 1:] * inside[:, :-1, :-1]
    a, b = (_edges(images) * seen for images in (first, warped))
    product = np.einsum("cmyx,cmyx->m", a, b)
    power = np.einsum("cmyx,cmyx->m", a, a) * np.einsum("cmyx,cmyx->m", b, b)
    correlation: FloatArray = np.clip(product / np.sqrt(power + 1e-3), 0, 1)
    return correlation


def _edges(images: FloatArray) -> FloatArray:
    """(2, M, S - 1, S - 1) signed roots of the differences along and across."""
    edges = np.stack([images[:, 1:, 1:] - images[:, 1:, :-1], images[:, 1:, 1:] - images[:, :-1, 1:]])
    return np.copysign(np.sqrt(np.abs(edges)), edges)


# Groups.


def _groups(screen: _Screen, links: IntArray, needed: float) -> Iterator[IntArray]:
    """Stars of linked images: those with most links first take all that are proven to be like them; each star's first is first.

    A chain cannot join strangers, for every member is compared with the first. Neighbours of its neighbours are, too: an image
    with many copies is not linked with all of them.
    """
    n = len(screen.rows)
    ends = np.concatenate([links, links[:, ::-1]])
    graph = csr_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(n, n))
    degree = np.diff(graph.indptr)
    free = degree > 0
    # The stable order makes the earliest image the first of its group where all have as many links.
    for first in np.argsort(-degree, kind="stable")[: np.count_nonzero(free)].tolist():
        if not free[first]:
            continue
        free[first] = False
        direct = _neighbors(graph, first)
        further = np.unique(np.concatenate([_neighbors(graph, i) for i in direct]))
        further = np.setdiff1d(further[free[further]], direct)
        if len(further):
            proof = _prove_block(screen, _star(first, further))
            further = further[proof.similarity >= needed]
        others = np.sort(np.concatenate([direct[free[direct]], further]))
        if len(others):
            free[others] = False
            yield np.concatenate([[first], others])


def _neighbors(graph: csr_array, row: int) -> IntArray:
    neighbors: IntArray = graph.indices[graph.indptr[row] : graph.indptr[row + 1]].astype(np.int64)
    return neighbors


def _star(first: int, others: IntArray) -> IntArray:
    return np.stack([np.full_like(others, first), others], axis=1)


def _findings(screen: _Screen, groups: list[IntArray], sizes: IntArray | None) -> Iterator[Finding]:
    """Compare all members with their first once more, all at once, for the evidence."""
    stars = [_star(int(group[0]), group[1:]) for group in groups]
    pairs = np.concatenate([np.empty((0, 2), np.int64), *stars])
    proof = _prove(screen, pairs)
    similarity = np.round(proof.similarity, 4).tolist()
    changes = [
        _changes(proof, k, sizes[screen.rows[pairs[k]]] if sizes is not None else None) for k in range(len(pairs))
    ]
    start = 0
    for group in groups:
        others = slice(start, start + len(group) - 1)
        start = others.stop
        yield Finding(
            kind="near-duplicate",
            indices=tuple(screen.rows[group].tolist()),
            severity=max(similarity[others]),
            evidence={"similarity": tuple(similarity[others]), "changes": tuple(changes[others])},
        )


def _changes(proof: _Proof, k: int, sizes: IntArray | None) -> tuple[str, ...]:
    """What was done to the one image to get the other."""
    shift = proof.shift[k]
    cropped = bool((np.abs(shift) > _CROP).any())
    # Where the first is the larger part of the picture, it is the second that was cut.
    expected = 1 + shift[[0, 2]] if cropped else 1.0
    resized = sizes is not None and bool((np.abs(np.log(sizes[1] / sizes[0] * expected)) > _RESIZE).any())
    brightened = abs(np.log(proof.gain[k])) > _GAIN or abs(proof.offset[k]) > _GRAY_LEVELS
    named = {
        "mirrored": bool(proof.mirrored[k]),
        "cropped": cropped,
        "resized": resized,
        "brightened": bool(brightened),
    }
    return tuple(name for name, found in named.items() if found) or ("re-encoded",)
