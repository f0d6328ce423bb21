"""The gradient loop's ways from a Dataset to a fitted model: what they share, and that of a network from nothing."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tellapart.data.cache import PixelTable, decode_files
from tellapart.data.dataset import Dataset
from tellapart.errors import RecipeError, TrainingError
from tellapart.evaluation.familiarity import Familiarity, fit_familiarity
from tellapart.imaging.decode import Pixels
from tellapart.imaging.thumbnail import make_thumbnails
from tellapart.inference.model import LinearHead
from tellapart.models.filters import first_layer_filters
from tellapart.models.graph import build_trunk, split_head
from tellapart.models.layers import Layer, embedding_dim, first_convolution, parse_layers
from tellapart.models.network import Network, build_network, state_arrays
from tellapart.models.normalize import MAX_FITTED_IMAGES, InputTransform, fit_transform
from tellapart.records import EpochLog, Progress
from tellapart.storage import atomic_file, write_bytes
from tellapart.training.at_hand import typical_shape
from tellapart.training.augment import contact_sheet
from tellapart.training.augment_settings import parse_augment
from tellapart.training.checkpoint import CheckpointFolder
from tellapart.training.curves import describe_fit, draw_curves
from tellapart.training.folds import halves
from tellapart.training.loop import (
    ImageData,
    LoopData,
    LoopResult,
    always_time,
    embeddings_and_logits,
    train_network,
)
from tellapart.training.loop_recipe import LoopRecipe, NetworkRecipe
from tellapart.training.objective import OBJECTIVES, Objective
from tellapart.training.probe import val_score
from tellapart.training.resume import checkpoint_folder
from tellapart.training.train import Fitted, learning_part

_SHEET_IMAGES = 8

FloatMatrix = NDArray[np.float32]


R = TypeVar("R", bound=LoopRecipe)


class LoopWay(Generic[R]):
    """Decoded images, and what every training by the loop keeps and writes.

    Args:
        recipe: what is trained and how.
        folder: the run's own; ``log.jsonl``, ``curves.svg`` and ``checkpoint/`` go there.
        on_epoch: called after each epoch.
        tensorboard: whether to write TensorBoard events, too.
        out_of_time: asked after each step; training ends there when it says so.
        falls_back: whether a probe ships where training from it did not beat it; not where somebody else compares.

    Raises:
        TrainingError: package-missing, when TensorBoard is wanted and absent.
        RecipeError: bad-setting, when a GPU is wanted and absent.
    """

    def __init__(
        self,
        recipe: R,
        folder: Path,
        *,
        on_epoch: Callable[[EpochLog], None],
        tensorboard: bool,
        out_of_time: Callable[[], bool] = always_time,
        falls_back: bool = True,
    ) -> None:
        self.recipe = recipe
        self._folder = folder
        self._on_epoch = on_epoch
        self._out_of_time = out_of_time
        self._falls_back = falls_back
        self._events = _open_events(folder) if tensorboard else None
        self._device = _device(recipe)
        self._images = PixelTable(pixels=np.empty((0, 8, 8, 3), dtype=np.uint8), rows={})

    def prepare(self, dataset: Dataset, progress: Progress) -> Dataset:
        """Decode the images to learn from; see ``Way``."""
        learning = learning_part(dataset)
        files = dict(zip(learning.contents, learning.images, strict=True))
        paths = dict(zip(learning.contents, learning.paths, strict=True))
        self._images, errors = decode_files(files, self.recipe.preprocess, progress)
        refused = {paths[content]: (error.code, error.message) for content, error in errors.items()}
        return dataset.with_outcome("refused", refused)

    def thumbnails(self, part: Dataset) -> Pixels:
        """(N, 32, 32) uint8 of prepared images."""
        return make_thumbnails(self._images.pixels[self._images.indices(part.contents)])

    def preview(self, dataset: Dataset, *, seed: int) -> Path:
        """Write ``augmentation.png``: some training images, each beside what augmentation makes of it."""
        rows = self._images.indices(dataset.used("train").contents)
        chosen = np.random.default_rng(seed).permutation(rows)[:_SHEET_IMAGES]
        sheet = contact_sheet(self._images.pixels[chosen], parse_augment(self.recipe.augment), seed)
        path = self._folder / "augmentation.png"
        with atomic_file(path) as file:
            Image.fromarray(sheet).save(file, format="PNG")
        return path

    def _labels(self, train: Dataset, val: Dataset) -> tuple[NDArray[np.int64], list[str]]:
        """Label and file name of each row; -1 and none for those of other parts."""
        labels = np.full((len(self._images.rows), *train.labels.shape[1:]), -1, dtype=np.int64)
        names = [""] * len(labels)
        for part in (train, val):
            rows = self._images.indices(part.contents)
            labels[rows] = part.labels
            for row, path in zip(rows, part.paths, strict=True):
                names[row] = path
        return labels, names

    def _objective(self, dataset: Dataset) -> Objective:
        num_classes = len(dataset.class_names)
        weights = np.ones(num_classes, dtype=np.float32)
        if self.recipe.class_weights == "balanced":
            counts = np.array(list(dataset.class_counts("train").values()))
            weights = (counts.sum() / (num_classes * np.maximum(counts, 1))).astype(np.float32)
        kind = OBJECTIVES[dataset.task]
        return kind(
            class_weights=torch.from_numpy(weights).to(self._device), label_smoothing=self.recipe.label_smoothing
        )

    @contextmanager
    def _logged(self) -> Iterator[Callable[[EpochLog], None]]:
        """Keep ``log.jsonl``, ``curves.svg`` and TensorBoard up to date, the files not more than once a second."""
        log: list[EpochLog] = []
        written = 0.0

        def write() -> None:
            lines = "".join(json.dumps(asdict(line)) + "\n" for line in log)
            write_bytes(self._folder / "log.jsonl", lines.encode())
            write_bytes(self._folder / "curves.svg", draw_curves(log).encode())

        def on_epoch(entry: EpochLog) -> None:
            nonlocal written
            log.append(entry)
            if time.monotonic() - written > 1:
                write()
                written = time.monotonic()
            if self._events is not None:
                for name, value in asdict(entry).items():
                    if value is not None:
                        self._events.add_scalar(name, value, entry.epoch)
            self._on_epoch(entry)

        try:
            yield on_epoch
        finally:
            if log:
                write()
            if self._events is not None:
                self._events.close()

    def _details(self, result: LoopResult, network: nn.Module) -> dict[str, Any]:
        return {
            "device": self._device.type,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "best_epoch": result.best_epoch,
            "averaged_epochs": result.averaged_epochs,
            "val_before": result.val_before,
            "epochs_trained": len(result.log),
            "training_seconds": round(result.seconds, 3),
            "interrupted": result.interrupted,
            "verdict": describe_fit(result.log),
            "log": [asdict(entry) for entry in result.log],
        }


class GradientWay(LoopWay[NetworkRecipe]):
    """A network from nothing."""

    def prepare(self, dataset: Dataset, progress: Progress) -> Dataset:
        """Size the recipe by the images to learn from, and decode them; see ``Way``."""
        if not (self.recipe.input_size_px and self.recipe.layers):
            self.recipe = self.recipe.sized(typical_shape(learning_part(dataset).images).side_px)
        return super().prepare(dataset, progress)

    def fit(self, dataset: Dataset, *, seed: int, progress: Progress) -> Fitted:
        """Train on train, choose by val, answer calib."""
        train, val = dataset.used("train"), dataset.used("val")
        labels, names = self._labels(train, val)
        data = ImageData(
            pixels=self._images.pixels,
            labels=labels,
            names=names,
            train=self._images.indices(train.contents),
            val=self._images.indices(val.contents),
        )
        layers = parse_layers(
            self.recipe.layers, input_size_px=self.recipe.input_size_px, channels=self.recipe.channels
        )
        transform = self._transform(data, seed)
        objective = self._objective(dataset)
        network = self._network(layers, transform, objective, seed)
        with self._logged() as on_epoch:
            result = train_network(
                network,
                objective,
                data,
                self.recipe,
                seed=seed,
                checkpoints=CheckpointFolder(checkpoint_folder(self._folder)),
                progress=progress,
                on_epoch=on_epoch,
                out_of_time=self._out_of_time,
            )
        calib = dataset.used("calib")
        embeddings, logits = self._answers(network, objective, data, calib)
        asked = self._answers(network, objective, data, val if len(val) else train)[1]
        familiarity = self._familiarity(network, objective, data, train, asked, seed)
        scores = familiarity.score(embeddings, logits)
        arrays = state_arrays(network)
        weight, bias = split_head(arrays, objective.num_outputs)
        return Fitted(
            trunk=build_trunk(layers, arrays, transform).SerializeToString(),
            embedding_dim=embedding_dim(layers),
            head=LinearHead(weight=weight, bias=bias),
            weights=None,
            held_out_logits=logits,
            held_out_labels=calib.labels,
            method="calib",
            logits=dict(zip(calib.contents, logits, strict=True)),
            familiarity=familiarity,
            familiar_scores=scores,
            scores=dict(zip(calib.contents, scores.tolist(), strict=True)),
            details={
                **self._details(result, network),
                "val_after": val_score(val.labels, asked, self.recipe.class_weights) if result.val_after else None,
            },
            log=tuple(result.log),
            interrupted=result.interrupted,
        )

    def _answers(
        self, network: Network, objective: Objective, data: LoopData, part: Dataset
    ) -> tuple[FloatMatrix, FloatMatrix]:
        """(N, D) embeddings and (N, K) logits."""
        rows = self._images.indices(part.contents)
        embeddings, logits = embeddings_and_logits(network, objective, data, rows)
        return embeddings.numpy(), logits.numpy()

    def _familiarity(
        self, network: Network, objective: Objective, data: LoopData, train: Dataset, asked: FloatMatrix, seed: int
    ) -> Familiarity:
        """Nearness as the embeddings of train have it, sureness as the (n, K) logits of val, or without it of train."""
        embeddings = self._answers(network, objective, data, train)[0]
        return fit_familiarity(embeddings, asked, halves(train, seed)).score

    def _network(
        self, layers: Sequence[Layer], transform: InputTransform, objective: Objective, seed: int
    ) -> Network:
        spec, filters = self.recipe.first_layer_filters, None
        if spec != "learned":
            first = first_convolution(layers)
            filters = first_layer_filters(
                spec, filters=first.units, size=first.size, channels=self.recipe.channels
            )
        return build_network(
            layers,
            transform,
            outputs=objective.num_outputs,
            seed=seed,
            first_filters=filters,
            freeze_first=self.recipe.freeze_first_layer,
        ).to(self._device)

    def _transform(self, data: ImageData, seed: int) -> InputTransform:
        words = self.recipe.normalize_words
        rows = np.random.default_rng(seed).permutation(data.train)[: MAX_FITTED_IMAGES if words else 1]
        return fit_transform(data.pixels[np.sort(rows)], color=self.recipe.color, normalize=words)


def _device(recipe: LoopRecipe) -> torch.device:
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "bad-setting", "device=cuda, but PyTorch finds no GPU", hint="leave it out: --set device=auto"
        )
    wants_gpu = recipe.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if wants_gpu else "cpu")


def _open_events(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        message = "TensorBoard events were asked for, and the package tensorboard is not installed"
        raise TrainingError(
            "package-missing", message, hint="pip install tensorboard, or leave --tensorboard out"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
