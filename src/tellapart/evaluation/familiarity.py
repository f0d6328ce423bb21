"""Familiarity: how much an image is like those a model learned from."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import betaincinv

from tellapart.evaluation.metrics import FloatArray, IntArray
from tellapart.records import FamiliarityRule, HeldOut

COMPONENTS = 64
"""Directions with a variance of their own; 256 tell strange images hardly better (docs/experiments.md)."""

MAX_FITTED_IMAGES = 1_000
"""That the distribution is fitted on; more hardly move it."""

_LEAST_VARIANCE = 0.01  # of a feature's mean square: in bfloat16, roots of features near 0 move by about as much
_LEAST_LENGTH = 1e-12
_LEAST_SPREAD = 1e-6
_LEAST_LENGTH_SPREAD = 0.01  # of the mean length; bfloat16 moves lengths by about half of that

# Chosen together by measurement, docs/experiments.md.
SURENESS_WEIGHT = 2.0
LENGTH_WEIGHT = 2.0
FREE_LENGTHS = 2.0
"""Spreads by which a length may differ before it counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian:
    """A normal distribution of embeddings: few directions with a variance of their own, one variance for all others.

    Attributes:
        mean: (D,) of the embeddings' directions.
        axes: (D, r) orthogonal, of length 1.
        variances: (r,) along the axes.
        rest: variance along every other direction.

    Source: Tipping and Bishop 1999, "Probabilistic principal component analysis", section 3.
    """

    mean: FloatArray = field(repr=False)
    axes: FloatArray = field(repr=False)
    variances: FloatArray = field(repr=False)
    rest: float

    def distances(self, embeddings: FloatArray) -> NDArray[np.float64]:
        """(N,) Mahalanobis distances of (N, D) embeddings."""
        centered = directions(embeddings) - self.mean
        along = centered @ self.axes
        beside = np.maximum(np.square(centered).sum(axis=1) - np.square(along).sum(axis=1), 0)
        result: NDArray[np.float64] = np.sqrt(
            (np.square(along) / self.variances).sum(axis=1, dtype=np.float64) + beside / self.rest
        )
        return result


def directions(embeddings: FloatArray) -> FloatArray:
    """Signed square roots of (N, D) embeddings, scaled to length 1, as precise as the embeddings; zeros stay zeros.

    Source: Arandjelovic and Zisserman 2012, "Three things everyone should know to improve object retrieval", section 3.
    """
    roots: FloatArray = np.copysign(np.sqrt(np.abs(embeddings)), embeddings)
    lengths = np.linalg.norm(roots, axis=1, keepdims=True)
    roots /= np.where(lengths > 0, lengths, 1)
    return roots


def fit_gaussian(embeddings: FloatArray) -> Gaussian:
    """Fit the distribution of (N, D) training embeddings, N at least 2; fewer images than dimensions are enough.

    The covariance is shrunk towards a multiple of the identity.

    Source: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", section 3.3.
    """
    points = directions(embeddings[_evenly(len(embeddings), MAX_FITTED_IMAGES)])
    mean = points.mean(axis=0)
    centered = points - mean
    n, dim = centered.shape
    # Of the two products, the smaller has the same eigenvalues, but for zeros, and the same sum of squares.
    product = (centered.T @ centered if dim <= n else centered @ centered.T).astype(np.float64) / n
    average = float(np.trace(product)) / dim
    squares = float(np.square(product).sum())
    spread = squares - dim * average**2
    noise = (float(np.square(np.square(centered).sum(axis=1)).sum(dtype=np.float64)) / n - squares) / n
    shrinkage = min(1.0, max(0.0, noise / spread)) if spread > 0 else 1.0
    side, rank = len(product), max(1, min(COMPONENTS, dim - 1, n - 1))
    values, axes = eigh(product, subset_by_index=(side - rank, side - 1))
    if dim > n:
        axes = centered.T @ axes.astype(centered.dtype)
        axes /= np.maximum(np.linalg.norm(axes, axis=0), _LEAST_LENGTH)
    variances = (1 - shrinkage) * values + shrinkage * average
    least = _LEAST_VARIANCE / dim
    rest = (dim * average - float(variances.sum())) / max(1, dim - len(values))
    return Gaussian(
        mean=mean,
        axes=axes.astype(centered.dtype),
        variances=np.maximum(variances, least),
        rest=max(rest, least),
    )


def _evenly(n: int, limit: int) -> NDArray[np.int64]:
    """At most so many rows of n, evenly spaced: images lie by class, so every class keeps its share."""
    return np.linspace(0, n - 1, min(n, limit)).round().astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Familiarity:
    """The score: near the training images, as strong as they are, and with an answer to give.

    Attributes:
        gaussian: of the directions of the training embeddings.
        distance: mean and spread of its distances, over images it was not fitted on.
        length: mean and spread of the lengths of the training embeddings' roots, which their directions leave out.
        logit: mean and spread of the largest logit, over images that did not train the model.
    """

    gaussian: Gaussian
    distance: tuple[float, float]
    length: tuple[float, float]
    logit: tuple[float, float]

    def score(self, embeddings: FloatArray, logits: FloatArray) -> NDArray[np.float64]:
        """(N,) scores of (N, D) embeddings and (N, K) logits; higher is more familiar, 0 about the mean of familiar images.

        A sure answer counts for at most one spread: textures get sure answers, too. A length counts only where it is odd, more
        than two spreads from the mean, and only against an image.
        """
        return self.combine(self.gaussian.distances(embeddings), root_lengths(embeddings), logits)

    def combine(
        self, distances: FloatArray, lengths: NDArray[np.float64], logits: FloatArray
    ) -> NDArray[np.float64]:
        """(N,) scores of (N,) distances, (N,) lengths and (N, K) logits that are known already."""
        nearness = (self.distance[0] - distances) / self.distance[1]
        sureness = (logits.max(axis=1).astype(np.float64) - self.logit[0]) / self.logit[1]
        oddness = np.abs(lengths - self.length[0]) / self.length[1]
        result: NDArray[np.float64] = (
            nearness
            + SURENESS_WEIGHT * np.minimum(sureness, 1)
            - LENGTH_WEIGHT * np.maximum(oddness - FREE_LENGTHS, 0)
        )
        return result


def root_lengths(embeddings: FloatArray) -> NDArray[np.float64]:
    """(N,) lengths of the square roots of (N, D) embeddings: what ``directions`` divides by."""
    result: NDArray[np.float64] = np.sqrt(np.abs(embeddings).sum(axis=1, dtype=np.float64))
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedFamiliarity:
    """A score, and what it is made of for the training images.

    Attributes:
        score: for new images.
        distances: (N,) of the training images, each from a distribution that was not fitted on it.
        lengths: (N,) of their roots.
    """

    score: Familiarity
    distances: NDArray[np.float64]
    lengths: NDArray[np.float64]

    def held_out(self, rows: IntArray, logits: FloatArray) -> NDArray[np.float64]:
        """Scores of training images with (M, K) logits from models that did not see them."""
        return self.score.combine(self.distances[rows], self.lengths[rows], logits)


def fit_familiarity(embeddings: FloatArray, held_out_logits: FloatArray, fold: IntArray) -> FittedFamiliarity:
    """Fit the score on training images, none of which vouches for itself.

    Args:
        embeddings: (N, D) of the training images.
        held_out_logits: (M, K) of images that did not train the model, from train or val; not those of calib.
        fold: (N,) part of each training image, two or more; its distance is that from the images of the other parts.
    """
    distances = np.empty(len(embeddings))
    for part in np.unique(fold):
        distances[fold == part] = fit_gaussian(embeddings[fold != part]).distances(embeddings[fold == part])
    lengths, top = root_lengths(embeddings), held_out_logits.max(axis=1).astype(np.float64)
    length = float(lengths.mean())
    least_length = max(_LEAST_LENGTH_SPREAD * length, _LEAST_SPREAD)
    score = Familiarity(
        gaussian=fit_gaussian(embeddings),
        distance=(float(distances.mean()), max(float(distances.std()), _LEAST_SPREAD)),
        length=(length, max(float(lengths.std()), least_length)),
        logit=(float(top.mean()), max(float(top.std()), _LEAST_SPREAD)),
    )
    return FittedFamiliarity(score=score, distances=distances, lengths=lengths)


def fit_familiarity_rule(scores: FloatArray, *, rate: float, method: HeldOut) -> FamiliarityRule:
    """Find the threshold that at most a share ``rate`` of new familiar images falls below.

    Args:
        scores: (N,) of familiar images that neither the model nor the score was fitted on.
        rate: wanted share, 0-1. With fewer than ``1 / rate - 1`` images, one in N + 1 is what can be promised.
        method: where those images came from.

    Source: Bates et al. 2023, "Testing for outliers with conformal p-values", section 2.
    """
    n = len(scores)
    allowed = _allowed(n, rate) - 1
    threshold = float(np.partition(scores.astype(np.float64), allowed)[allowed])
    return FamiliarityRule(
        threshold=threshold,
        rate=rate,
        promised=max(rate, 1 / (n + 1)),
        achieved=float((scores < threshold).mean()),
        method=method,
        n=n,
    )


def expected_alarms(rule: FamiliarityRule) -> tuple[float, float]:
    """The shares of new familiar images between which, 95 times in 100, a threshold like this one calls unfamiliar.

    With few images to set it, one threshold gives several times as many false alarms as another; on average they are right.

    Source: Vovk 2012, "Conditional validity of inductive conformal predictors", section 2: the share is beta distributed.
    """
    below = _allowed(rule.n, rule.rate)
    low, high = (float(betaincinv(below, rule.n + 1 - below, end)) for end in (0.025, 0.975))
    return low, high


def _allowed(n: int, rate: float) -> int:
    """Which of n scores, counted from the smallest, is the threshold."""
    return max(1, math.floor(round((n + 1) * rate, 9)))
