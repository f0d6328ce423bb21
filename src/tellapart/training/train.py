"""fit: a recipe's way from images to a fitted model."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import polars as pl
from numpy.typing import NDArray
from scipy.special import softmax

from tellapart.data.dataset import Dataset
from tellapart.evaluation.metrics import IntArray
from tellapart.inference.bundled import Backbone, open_backbone
from tellapart.inference.embed import Embeddings, embed_files
from tellapart.inference.model import LinearHead, compose
from tellapart.records import Calibration, Progress, Weights
from tellapart.training.probe import fit_probe
from tellapart.training.recipes import ProbeRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What a recipe made of the images before any label was looked at."""

    backbone: Backbone
    embeddings: Embeddings


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A model that has seen the training images, not yet calibrated.

    Attributes:
        held_out_logits: (N, K) logits of images that neither trained nor chose the model.
        held_out_labels: (N,) their class indices.
        method: ``calib`` when those images are a part of their own; ``cross-fit`` when each was answered by a model
            of a fold that did not see it.
        details: how the model was chosen, for the report.
    """

    backbone: Backbone
    head: LinearHead
    embeddings: Embeddings = field(repr=False)
    held_out_logits: NDArray[np.float32] = field(repr=False)
    held_out_labels: IntArray = field(repr=False)
    method: Literal["calib", "cross-fit"]
    details: dict[str, Any]

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.backbone.embedding_dim

    @property
    def weights(self) -> Weights:
        """Where the pretrained weights came from."""
        return self.backbone.weights

    def probs(self, dataset: Dataset, calibration: Calibration) -> NDArray[np.float64]:
        """(N, K) probabilities as the fitted model gives them, without the model file."""
        logits = self.head.logits(_matrix(self.embeddings, dataset)).astype(np.float64)
        probs: NDArray[np.float64] = softmax(logits / calibration.temperature, axis=1)
        return probs

    def to_onnx(self, calibration: Calibration) -> onnx.ModelProto:
        """The graph of the model file."""
        return compose(self.backbone, self.head, temperature=calibration.temperature)


def extract_features(dataset: Dataset, recipe: ProbeRecipe, progress: Progress) -> tuple[Dataset, Features]:
    """Decode and embed the images that will not be kept for a test folder's part.

    Those stay unread until the finished model file is measured on them.

    Returns:
        The dataset with undecodable images refused, and the features of the others.
    """
    backbone = open_backbone(recipe.backbone, recipe.feature_stages)
    learning = dataset.used().where(pl.col("split").is_null() | (pl.col("split") != "test"))
    files = dict(zip(learning.contents, learning.paths, strict=True))
    embeddings, errors = embed_files(files, backbone, recipe.preprocess, progress)
    refused = {files[content]: (error.code, error.message) for content, error in errors.items()}
    return dataset.with_outcome("refused", refused), Features(backbone=backbone, embeddings=embeddings)


def fit(dataset: Dataset, features: Features, recipe: ProbeRecipe, *, seed: int) -> Fitted:
    """Fit the head on train; answer the calib images with it, or cross-fit where there are none."""
    train, calib = dataset.used("train"), dataset.used("calib")
    matrix = _matrix(features.embeddings, train)
    probe = fit_probe(matrix, train.labels, strengths=recipe.strengths, folds=recipe.folds, seed=seed)
    if len(calib):
        logits, labels = probe.head.logits(_matrix(features.embeddings, calib)), calib.labels
    else:
        logits, labels = probe.fold_logits, train.labels[probe.fold_images]
    return Fitted(
        backbone=features.backbone,
        head=probe.head,
        embeddings=features.embeddings,
        held_out_logits=logits,
        held_out_labels=labels,
        method="calib" if len(calib) else "cross-fit",
        details={
            "strength": probe.strength,
            "search_log_loss": {str(c): loss for c, loss in probe.search.items()},
        },
    )


def _matrix(embeddings: Embeddings, dataset: Dataset) -> NDArray[np.float32]:
    return np.stack([embeddings[content] for content in dataset.contents])
