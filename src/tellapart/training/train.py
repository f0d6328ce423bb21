"""The recipe's way from a Dataset to a fitted model."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnx
import polars as pl
from numpy.typing import NDArray

from tellapart.data.dataset import Dataset
from tellapart.errors import ImageError, RecipeError, TrainingError
from tellapart.evaluation.familiarity import Familiarity
from tellapart.evaluation.metrics import Answer, FloatArray, IntArray
from tellapart.evaluation.task import RULES
from tellapart.imaging.decode import Pixels
from tellapart.inference.engine import OpenVINOEngine, iter_outputs
from tellapart.inference.model import LinearHead, compose
from tellapart.records import Calibration, EpochLog, Preprocess, Progress, Task, Weights
from tellapart.training.loop_recipe import FinetuneRecipe, NetworkRecipe
from tellapart.training.probe_recipe import AutoRecipe
from tellapart.training.recipes import Recipe

LOG_FILES = ("log.jsonl", "curves.svg")
"""What a gradient loop leaves in the run folder beside what every run does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A model that has seen the training images, not yet calibrated.

    Attributes:
        trunk: an ONNX model from images to embeddings.
        embedding_dim: D.
        head: from embeddings to logits.
        weights: where pretrained weights came from; None for a model trained from scratch.
        held_out_logits: (N, K) logits of images that neither trained nor chose the model.
        held_out_labels: their labels, as ``Dataset.labels`` gives them.
        method: ``calib`` when those images are a part of their own; ``cross-fit`` when each was answered by a model
            of a fold that did not see it.
        logits: (K,) logits by content hash of the images that the model file is verified on: calib, or train where there is none.
        details: how the model was chosen, for the report.
        familiarity: the score that the model file will carry.
        familiar_scores: (N,) of the held-out images, none of which the score was fitted on.
        scores: by content hash, of the same images as ``logits``: what the model file will say of them.
        interrupted: whether training was asked to stop before its end.
    """

    trunk: bytes = field(repr=False)
    embedding_dim: int
    head: LinearHead
    weights: Weights | None
    held_out_logits: NDArray[np.float32] = field(repr=False)
    held_out_labels: IntArray = field(repr=False)
    method: Literal["calib", "cross-fit"]
    logits: Mapping[str, NDArray[np.float32]] = field(repr=False)
    details: dict[str, Any]
    familiarity: Familiarity
    familiar_scores: NDArray[np.float64] = field(repr=False)
    scores: Mapping[str, float] = field(repr=False)
    log: tuple[EpochLog, ...] = ()
    interrupted: bool = False

    def expected(self, part: Dataset, calibration: Calibration) -> Answer:
        """``probs`` (N, K) and ``familiarity`` (N,) as the fitted model gives them, without the model file."""
        logits = np.stack([self.logits[content] for content in part.contents]).astype(np.float64)
        scores = np.array([self.scores[content] for content in part.contents])
        return {"probs": RULES[part.task].probs(logits / calibration.temperature), "familiarity": scores}

    def in_full(
        self, part: Dataset, rows: IntArray, preprocess: Preprocess, calibration: Calibration
    ) -> FloatArray:
        """(n, K) probabilities of some rows of a part, the trunk computed in float32.

        Raises:
            ImageError: an image that was read before cannot be read now.
        """
        engine = OpenVINOEngine(
            self.trunk, input_size_px=preprocess.input_size_px, precision="f32", outputs=["embedding"]
        )
        images, embeddings = part.images, []
        for output in iter_outputs(engine, preprocess, [images[row] for row in rows]):
            if isinstance(output, ImageError):
                raise output
            embeddings.append(output["embedding"])
        return RULES[part.task].probs(self.head.logits(np.stack(embeddings)) / calibration.temperature)

    def to_onnx(self, calibration: Calibration, task: Task) -> onnx.ModelProto:
        """The graph of the model file."""
        return compose(
            self.trunk,
            self.head,
            temperature=calibration.temperature,
            activation=RULES[task].activation,
            familiarity=self.familiarity,
        )


class Way(Protocol):
    """How one kind of recipe gets from images to a fitted model."""

    @property
    def recipe(self) -> Recipe:
        """The recipe; after ``prepare`` with nothing left open."""
        ...

    def prepare(self, dataset: Dataset, progress: Progress) -> Dataset:
        """Read the images of ``learning_part``, before any label is looked at; refuse those that cannot be decoded."""
        ...

    def thumbnails(self, part: Dataset) -> Pixels:
        """(N, 32, 32) uint8 of images that ``prepare`` has read: to know copies by."""
        ...

    def fit(self, dataset: Dataset, *, seed: int, progress: Progress) -> Fitted:
        """Learn from the parts train and, where the recipe chooses by it, val; answer calib."""
        ...


class AugmentingWay(Way, Protocol):
    """The way of a recipe that shows the gradient loop its images changed at random."""

    def preview(self, dataset: Dataset, *, seed: int) -> Path:
        """Write a picture of what the recipe's augmentation makes of training images."""
        ...


def learning_part(dataset: Dataset) -> Dataset:
    """The images in use outside a test folder: those stay unread until the finished model file is measured on them."""
    return dataset.used().where(pl.col("split").is_null() | (pl.col("split") != "test"))


def open_way(
    recipe: Recipe,
    folder: Path,
    *,
    on_epoch: Callable[[EpochLog], None],
    tensorboard: bool = False,
    began: float | None = None,
) -> Way:
    """Pick the way of a recipe.

    Args:
        recipe: what is wanted.
        folder: the run's own.
        on_epoch: called after each epoch, where there are any.
        tensorboard: whether to write TensorBoard events into the folder, too.
        began: when a budget began, by ``time.monotonic``; now when None.

    Raises:
        RecipeError: bad-setting, when TensorBoard is wanted for a recipe that has nothing to write there.
        TrainingError: package-missing.
    """
    if isinstance(recipe, NetworkRecipe | FinetuneRecipe):
        return open_loop_way(recipe, folder, on_epoch=on_epoch, tensorboard=tensorboard)
    if tensorboard:
        message = f"TensorBoard shows epochs, and the recipe {recipe.name!r} has none of its own"
        raise RecipeError(
            "bad-setting",
            message,
            hint="leave --tensorboard out, or choose a recipe with epochs: --recipe finetune",
        )
    if isinstance(recipe, AutoRecipe):
        from tellapart.training.auto import AutoWay

        return AutoWay(recipe, folder, on_epoch=on_epoch, began=began)
    from tellapart.training.probe import ProbeWay

    return ProbeWay(recipe)


def open_loop_way(
    recipe: NetworkRecipe | FinetuneRecipe,
    folder: Path,
    *,
    on_epoch: Callable[[EpochLog], None],
    tensorboard: bool = False,
    out_of_time: Callable[[], bool] | None = None,
    falls_back: bool = True,
) -> AugmentingWay:
    """The way of a recipe with a gradient loop. PyTorch is imported here.

    Args:
        recipe: what is wanted.
        folder: the run's own.
        on_epoch: called after each epoch.
        tensorboard: whether to write TensorBoard events into the folder, too.
        out_of_time: asked after each step, and the loop ends when it says so; never when None.
        falls_back: whether a probe ships where training from it did not beat it; not where the caller compares.

    Raises:
        TrainingError: package-missing.
    """
    _prepare_process()
    try:
        from tellapart.training.finetune import StagesWay
        from tellapart.training.gradient import GradientWay

        if isinstance(recipe, FinetuneRecipe) and not recipe.is_bundled:
            from tellapart.training.whole import WholeWay  # with timm, whose import takes longer than a short run
    except ModuleNotFoundError as error:
        message = f"the recipe {recipe.name!r} needs PyTorch, and {error.name} is not installed"
        raise TrainingError("package-missing", message, hint="pip install 'tellapart[train]'") from error
    told: dict[str, Any] = {"on_epoch": on_epoch, "tensorboard": tensorboard, "falls_back": falls_back}
    if out_of_time is not None:
        told["out_of_time"] = out_of_time
    if isinstance(recipe, FinetuneRecipe):
        return StagesWay(recipe, folder, **told) if recipe.is_bundled else WholeWay(recipe, folder, **told)
    return GradientWay(recipe, folder, **told)


def _prepare_process() -> None:
    """Settings of the C libraries that PyTorch meets; they must be made before it is imported. The user's own come first.

    Its threads wait for each other hundreds of times a second. Spinning for long meanwhile, as GNU's OpenMP does, made training
    eight times slower whenever another program was busy; hardly spinning, 5 % slower when none was. And memory of a layer's
    size goes back to the system as soon as it is free, and comes again page by page: keeping it made training a third faster.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no such setting
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
