"""The probe: logistic regression on frozen features, and its way from a Dataset to a fitted model."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from threadpoolctl import threadpool_limits

from tellapart.data.dataset import Dataset
from tellapart.evaluation.calibration import minimize_log_loss
from tellapart.evaluation.familiarity import fit_familiarity
from tellapart.evaluation.metrics import IntArray, binary_log_loss, log_loss
from tellapart.imaging.decode import Pixels
from tellapart.imaging.pool import map_ordered
from tellapart.inference.embed import Embedded, embed_files
from tellapart.inference.model import LinearHead
from tellapart.records import Progress
from tellapart.training.backbones import open_features
from tellapart.training.folds import (
    MAX_SEARCH_IMAGES,
    even_folds,
    group_folds,
    groups_of,
    halves,
    sample_rows,
    strata_of,
)
from tellapart.training.probe_recipe import ProbeRecipe
from tellapart.training.recipe_parts import ClassWeights
from tellapart.training.train import Fitted, learning_part

FloatMatrix = NDArray[np.float32]
_Weigh = Callable[[IntArray], FloatMatrix]

_MAX_ITERATIONS = 500
_SEARCH_TOLERANCE = 1e-3  # of the gradient; the order of the strengths is settled long before the last digit
_FINAL_TOLERANCE = 1e-4
_PATIENCE = 2  # strengths in a row that did not lower the loss


class ProbeWay:
    """Cached features of a pretrained backbone, then a head.

    Args:
        recipe: backbone, features and strengths.

    Attributes:
        backbone: from images to embeddings.
        recipe: with nothing left open.
    """

    def __init__(self, recipe: ProbeRecipe) -> None:
        self.backbone, self.recipe = open_features(recipe)
        self._embedded = Embedded(embeddings={}, thumbnails={}, errors={})

    def prepare(self, dataset: Dataset, progress: Progress) -> Dataset:
        """Decode and embed the images to learn from; see ``Way``."""
        learning = learning_part(dataset)
        files = dict(zip(learning.contents, learning.images, strict=True))
        paths = dict(zip(learning.contents, learning.paths, strict=True))
        self._embedded = embed_files(files, self.backbone, self.recipe.preprocess, progress)
        errors = self._embedded.errors
        refused = {paths[content]: (error.code, error.message) for content, error in errors.items()}
        return dataset.with_outcome("refused", refused)

    def thumbnails(self, part: Dataset) -> Pixels:
        """(N, 32, 32) uint8 of prepared images."""
        return np.stack([self._embedded.thumbnails[content] for content in part.contents])

    def fit(self, dataset: Dataset, *, seed: int, progress: Progress) -> Fitted:  # noqa: ARG002  it takes a second
        """Fit the head on train; answer the calib images with it, or cross-fit where there are none."""
        train, calib = dataset.used("train"), dataset.used("calib")
        matrix = self.matrix(train)
        probe = fit_probe(
            matrix,
            train.labels,
            strengths=self.recipe.strengths,
            folds=self.recipe.folds,
            seed=seed,
            groups=groups_of(train),
            class_weights=self.recipe.class_weights,
        )
        verified, verified_matrix = (calib, self.matrix(calib)) if len(calib) else (train, matrix)
        logits = probe.head.logits(verified_matrix)
        familiarity = fit_familiarity(matrix, probe.fold_logits, halves(train, seed))
        own = familiarity.score.score(verified_matrix, logits)
        return Fitted(
            trunk=self.backbone.onnx_bytes,
            embedding_dim=self.backbone.embedding_dim,
            head=probe.head,
            weights=self.backbone.weights,
            held_out_logits=logits if len(calib) else probe.fold_logits,
            held_out_labels=calib.labels if len(calib) else train.labels[probe.fold_images],
            method="calib" if len(calib) else "cross-fit",
            logits=dict(zip(verified.contents, logits, strict=True)),
            familiarity=familiarity.score,
            familiar_scores=own if len(calib) else familiarity.held_out(probe.fold_images, probe.fold_logits),
            scores=dict(zip(verified.contents, own.tolist(), strict=True)),
            details={
                "strength": probe.strength,
                "final_strength": probe.final_strength,
                "search_log_loss": {str(c): loss for c, loss in probe.search.items()},
            },
        )

    def matrix(self, dataset: Dataset) -> FloatMatrix:
        """(N, D) embeddings of prepared images."""
        return np.stack([self._embedded.embeddings[content] for content in dataset.contents])


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A fitted head and how it was chosen.

    Attributes:
        head: from raw, not standardised, embeddings to logits.
        strength: the chosen C.
        final_strength: the same penalty an image, as C for all images.
        search: mean log loss over held-out folds for each C that was tried, in nats.
        fold_images: (M,) rows of the training embeddings that took part in the search.
        fold_logits: (M, K) their logits at the chosen C, each from a model that did not see the image.
    """

    head: LinearHead
    strength: float
    final_strength: float
    search: dict[float, float]
    fold_images: NDArray[np.int64]
    fold_logits: FloatMatrix


@dataclass(frozen=True, kw_only=True, slots=True)
class StrengthSearch:
    """What cross-validation found.

    Attributes:
        strength: the chosen C, for as many images as a search over these would learn from.
        losses: mean log loss over held-out folds for each C that was tried, in nats.
        images: (M,) rows of the embeddings that took part.
        logits: (M, K) their logits at the chosen C, each from a model that did not see the image.
        learned_from: images that each fold learned from, in the mean.
    """

    strength: float
    losses: dict[float, float]
    images: NDArray[np.int64]
    logits: FloatMatrix
    learned_from: float


def search_strength(
    embeddings: FloatMatrix,
    labels: IntArray,
    *,
    strengths: Sequence[float],
    folds: int,
    seed: int,
    groups: IntArray | None = None,
    class_weights: ClassWeights = "none",
) -> StrengthSearch:
    """Choose the L2 strength of a logistic regression by stratified cross-validation.

    The search walks from the strongest penalty to the weakest, each fit starting from the last, and stops when the held-out
    log loss has not fallen twice. Arguments are those of ``fit_probe``.
    """
    head = head_of(labels, class_weights)
    strata = strata_of(labels)
    rows = sample_rows(labels, MAX_SEARCH_IMAGES, seed)
    searched = labels[rows]
    folds = max(2, min(folds, int(np.bincount(strata[rows])[np.unique(strata[rows])].min())))
    if groups is None:
        fold = even_folds(strata[rows], folds, seed)
    else:
        folds = min(folds, len(np.unique(groups[rows])))
        fold = group_folds(strata[rows], groups[rows], folds, seed)
    splits = [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(folds)]
    parts = [
        _Fold(head, embeddings[rows[train]], searched[train], embeddings[rows[held_out]])
        for train, held_out in splits
    ]
    order = np.concatenate([held_out for _, held_out in splits])
    losses: dict[float, float] = {}
    logits: dict[float, FloatMatrix] = {}
    for strength in strengths:
        # The folds keep all processors busy; a matrix library with threads of its own makes them ten times slower.
        with threadpool_limits(1, user_api="blas"):
            fold_logits = map_ordered(functools.partial(_Fold.fit, strength=strength), parts)
            logits[strength] = np.concatenate(list(fold_logits))
        losses[strength] = head.log_loss(searched[order], logits[strength])
        best = min(losses, key=losses.__getitem__)
        if len(losses) - 1 - list(losses).index(best) == _PATIENCE:
            break
    return StrengthSearch(
        strength=best,
        losses=losses,
        images=rows[order],
        logits=logits[best],
        learned_from=len(rows) * (folds - 1) / folds,
    )


def fit_probe(
    embeddings: FloatMatrix,
    labels: IntArray,
    *,
    strengths: Sequence[float],
    folds: int,
    seed: int,
    groups: IntArray | None = None,
    class_weights: ClassWeights = "none",
) -> Probe:
    """Fit logistic regression, its L2 strength chosen by cross-validation: multinomial, or one label against the rest.

    Args:
        embeddings: (N, D) features of the training images.
        labels: (N,) class indices in 0..K-1, at least two images a class; or (N, K) of 0 and 1.
        strengths: ascending inverse strengths C to try.
        folds: number of folds; fewer where the smallest class has fewer images.
        seed: draws the folds, and the images that take part when there are more than ``MAX_SEARCH_IMAGES``.
        groups: (N,) number of the group of each image, all of which lies in one fold; None without groups.
        class_weights: ``none``, or ``balanced``: every class counts the same, in the fit and in the choice.
    """
    search = search_strength(
        embeddings,
        labels,
        strengths=strengths,
        folds=folds,
        seed=seed,
        groups=groups,
        class_weights=class_weights,
    )
    # C weighs the sum of losses over images, so the same penalty per image needs a C that shrinks as they grow.
    final_strength = search.strength * search.learned_from / len(labels)
    return Probe(
        head=fit_head(embeddings, labels, strength=final_strength, class_weights=class_weights),
        final_strength=final_strength,
        strength=search.strength,
        search=search.losses,
        fold_images=search.images,
        fold_logits=search.logits,
    )


def fit_head(
    embeddings: FloatMatrix, labels: IntArray, *, strength: float, class_weights: ClassWeights = "none"
) -> LinearHead:
    """Fit logistic regression of a given L2 strength C; see ``fit_probe``."""
    head = head_of(labels, class_weights)
    scaled, mean, scale = _standardize(embeddings)
    with threadpool_limits(1, user_api="blas"):  # its products are too thin to share: 1.3 to 3 times as fast alone
        weights = fit_logistic(scaled, labels, head=head, strength=strength, tolerance=_FINAL_TOLERANCE)
    return _unscaled_head(head, weights, mean, scale)


def head_of(labels: IntArray, class_weights: ClassWeights = "none") -> "_Head":
    """The head for labels of this shape: (N,) class indices, or (N, K) of 0 and 1."""
    weigh = _balanced if class_weights == "balanced" else None
    return _Softmax(int(labels.max()) + 1, weigh) if labels.ndim == 1 else _OneVsRest(weigh)


def _balanced(labels: IntArray) -> FloatMatrix:
    """What each image, or each label of each image, counts, 1 in the mean: all classes, or a label's two sides, the same.

    Source: King and Zeng 2001, "Logistic Regression in Rare Events Data", section 4.2.
    """
    if labels.ndim == 1:
        counts = np.bincount(labels)
        of_class = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.asarray(of_class[labels], dtype=np.float32)
    share = np.clip(labels.mean(axis=0), 1 / (2 * len(labels)), 1 - 1 / (2 * len(labels)))
    weights: FloatMatrix = np.where(labels, 0.5 / share, 0.5 / (1 - share)).astype(np.float32)
    return weights


def log_losses(labels: IntArray, logits: FloatMatrix, class_weights: ClassWeights = "none") -> NDArray[np.float64]:
    """(N,) log loss of each image, in nats; with several labels an image the mean over them.

    Args:
        labels: (N,) class indices, or (N, K) of 0 and 1.
        logits: (N, K).
        class_weights: as in ``fit_probe``; with ``balanced``, of the mean over images.
    """
    scores = logits.astype(np.float64)
    weights = _balanced(labels) if class_weights == "balanced" else 1.0
    if labels.ndim == 1:
        losses: NDArray[np.float64] = -log_softmax(scores, axis=1)[np.arange(len(labels)), labels] * weights
        return losses
    each = np.logaddexp(0, np.where(labels, -scores, scores)) * weights
    mean: NDArray[np.float64] = each.mean(axis=1)
    return mean


def val_score(labels: IntArray, logits: FloatMatrix, class_weights: ClassWeights = "none") -> tuple[float, float]:
    """How good logits are to choose a model by: a temperature comes later, so sureness alone must not decide.

    Args:
        labels: (N,) class indices, or (N, K) of 0 and 1.
        logits: (N, K).
        class_weights: as in ``log_losses``.

    Returns:
        Mean log loss in nats at the temperature that suits these logits, and accuracy, as the gradient loop counts it: of
        images, or of labels at a probability of one half.
    """

    def losses(temperature: float) -> NDArray[np.float64]:
        return log_losses(labels, logits / np.float32(temperature), class_weights)

    right = logits.argmax(axis=1) == labels if labels.ndim == 1 else (logits > 0) == labels.astype(bool)
    return float(losses(minimize_log_loss(losses)).mean()), float(np.mean(right))


def is_better(val: tuple[float, float] | None, beaten: tuple[float, float] | None) -> bool:
    """Whether a model has a lower loss on val than another, and as many images right at least; so where nobody asked.

    Of a hundred images, how many are right says little, and a loss may hang on two of them: where they disagree, what is
    there stays.

    Args:
        val: as ``val_score`` gives it.
        beaten: that of the model there is.
    """
    return val is None or beaten is None or (val[0] < beaten[0] and val[1] >= beaten[1])


class _Head(Protocol):
    """A generalised linear model: how a matrix of scores becomes losses and answers."""

    def columns(self, labels: IntArray) -> int:
        """Columns of the weights."""
        ...

    def loss_and_residual(self, scores: FloatMatrix, labels: IntArray) -> tuple[float, FloatMatrix]:
        """Summed log loss in nats, and its (N, k) derivative by the scores, which may be overwritten."""
        ...

    def logits(self, scores: NDArray[Any]) -> NDArray[Any]:
        """(M, K) logits of (M, k) scores."""
        ...

    def log_loss(self, labels: IntArray, logits: FloatMatrix) -> float:
        """Mean log loss in nats."""
        ...


class _Softmax:
    """One class an image. Two classes need one column, which stands for the difference of their logits."""

    def __init__(self, num_classes: int, weigh: _Weigh | None = None) -> None:
        self._num_classes = num_classes
        self._weigh = weigh

    def columns(self, labels: IntArray) -> int:  # noqa: ARG002  a fold's labels may lack a class
        return 1 if self._num_classes == 2 else self._num_classes

    def loss_and_residual(self, scores: FloatMatrix, labels: IntArray) -> tuple[float, FloatMatrix]:
        truth = np.arange(len(labels)), labels
        residual = _softmax(self.logits(scores))
        losses = -np.log(np.maximum(residual[truth], np.finfo(np.float32).tiny))
        residual[truth] -= 1
        if self._weigh:
            weights = self._weigh(labels)
            losses, residual = losses * weights, residual * weights[:, None]
        loss = float(losses.sum(dtype=np.float64))
        return loss, residual[:, 1:] if self._num_classes == 2 else residual

    def logits(self, scores: NDArray[Any]) -> NDArray[Any]:
        return scores if scores.shape[1] > 1 else np.concatenate([-scores / 2, scores / 2], axis=1)

    def log_loss(self, labels: IntArray, logits: FloatMatrix) -> float:
        if self._weigh:
            return float(np.average(log_losses(labels, logits), weights=self._weigh(labels)))
        return log_loss(labels, _softmax(logits))


class _OneVsRest:
    """Labels that do not exclude each other: each is told from the rest on its own, all in one solve."""

    def __init__(self, weigh: _Weigh | None = None) -> None:
        self._weigh = weigh

    def columns(self, labels: IntArray) -> int:
        return int(labels.shape[1])

    def loss_and_residual(self, scores: FloatMatrix, labels: IntArray) -> tuple[float, FloatMatrix]:
        residual: FloatMatrix = expit(scores) - labels.astype(np.float32)
        if self._weigh:
            residual *= self._weigh(labels)
        return self.log_loss(labels, scores) * labels.size, residual

    def logits(self, scores: NDArray[Any]) -> NDArray[Any]:
        return scores

    def log_loss(self, labels: IntArray, logits: FloatMatrix) -> float:
        if self._weigh:
            return float((np.logaddexp(0, np.where(labels, -logits, logits)) * self._weigh(labels)).mean())
        return binary_log_loss(labels, logits)


class _Fold:
    """One fold: its data standardised once, its weights warm-started along the strengths."""

    def __init__(self, head: _Head, train: FloatMatrix, labels: IntArray, held_out: FloatMatrix) -> None:
        self._head = head
        self._train, mean, scale = _standardize(train)
        self._labels = labels
        self._held_out = (held_out - mean) / scale
        self._weights: FloatMatrix | None = None

    def fit(self, strength: float) -> FloatMatrix:
        """(M, K) logits of the held-out images."""
        self._weights = fit_logistic(
            self._train,
            self._labels,
            head=self._head,
            strength=strength,
            tolerance=_SEARCH_TOLERANCE,
            start=self._weights,
        )
        return self._head.logits(self._held_out @ self._weights[:-1] + self._weights[-1])


def fit_logistic(
    features: FloatMatrix,
    labels: IntArray,
    *,
    head: _Head,
    strength: float,
    tolerance: float,
    start: FloatMatrix | None = None,
) -> FloatMatrix:
    """Minimise the log loss of an image plus ``|weights|^2 / (2 C N)``, in the mean; the intercepts are free.

    It is scikit-learn's objective and solver, without the second that importing scikit-learn takes.

    Args:
        features: (N, D) standardised.
        labels: as the head takes them.
        head: softmax, or one label against the rest.
        strength: C.
        tolerance: of the largest component of the gradient.
        start: an earlier result to begin from.

    Returns:
        (D + 1, k) weights over intercepts.

    Source: Liu and Nocedal 1989, "On the limited memory BFGS method for large scale optimization".
    """
    n = len(labels)
    shape = (features.shape[1] + 1, head.columns(labels))
    penalty = 1.0 / (strength * n)

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(shape)
        single = weights.astype(np.float32)
        loss, residual = head.loss_and_residual(features @ single[:-1] + single[-1], labels)
        residual /= n
        gradient = np.empty(shape)
        gradient[:-1] = features.T @ residual + penalty * weights[:-1]
        gradient[-1] = residual.sum(axis=0, dtype=np.float64)
        return loss / n + 0.5 * penalty * float(np.square(weights[:-1]).sum()), gradient.ravel()

    found = minimize(
        loss_and_gradient,
        np.zeros(shape).ravel() if start is None else start.astype(np.float64).ravel(),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": _MAX_ITERATIONS, "gtol": tolerance, "ftol": 64 * np.finfo(np.float64).eps},
    )
    weights: FloatMatrix = found.x.reshape(shape).astype(np.float32)
    return weights


def _standardize(embeddings: FloatMatrix) -> tuple[FloatMatrix, FloatMatrix, FloatMatrix]:
    # Summed in 64 bits: in 32, the mean of thousands of 0.1 is not 0.1, and a feature that never moves seems to.
    mean: FloatMatrix = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    scaled: FloatMatrix = embeddings - mean
    scale: FloatMatrix = np.sqrt(np.square(scaled).mean(axis=0, dtype=np.float64)).astype(np.float32)
    scale[scale < 1e-6] = 1.0  # a feature that never moves says nothing, and must not be divided by
    scaled /= scale
    return scaled, mean, scale


def _unscaled_head(head: _Head, weights: FloatMatrix, mean: FloatMatrix, scale: FloatMatrix) -> LinearHead:
    """Fold the standardisation into weight and bias, in double precision."""
    weight = weights[:-1].astype(np.float64) / scale[:, None]
    bias = weights[-1].astype(np.float64) - mean @ weight
    return LinearHead(
        weight=head.logits(weight).astype(np.float32), bias=head.logits(bias[None])[0].astype(np.float32)
    )


def _softmax(logits: FloatMatrix) -> FloatMatrix:
    exponents: FloatMatrix = np.exp(logits - logits.max(axis=1, keepdims=True))
    total: FloatMatrix = exponents.sum(axis=1, keepdims=True)
    return exponents / total
