"""The one gradient loop: every recipe that trains a network differs by its network, its objective and its settings only."""

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tellapart.errors import TrainingError
from tellapart.imaging.decode import Pixels
from tellapart.records import EpochLog, Progress
from tellapart.training.augment import Draws, augment, draw, mix_targets
from tellapart.training.augment_settings import AugmentSettings, parse_augment
from tellapart.training.checkpoint import Checkpoint, CheckpointFolder
from tellapart.training.loop_recipe import LoopRecipe
from tellapart.training.objective import Objective
from tellapart.training.optim import AveragedWeights, Optimizer, lr_factor, same_lr

_EVALUATED_AT_ONCE: Mapping[str, int] = MappingProxyType({"cpu": 32, "cuda": 256})
"""Images that are measured at once. On a CPU more of 320 px take gigabytes, and twice as long; of 150 px, a tenth less."""

MAX_TRAIN_SAMPLE = 500
"""Training images that are measured after each epoch without augmentation: always the same."""

_COMPILE_PAYS_SECONDS = (
    300.0  # what must be left of a run on a GPU before compiling, which takes up to a minute, pays
)

IndexArray = NDArray[np.int64]


def always_time() -> bool:
    """Never out of time."""
    return False


@dataclass(frozen=True, kw_only=True)
class LoopData(ABC):
    """What the network sees and what it shall say, row by row.

    Attributes:
        labels: (N,) class indices in 0..K-1, or (N, K) of 0 and 1.
        names: N file names, for messages.
        train: (n,) rows that teach.
        val: (m,) rows that choose; may be none.
    """

    labels: IndexArray = field(repr=False)
    names: list[str] = field(repr=False)
    train: IndexArray
    val: IndexArray

    @abstractmethod
    def plain(self, rows: IndexArray, device: torch.device) -> Tensor:
        """(B, ...) what the network takes of rows as they are."""

    @abstractmethod
    def augmented(
        self, rows: IndexArray, settings: AugmentSettings, rng: np.random.Generator, device: torch.device
    ) -> tuple[Tensor, Draws]:
        """(B, ...) the same at random, and what was drawn; nothing but ``rng`` decides it."""


@dataclass(frozen=True, kw_only=True)
class ImageData(LoopData):
    """Images, augmented anew at each step.

    Attributes:
        pixels: (N, S, S, 3) uint8.
    """

    pixels: Pixels = field(repr=False)

    def plain(self, rows: IndexArray, device: torch.device) -> Tensor:
        """(B, 3, S, S) float32 in 0-1."""
        pixels = torch.from_numpy(self.pixels[rows]).to(device, non_blocking=True)
        return pixels.permute(0, 3, 1, 2).float().div_(255)  # channels last in memory, as they were

    def augmented(
        self, rows: IndexArray, settings: AugmentSettings, rng: np.random.Generator, device: torch.device
    ) -> tuple[Tensor, Draws]:
        """(B, 3, S, S) float32 in 0-1."""
        draws = draw(settings, len(rows), rng)
        return augment(self.plain(rows, device), draws, settings), draws


@dataclass(kw_only=True)
class _Position:
    """Where a run is: everything but the tensors. Saved with each checkpoint."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps of the current epoch that are complete
    loss_sum: float = 0.0  # over the images of this epoch
    correct_sum: float = 0.0
    epoch_seconds: float = 0.0
    run_seconds: float = 0.0
    best_rank: list[float] | None = None  # of val, the larger the better
    best_epoch: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    averaged_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How a run ended; the network holds the kept weights.

    Attributes:
        log: one entry for each complete epoch.
        best_epoch: the epoch whose weights were kept, counted from 1; the last one where it was a mean; 0 when none was
            completed, or none better than the start.
        interrupted: whether it was asked to stop before its end.
        seconds: that training took.
        val_before: log loss in nats and accuracy on val of the network as it came; None for one from nothing, or without val.
        averaged_epochs: how many epochs' weights the kept ones are the mean of; 0 for those of a single epoch.
        val_after: the same as ``val_before`` of what was kept; None where that is the start, or without val.
    """

    log: list[EpochLog]
    best_epoch: int
    interrupted: bool
    seconds: float
    val_before: tuple[float, float] | None = None
    averaged_epochs: int = 0
    val_after: tuple[float, float] | None = None


def train_network(
    network: nn.Module,
    objective: Objective,
    data: LoopData,
    recipe: LoopRecipe,
    *,
    seed: int,
    checkpoints: CheckpointFolder,
    progress: Progress,
    on_epoch: Callable[[EpochLog], None],
    from_trained: bool = False,
    lr_scale: Callable[[str], float] = same_lr,
    out_of_time: Callable[[], bool] = always_time,
) -> LoopResult:
    """Train a network, or go on from its checkpoint; on a CPU both end with the same bits.

    Everything random is drawn from the seed and the step's own number, so there is no random state to lose. The first Ctrl-C
    ends the run after the step that is under way, with a checkpoint; the second raises KeyboardInterrupt at once.

    Args:
        network: from what ``data`` gives to a dict with ``logits`` (B, outputs); on the device it trains on.
        objective: gives targets and loss.
        data: train and val images. Val images are never augmented.
        recipe: epochs, batch size, optimiser, schedule and all else.
        seed: draws order, augmentation and dropout.
        checkpoints: read first; written after each epoch, every ``checkpoint_minutes`` and when interrupted.
        progress: called after each step with the number of images seen.
        on_epoch: called after each epoch; on going on, also for those that lie behind.
        from_trained: whether the network answers well already. It is kept unless an epoch, or the mean of all epochs' weights,
            gets more val images right, or as many with a lower loss; of a network from nothing, loss alone decides, since
            accuracy comes in coarse steps, and there is no mean: its epochs lie too far apart.
        lr_scale: what the learning rate of a parameter is multiplied by, by its name.
        out_of_time: asked after each step; training ends there when it says so, as it would after its last epoch: what was
            learned of the one under way is measured, too.

    Returns:
        The log. The network holds the weights that are best on val, or the last epoch's without val images.

    Source of the mean: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", section 3;
    that it holds for what begins from one trained network: Wortsman et al. 2022, "Model soups", section 3.

    Raises:
        TrainingError: loss-not-finite, damaged-checkpoint.
        StorageError: a checkpoint cannot be written; the last one is intact.
    """
    late = False
    with torch.random.fork_rng(), stop_requests() as stop_requested:
        run = _Run(network, objective, data, recipe, seed, lr_scale=lr_scale, from_trained=from_trained)
        run.restore(checkpoints.load())
        for entry in run.log:
            on_epoch(entry)
        last_save = time.monotonic()
        while not (run.finished or stop_requested() or (late := out_of_time())):
            ended = run.step(progress)
            if ended is not None:
                on_epoch(ended)
            if ended is not None or time.monotonic() - last_save > 60 * recipe.checkpoint_minutes:
                checkpoints.save(run.checkpoint())
                last_save = time.monotonic()
        if late and run.position.step:
            on_epoch(run.end_epoch())
        interrupted = not (run.finished or late)
        if interrupted:
            checkpoints.save(run.checkpoint())
        run.keep_best()
    return LoopResult(
        log=run.log,
        best_epoch=run.position.best_epoch,
        interrupted=interrupted,
        seconds=run.position.run_seconds,
        val_before=run.val_before,
        averaged_epochs=run.averaged_epochs,
        val_after=run.val_after,
    )


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request; the second is a KeyboardInterrupt again."""
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or former == signal.SIG_IGN:
        yield lambda: False  # only the main thread may handle signals; a background job is not meant
        return
    requested = threading.Event()

    def request(_signal: int, _frame: object) -> None:
        requested.set()
        signal.signal(signal.SIGINT, former)

    signal.signal(signal.SIGINT, request)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, former)


class _Run:
    """A run under way: network, optimiser, averages, position."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        data: LoopData,
        recipe: LoopRecipe,
        seed: int,
        *,
        lr_scale: Callable[[str], float],
        from_trained: bool,
    ) -> None:
        self._network = network.to(memory_format=torch.channels_last)
        self._device = next(network.parameters()).device
        at_once: int | None = getattr(network, "images_at_once", None)
        self._images_at_once = at_once if self._device.type == "cpu" else None
        self._objective = objective
        self._data = data
        self._recipe = recipe
        self._augment: AugmentSettings = parse_augment(recipe.augment)
        self._seed = seed
        self._optimizer = Optimizer(network, recipe, lr_scale)
        self._average = AveragedWeights(network, recipe.ema_decay) if recipe.ema_decay else None
        self._best: dict[str, Tensor] = {}
        self._mean: dict[str, Tensor] = {}  # of the epochs' measured weights, for networks that began well
        self.averaged_epochs = 0
        self.val_after: tuple[float, float] | None = None  # once ``keep_best`` was called
        self._forward: Callable[[Tensor], Mapping[str, Tensor]] = self._network
        self._precision = _autocast_dtype(recipe, self._device)
        self._drops_out = any(isinstance(module, nn.Dropout) for module in network.modules())
        rng = np.random.default_rng([seed, 0])
        self._sample = rng.permutation(data.train)[:MAX_TRAIN_SAMPLE]
        self._batches = _batch_starts(len(data.train), recipe.batch_size)
        self._order: IndexArray | None = None
        self.position = _Position()
        self._from_trained = from_trained
        self.val_before = self._measure(data.val) if from_trained and len(data.val) else None
        if self.val_before is not None:
            self._remember(*self.val_before)

    @property
    def log(self) -> list[EpochLog]:
        """The epochs that are complete."""
        return [EpochLog(**entry) for entry in self.position.log]

    @property
    def finished(self) -> bool:
        """Whether all epochs are complete, or val has not improved for long enough."""
        position, patience = self.position, self._recipe.patience
        waited = position.epoch - position.best_epoch if position.best_rank else 0
        return position.epoch >= self._recipe.epochs or bool(
            patience and len(self._data.val) and waited >= patience
        )

    def step(self, progress: Progress) -> EpochLog | None:
        """Learn from one batch; returns the log's entry if an epoch ended with it."""
        start = time.perf_counter()
        position = self.position
        rows = self._rows(position.step)
        images, targets = self._batch(rows)
        if self._drops_out:
            torch.manual_seed(_step_seed(self._seed, position.epoch, position.step))
        self._network.train()
        value, logits = self._add_gradients(images, targets)
        if not math.isfinite(value):
            names = ", ".join(self._data.names[row] for row in rows)
            raise _not_finite(value, f"at step {position.step + 1} of epoch {position.epoch + 1}, with {names}")
        if self._recipe.clip_norm:
            nn.utils.clip_grad_norm_(self._network.parameters(), self._recipe.clip_norm)
        self._optimizer.step(self._lr(position.step))
        if self._average:
            self._average.update(self._network)
        right = self._objective.accuracy(self._objective.class_logits(logits), targets)
        position.loss_sum += value * len(rows)
        position.correct_sum += float(right.sum())
        position.step += 1
        seconds = time.perf_counter() - start
        position.epoch_seconds += seconds
        position.run_seconds += seconds
        seen = position.epoch * len(self._data.train) + self._batches[position.step]
        progress("training", seen, self._recipe.epochs * len(self._data.train))
        return self.end_epoch() if position.step == len(self._batches) - 1 else None

    def _add_gradients(self, images: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """Add the gradients of a batch's loss; returns that and the (B, outputs) logits.

        Part by part where the network allows it: what a gradient needs of an image's maps is kept for a part only.
        """
        value, logits = 0.0, []
        size = self._images_at_once or len(images)
        for part, wanted in zip(torch.split(images, size), torch.split(targets, size), strict=True):
            with torch.autocast(self._device.type, dtype=self._precision, enabled=self._precision is not None):
                outputs = self._forward(part)["logits"]
            loss = self._objective.loss(outputs, wanted) * (len(part) / len(images))
            loss.backward()  # type: ignore[no-untyped-call]
            value += loss.item()
            logits.append(outputs.detach())
        return value, torch.cat(logits)

    def _rows(self, step: int) -> IndexArray:
        """The rows of a step's batch; each epoch has an order of its own.

        They are not sorted: where an image lies in the table depends on the cache, and the course of a run must not.
        """
        if self._order is None:
            self._order = np.random.default_rng([self._seed, 1, self.position.epoch]).permutation(self._data.train)
        return self._order[self._batches[step] : self._batches[step + 1]]

    def _batch(self, rows: IndexArray) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) augmented images in 0-1 and (B, K) targets."""
        rng = np.random.default_rng([self._seed, 2, self.position.epoch, self.position.step])
        images, draws = self._data.augmented(rows, self._augment, rng, self._device)
        labels = torch.from_numpy(self._data.labels[rows]).to(self._device)
        return images, mix_targets(self._objective.targets(labels), draws)

    def _lr(self, step: int) -> float:
        """The learning rate of a step of the current epoch."""
        per_epoch = len(self._batches) - 1
        return self._recipe.lr * lr_factor(
            self.position.epoch * per_epoch + step,
            self._recipe.epochs * per_epoch,
            schedule=self._recipe.schedule,
            warmup_steps=round(self._recipe.warmup_epochs * per_epoch),
        )

    def end_epoch(self) -> EpochLog:
        """Measure what an epoch, or as much of it as there was time for, has taught, and keep it if it is best."""
        position = self.position
        n = self._batches[position.step]  # images seen in it
        lr = self._lr(position.step - 1)
        position.epoch += 1
        self._order = None
        with self._measured_weights():
            train_loss, train_accuracy = self._measure(self._sample)
            val_loss, val_accuracy = self._measure(self._data.val) if len(self._data.val) else (None, None)
            self._remember(val_loss, val_accuracy)
            if self._from_trained:
                self._add_to_mean()
        entry = EpochLog(
            epoch=position.epoch,
            epochs=self._recipe.epochs,
            running_loss=position.loss_sum / n,
            running_accuracy=position.correct_sum / n,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=lr,
            images_per_s=n / position.epoch_seconds,
            seconds=position.run_seconds,
        )
        position.log.append(asdict(entry))
        self._compile_if_it_pays(position.epoch_seconds)
        position.step, position.loss_sum, position.correct_sum, position.epoch_seconds = 0, 0.0, 0.0, 0.0
        return entry

    def _remember(self, val_loss: float | None, val_accuracy: float | None) -> bool:
        """Keep the weights that are measured now if val finds them best; without val the newest. Returns whether they were."""
        position = self.position
        rank = None
        if val_loss is not None and val_accuracy is not None:
            rank = [val_accuracy if self._from_trained else 0.0, -val_loss]
        if rank is not None and position.best_rank is not None and rank <= position.best_rank:
            return False
        position.best_rank, position.best_epoch = rank, position.epoch
        self._best = _copies(self._network)
        return True

    def keep_best(self) -> None:
        """Put the best weights into the network; before the end of the first epoch, those of the moment."""
        position = self.position
        if position.best_epoch:
            entry = self.log[position.best_epoch - 1]
            if entry.val_loss is not None and entry.val_accuracy is not None:
                self.val_after = entry.val_loss, entry.val_accuracy
        if position.epoch > 1 and self._mean and len(self._data.val):
            self._network.load_state_dict(self._mean)
            measured = self._measure(self._data.val)
            if self._remember(*measured):
                self.averaged_epochs, self.val_after = position.epoch, measured
        if self._best:
            self._network.load_state_dict(self._best)
        elif self._average:
            self._network.load_state_dict(self._average.state)

    def _add_to_mean(self) -> None:
        """Of all epochs the same share."""
        if not self._mean:
            self._mean = _copies(self._network)
            return
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._mean[name].lerp_(value.detach(), 1 / self.position.epoch)

    @contextmanager
    def _measured_weights(self) -> Iterator[None]:
        """The network with its averaged weights, where there are any."""
        if self._average is None:
            yield
            return
        own = _copies(self._network)
        self._network.load_state_dict(self._average.state)
        try:
            yield
        finally:
            self._network.load_state_dict(own)

    def _measure(self, rows: IndexArray) -> tuple[float, float]:
        """Mean log loss in nats and accuracy, without augmentation, smoothing or weights.

        Raises:
            TrainingError: loss-not-finite: the last step broke the weights, and they must not be kept.
        """
        logits = class_logits(self._network, self._objective, self._data, rows)
        targets = self._objective.targets(torch.from_numpy(self._data.labels[rows]))
        loss = self._objective.plain_loss(logits, targets).item()
        if not math.isfinite(loss):
            raise _not_finite(loss, f"after the last step of epoch {self.position.epoch}")
        return loss, float(self._objective.accuracy(logits, targets).mean())

    def _compile_if_it_pays(self, epoch_seconds: float) -> None:
        """After the first epoch its length is known. On a CPU compiling was never measured to pay: docs/experiments.md."""
        left = (self._recipe.epochs - self.position.epoch) * epoch_seconds
        wanted = self._recipe.compile == "always" or (
            self._recipe.compile == "auto" and self._device.type == "cuda" and left > _COMPILE_PAYS_SECONDS
        )
        if wanted and self._forward is self._network:
            self._forward = torch.compile(self._network)

    def checkpoint(self) -> Checkpoint:
        """This moment."""
        tensors = {f"network.{name}": value for name, value in self._network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        tensors |= {f"mean.{name}": value for name, value in self._mean.items()}
        tensors |= {f"optimizer.{name}": value for name, value in self._optimizer.state.items()}
        if self._average:
            tensors |= {f"average.{name}": value for name, value in self._average.state.items()}
            self.position.averaged_steps = self._average.steps
        return Checkpoint(tensors=tensors, state={"position": asdict(self.position)})

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go back to a moment; to the beginning without one.

        Raises:
            TrainingError: damaged-checkpoint, when it belongs to another network.
        """
        if checkpoint is None:
            return
        parts: dict[str, dict[str, Tensor]] = {
            name: {} for name in ("network", "best", "mean", "optimizer", "average")
        }
        try:
            for name, value in checkpoint.tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = value
            self.position = _Position(**checkpoint.state["position"])
            self._network.load_state_dict(parts["network"])
            self._best, self._mean = (
                {name: value.to(self._device) for name, value in parts[part].items()} for part in ("best", "mean")
            )
            if self._average:
                self._average.steps = self.position.averaged_steps
                for name, value in parts["average"].items():
                    self._average.state[name].copy_(value)
            for name, value in parts["optimizer"].items():
                self._optimizer.state[name].copy_(value)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            hint = "delete the run folder's checkpoint folder and train again"
            raise TrainingError("damaged-checkpoint", f"it is of another run: {error}", hint=hint) from error


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def class_logits(network: nn.Module, objective: Objective, data: LoopData, rows: IndexArray) -> Tensor:
    """(n, K) float32 logits of images as they are, on the CPU; the network is left in evaluation mode."""
    parts = [objective.class_logits(outputs["logits"]).cpu() for outputs in _iter_outputs(network, data, rows)]
    return torch.cat(parts) if parts else torch.zeros(0, objective.num_classes)


def embeddings_and_logits(
    network: nn.Module, objective: Objective, data: LoopData, rows: IndexArray
) -> tuple[Tensor, Tensor]:
    """The same, n at least 1, with the (n, D) embeddings of the same pass before them."""
    parts = [
        (outputs["embedding"].cpu(), objective.class_logits(outputs["logits"]).cpu())
        for outputs in _iter_outputs(network, data, rows)
    ]
    embeddings, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return embeddings, logits


def _iter_outputs(network: nn.Module, data: LoopData, rows: IndexArray) -> Iterator[dict[str, Tensor]]:
    """What the network says of images as they are, batch by batch; it is left in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    size = _EVALUATED_AT_ONCE[device.type]
    for start in range(0, len(rows), size):
        with torch.no_grad():
            yield network(data.plain(rows[start : start + size], device))


def _not_finite(loss: float, when: str) -> TrainingError:
    hint = "try a smaller learning rate: --set lr=... or --set clip_norm=1"
    return TrainingError("loss-not-finite", f"the loss became {loss} {when}", hint=hint)


def _step_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _batch_starts(images: int, batch_size: int) -> list[int]:
    """Where batches begin, and the end. A last batch of one joins the one before: batch norm cannot learn from one image."""
    starts = [*range(0, images, batch_size), images]
    if len(starts) > 2 and starts[-1] - starts[-2] == 1:
        del starts[-2]
    return starts


def _autocast_dtype(recipe: LoopRecipe, device: torch.device) -> torch.dtype | None:
    """Bfloat16 where asked for, or where it was measured to be faster: on a GPU that computes in it."""
    if recipe.precision == "bf16":
        return torch.bfloat16
    if recipe.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return None
