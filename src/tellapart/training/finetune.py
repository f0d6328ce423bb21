"""The probe, and then the last stages of its backbone trained on from there."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from tellapart.data.cache import MAX_MEMORY_BYTES
from tellapart.data.dataset import Dataset
from tellapart.evaluation.familiarity import fit_familiarity
from tellapart.imaging.decode import Pixels
from tellapart.imaging.pool import map_ordered
from tellapart.inference.bundled import (
    BUNDLED,
    LAST_STAGE,
    build_backbone,
    open_backbone,
    read_weights,
    stage_blocks,
)
from tellapart.inference.engine import OpenVINOEngine, best_precision
from tellapart.inference.model import LinearHead
from tellapart.models.graph import split_head
from tellapart.records import Progress
from tellapart.storage import room_for
from tellapart.training.augment import Draws, augment, draw
from tellapart.training.augment_settings import AugmentSettings, parse_augment
from tellapart.training.backbones import open_features
from tellapart.training.checkpoint import CheckpointFolder
from tellapart.training.folds import groups_of, halves
from tellapart.training.gradient import LoopWay
from tellapart.training.loop import IndexArray, LoopData, LoopResult, train_network
from tellapart.training.loop_recipe import FinetuneRecipe
from tellapart.training.objective import Objective
from tellapart.training.probe import FloatMatrix, Probe, fit_head, fit_probe, is_better, val_score
from tellapart.training.probe_recipe import ProbeRecipe
from tellapart.training.resume import checkpoint_folder
from tellapart.training.tail import Tail, depth_below_head, tail_state
from tellapart.training.train import Fitted

HalfArray = NDArray[np.float16]

_IMAGES_A_TASK = 32
_MAPS = "maps"


@dataclass(frozen=True, kw_only=True)
class ViewData(LoopData):
    """What frozen stages make of some views of each image: computed once, and taken at random.

    Attributes:
        views: (M, L) float16: those of an image lie together, the first is of the image as it is.
        first: (N,) where those of each row begin.
        count: (N,) how many it has; 0 for rows that nothing asks about.
    """

    views: HalfArray = field(repr=False)
    first: IndexArray = field(repr=False)
    count: IndexArray = field(repr=False)

    def plain(self, rows: IndexArray, device: torch.device) -> Tensor:
        """(B, L) float32."""
        return torch.from_numpy(self.views[self.first[rows]]).to(device).float()

    def augmented(
        self,
        rows: IndexArray,
        settings: AugmentSettings,
        rng: np.random.Generator,
        device: torch.device,
    ) -> tuple[Tensor, Draws]:
        """(B, L) float32, of one view each; the views are made already, but mixup blends what was computed of two images.

        Source: Verma et al. 2019, "Manifold Mixup", section 2, with the one layer where the frozen stages end.
        """
        chosen = self.first[rows] + rng.integers(self.count[rows])
        given = torch.from_numpy(self.views[chosen]).to(device).float()
        draws = draw(AugmentSettings(mixup=settings.mixup), len(rows), rng)
        if draws.mix is not None:
            given = torch.lerp(given[torch.from_numpy(draws.mix.partner).to(device)], given, draws.mix.share)
        return given, draws


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """What may ship.

    Attributes:
        trunk: ONNX graph from images to embeddings.
        head: from those to logits.
        taught: (n, D) embeddings of train.
        held_out: (m, K) logits of images that did not teach the head; of train where there are none.
        kept: what it is, in words.
        strength: L2 strength C of a probe; None for an output layer of the loop.
        val: log loss in nats and accuracy on val; None without val, and where val taught.
        is_trained: whether it comes out of the loop.
    """

    trunk: bytes = field(repr=False)
    head: LinearHead
    taught: FloatMatrix = field(repr=False)
    held_out: FloatMatrix = field(repr=False)
    kept: str
    strength: float | None = None
    val: tuple[float, float] | None = None
    is_trained: bool = True


class FinetuneWay(LoopWay[FinetuneRecipe], ABC):
    """The probe as a start, the loop from there, and whichever of the two is better on val."""

    @abstractmethod
    def _data(self, dataset: Dataset, seed: int, progress: Progress) -> LoopData:
        """What the network is given, of train and val."""

    @abstractmethod
    def _network(self, head: LinearHead, objective: Objective) -> nn.Module:
        """What is trained, with the probe's head as its output layer."""

    @abstractmethod
    def _trunk(self, network: nn.Module, features: ProbeRecipe) -> bytes:
        """The ONNX graph from images to embeddings as a probe takes them, with what the network has learned."""

    @abstractmethod
    def _depth(self, network: nn.Module) -> Callable[[str], int]:
        """How many stages lie between a parameter and the end of the network, by its name; 0 for the output layer."""

    def _in_loop(self) -> FinetuneRecipe:
        """What the loop is told."""
        return self.recipe

    def fit(self, dataset: Dataset, *, seed: int, progress: Progress) -> Fitted:
        """Fit the probe on train, train on from it, choose by val, answer calib with what will ship."""
        recipe = self.recipe
        data = self._data(dataset, seed, progress)
        train, calib = dataset.used("train"), dataset.used("calib")
        objective = self._objective(dataset)
        probe = self._probe(recipe.probe, train, seed, progress)
        network = self._network(probe.head, objective).to(self._device)
        depth = self._depth(network)
        with self._logged() as on_epoch:
            result = train_network(
                network,
                objective,
                data,
                self._in_loop(),
                seed=seed,
                checkpoints=CheckpointFolder(checkpoint_folder(self._folder)),
                progress=progress,
                on_epoch=on_epoch,
                from_trained=True,
                lr_scale=lambda name: recipe.lr_decay ** depth(name),
                out_of_time=self._out_of_time,
            )
        beaten = self._val_of_fallback(dataset, seed, progress) if self._falls_back else None
        ending = None
        if result.best_epoch or not self._falls_back:
            ending = self._trained(network, objective, result, dataset, progress)
        if ending is None or not is_better(ending.val, beaten):
            ending = self._fallen_back(dataset, seed, progress)
        familiarity = fit_familiarity(ending.taught, ending.held_out, halves(train, seed)).score
        embeddings = self._embed(ending.trunk, calib, progress)
        logits = ending.head.logits(embeddings)
        scores = familiarity.score(embeddings, logits)
        return Fitted(
            trunk=ending.trunk,
            embedding_dim=len(ending.head.weight),
            head=ending.head,
            weights=open_features(recipe.probe)[0].weights,
            held_out_logits=logits,
            held_out_labels=calib.labels,
            method="calib",
            logits=dict(zip(calib.contents, logits, strict=True)),
            familiarity=familiarity,
            familiar_scores=scores,
            scores=dict(zip(calib.contents, scores.tolist(), strict=True)),
            details={
                **self._details(result, network),
                "strength": ending.strength,
                "val_probe": beaten,
                "val_after": ending.val,
                "best_epoch": result.best_epoch if ending.is_trained else 0,
                "kept": ending.kept,
            },
            log=tuple(result.log),
            interrupted=result.interrupted,
        )

    def _trained(
        self, network: nn.Module, objective: Objective, result: LoopResult, dataset: Dataset, progress: Progress
    ) -> "_Ending":
        """The trained stages with the better of two heads: the output layer as it was trained, and a probe of what they give.

        A probe may see more stages than the loop, which moves the last one most; whichever has the lower loss on val is kept,
        each with its own temperature, since that is how it will answer.
        """
        recipe, train, val = self.recipe, dataset.used("train"), dataset.used("val")
        trunk, head = self._trunk(network, recipe.probe), _output_layer(network, objective)
        mean = f"the mean of {result.averaged_epochs} epochs"
        kept = mean if result.averaged_epochs else f"epoch {result.best_epoch}"
        if not (len(val) and result.best_epoch):
            taught = self._embed(trunk, train, progress)
            held_out = head.logits(self._embed(trunk, val, progress) if len(val) else taught)
            return _Ending(trunk=trunk, head=head, taught=taught, held_out=held_out, kept=kept)
        held_out = head.logits(self._embed(trunk, val, progress))
        best, strength = val_score(val.labels, held_out, recipe.class_weights), None
        wide = self._trunk(network, recipe.fallback) if recipe.fallback != recipe.probe else trunk
        taught, asked = self._embed(wide, train, progress), self._embed(wide, val, progress)
        for tried in sorted(recipe.strengths):
            refit = fit_head(taught, train.labels, strength=tried, class_weights=recipe.class_weights)
            logits = refit.logits(asked)
            score = val_score(val.labels, logits, recipe.class_weights)
            if score[0] < best[0]:
                best, strength, head, held_out = score, tried, refit, logits
            elif strength is not None:
                break  # it rises from here
        if strength is not None:
            trunk, kept = wide, f"{kept}, with a probe as its output layer"
        elif wide != trunk:
            taught = self._embed(trunk, train, progress)
        return _Ending(
            trunk=trunk,
            head=head,
            taught=taught,
            held_out=held_out,
            strength=strength,
            val=best,
            kept=kept,
        )

    def _fallen_back(self, dataset: Dataset, seed: int, progress: Progress) -> "_Ending":
        """The probe; the choice is made, and the images that made it may teach."""
        fallback, both = self.recipe.fallback, dataset.used("train", "val")
        trunk = open_features(fallback)[0].onnx_bytes
        probe = self._probe(fallback, both, seed, progress)
        return _Ending(
            trunk=trunk,
            head=probe.head,
            taught=self._embed(trunk, dataset.used("train"), progress),
            held_out=probe.fold_logits,
            strength=probe.strength,
            kept="the probe: no epoch was better on val",
            is_trained=False,
        )

    def _probe(self, recipe: ProbeRecipe, train: Dataset, seed: int, progress: Progress) -> Probe:
        """A probe, fitted on the same images."""
        return fit_probe(
            self._embed(open_features(recipe)[0].onnx_bytes, train, progress),
            train.labels,
            strengths=recipe.strengths,
            folds=recipe.folds,
            seed=seed,
            groups=groups_of(train),
            class_weights=recipe.class_weights,
        )

    def _val_of_fallback(self, dataset: Dataset, seed: int, progress: Progress) -> tuple[float, float] | None:
        """Log loss in nats and accuracy on val of the probe that ships where training does not beat it; None without val."""
        val, fallback = dataset.used("val"), self.recipe.fallback
        if not len(val):
            return None
        probe = self._probe(fallback, dataset.used("train"), seed, progress)
        embeddings = self._embed(open_features(fallback)[0].onnx_bytes, val, progress)
        return val_score(val.labels, probe.head.logits(embeddings), self.recipe.class_weights)

    def _embed(self, trunk: bytes, part: Dataset, progress: Progress) -> FloatMatrix:
        """(n, D) embeddings as the model file will give them."""
        engine = OpenVINOEngine(trunk, input_size_px=self.recipe.input_size_px, outputs=["embedding"])
        rows = self._images.indices(part.contents)
        found = np.empty((len(rows), len(engine.run(self._images.pixels[rows[:1]])["embedding"][0])), np.float32)
        done = 0
        for outputs in map_ordered(lambda batch: engine.run(self._images.pixels[batch]), _batches(rows)):
            embeddings = outputs["embedding"]
            found[done : done + len(embeddings)] = embeddings
            done += len(embeddings)
            progress("features", done, len(rows))
        return found


class StagesWay(FinetuneWay):
    """The last stages of a bundled backbone; what the others make of some views of each image is computed once."""

    @property
    def _cut(self) -> int:
        """The last stage that stays as it is."""
        return LAST_STAGE - self.recipe.train_stages

    def _network(self, head: LinearHead, objective: Objective) -> Tail:
        recipe = self.recipe
        return Tail(
            read_weights(recipe.backbone),
            BUNDLED[recipe.backbone],
            cut=self._cut,
            map_side=_map_side(recipe, self._cut),
            feature_stages=recipe.feature_stages,
            pooling=recipe.feature_pooling,
            head=head,
            outputs=objective.num_outputs,
        )

    def _in_loop(self) -> FinetuneRecipe:
        """Its layers are twice as fast in bfloat16 where the processor has it, as depthwise kernels need no gradient."""
        if self.recipe.precision == "auto" and self._device.type == "cpu":
            return replace(self.recipe, precision=best_precision())
        return self.recipe

    def _depth(self, network: nn.Module) -> Callable[[str], int]:  # noqa: ARG002  the names say it
        return depth_below_head

    def _trunk(self, network: nn.Module, features: ProbeRecipe) -> bytes:
        bundled = BUNDLED[self.recipe.backbone]
        state = tail_state(read_weights(self.recipe.backbone), network, bundled)
        trunk = build_backbone(state, bundled, features.feature_stages, features.feature_pooling)
        content: bytes = trunk.SerializeToString()
        return content

    def _data(self, dataset: Dataset, seed: int, progress: Progress) -> ViewData:
        """Run the frozen stages over all views of train and over val as it is."""
        recipe = self.recipe
        train, val = dataset.used("train"), dataset.used("val")
        labels, names = self._labels(train, val)
        train_rows, val_rows = (self._images.indices(part.contents) for part in (train, val))
        count = np.zeros(len(labels), dtype=np.int64)
        count[val_rows], count[train_rows] = 1, recipe.views
        first = np.cumsum(count) - count
        frozen, pooled = _frozen_stages(recipe, self._cut)
        engine = OpenVINOEngine(frozen, input_size_px=recipe.input_size_px)
        settings = replace(parse_augment(recipe.augment), mixup=0.0)  # that is for the loop

        def compute(job: tuple[int, IndexArray]) -> HalfArray:
            view, rows = job
            pixels = self._images.pixels[rows]
            if view:
                pixels = _augmented(pixels, settings, np.random.default_rng([seed, 3, view, place[rows[0]]]))
            outputs = engine.run(pixels)
            maps = outputs[_MAPS].transpose(0, 2, 3, 1).reshape(len(rows), -1)
            return np.concatenate([maps, outputs["embedding"][:, :pooled]], axis=1).astype(np.float16)

        # What is drawn for an image depends on its place in the dataset, not in the table: that depends on the cache.
        place = {row: i for i, row in enumerate(train_rows.tolist())}
        jobs = [(view, rows) for view in range(recipe.views) for rows in _batches(train_rows)]
        jobs += [(0, rows) for rows in _batches(val_rows)]
        views = np.empty((0, 0), dtype=np.float16)
        done = 0
        for (view, rows), computed in zip(jobs, map_ordered(compute, jobs), strict=True):
            if not len(views):
                views = room_for((int(count.sum()), computed.shape[1]), np.float16, memory_bytes=MAX_MEMORY_BYTES)
            views[first[rows] + view] = computed
            done += len(rows)
            progress("frozen stages", done, len(views))
        return ViewData(
            labels=labels, names=names, train=train_rows, val=val_rows, views=views, first=first, count=count
        )


def _output_layer(network: nn.Module, objective: Objective) -> LinearHead:
    names = ("output.weight", "output.bias")
    output = {name: network.get_parameter(name).detach().cpu().numpy() for name in names}
    weight, bias = split_head(output, objective.num_outputs)
    return LinearHead(weight=weight, bias=bias)


def _frozen_stages(recipe: FinetuneRecipe, cut: int) -> tuple[bytes, int]:
    """A graph of the stages that stay as they are, and how much of its ``embedding`` counts.

    Its outputs are the stages' pooled outputs as ``embedding``, those wanted first, and the last stage's ``maps``.
    """
    wanted = tuple(stage for stage in recipe.feature_stages if stage <= cut)
    stages = wanted if cut in wanted else (*wanted, cut)
    pooled = open_backbone(recipe.backbone, wanted, recipe.feature_pooling).embedding_dim if wanted else 0
    model = onnx.load_model_from_string(open_backbone(recipe.backbone, stages, recipe.feature_pooling).onnx_bytes)
    last = [node.input[0] for node in model.graph.node if node.op_type == "GlobalAveragePool"][-1]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [_MAPS if name == last else name for name in names]
    model.graph.output.append(helper.make_tensor_value_info(_MAPS, TensorProto.FLOAT, ["N", "C", "H", "W"]))
    return model.SerializeToString(), pooled


def _map_side(recipe: FinetuneRecipe, cut: int) -> int:
    """Height and width of the maps after a stage."""
    blocks = stage_blocks(BUNDLED[recipe.backbone])
    side = math.ceil(recipe.input_size_px / 2)  # the stem
    for stage in range(1, cut + 1):
        side = math.ceil(side / blocks[stage][0].stride)
    return side


def _augmented(pixels: Pixels, settings: AugmentSettings, rng: np.random.Generator) -> Pixels:
    """(B, S, S, 3) uint8, each image changed at random."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    changed = augment(images, draw(settings, len(pixels), rng), settings)
    return changed.mul(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def _batches(rows: IndexArray) -> list[IndexArray]:
    return [rows[i : i + _IMAGES_A_TASK] for i in range(0, len(rows), _IMAGES_A_TASK)]
