"""Where and at what size features are best taken: cross-validated on a sample of the training images."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tellapart.data.dataset import Dataset
from tellapart.errors import ImageError
from tellapart.inference.bundled import BUNDLED, LAST_STAGE, is_installed
from tellapart.records import Progress, ResizeMode
from tellapart.training.at_hand import TypicalShape
from tellapart.training.budget import Outcome, Step
from tellapart.training.cost import Cost
from tellapart.training.folds import groups_of, sample_rows
from tellapart.training.probe import ProbeWay, log_losses, search_strength
from tellapart.training.probe_recipe import AutoRecipe, ProbeRecipe
from tellapart.training.train import Way

_LARGER_SIDES = (320, 448, 608)
_SMALLER_SIDES = (160, 112)
_MAX_SIDE_FACTOR = 8  # an image blown up further than that shows nothing new
_STAGES = ((5, 6, 7, 8), (LAST_STAGE,), (2, 3, 4, 5))
_STRETCHED = 1.15
"""Longer side over shorter from which on it is measured how images are best made square."""

_FIT_SHARE = (
    3.0  # cross-validating a candidate on the sample takes so many times its share of fitting the whole probe
)


class FeatureSearch:
    """Tries sizes, backbones, stages and ways to make images square, each from the best so far.

    Args:
        auto: what may be searched.
        start: the probe to begin with.
        train: the images that teach; of them the sample is drawn.
        cost: what things take here.
        strength: C that suited the start; its neighbours are tried, too.
        images: size of the sample, at most.
        shape: of a typical image.
        seed: draws sample and folds.

    Attributes:
        leader: the best so far.
    """

    def __init__(
        self,
        auto: AutoRecipe,
        start: ProbeRecipe,
        train: Dataset,
        *,
        cost: Cost,
        strength: float,
        images: int,
        shape: TypicalShape,
        seed: int,
    ) -> None:
        self.leader = start
        self._auto = auto
        self._start = start
        self._cost = cost
        self._shape = shape
        self._seed = seed
        self._strengths = [c for c in start.strengths if strength / 11 < c < strength * 11]
        self._sample = train.where(pl.int_range(pl.len()).is_in(sample_rows(train.labels, images, seed)))
        self._losses: NDArray[np.float64] | None = None

    def framing(self) -> Iterator[Step]:
        """How images become squares, and of what size; each candidate begins from the leader at that time."""
        if "resize" in self._auto.searches and self._shape.stretch > _STRETCHED:
            for resize in _RESIZES:
                yield from self._step(replace(self._start, resize=resize), f"resize by {resize}")
        if "input_size_px" in self._auto.searches:
            yield from self._sizes()

    def sources(self) -> Iterator[Step]:
        """Which backbone, and which of its stages."""
        if "backbone" in self._auto.searches:
            yield from self._backbones()
        if "feature_stages" in self._auto.searches:
            for stages in _STAGES:
                said = ", ".join(map(str, stages))
                yield from self._step(replace(self.leader, feature_stages=stages), f"features of stages {said}")

    def _sizes(self) -> Iterator[Step]:
        """Larger while that is better; smaller where not even the first step up is."""
        start = self.leader.input_size_px
        for sides in (
            [side for side in _LARGER_SIDES if start < side <= _MAX_SIDE_FACTOR * self._shape.side_px],
            [side for side in _SMALLER_SIDES if side < start],
        ):
            for side in sides:
                before = self.leader
                yield from self._step(replace(before, input_size_px=side), f"images of {side} px")
                if self.leader == before:
                    break
            if self.leader.input_size_px != start:
                return

    def _backbones(self) -> Iterator[Step]:
        """The largest first; each at the size that is to its own as the leader's is to that of the leader's backbone."""
        leader = self.leader
        scale = leader.input_size_px / BUNDLED[leader.backbone].input_size_px
        for name in reversed(tuple(BUNDLED)):
            if name == leader.backbone:
                return
            if is_installed(name):
                side = 4 * round(scale * BUNDLED[name].input_size_px / 4)
                yield from self._step(
                    replace(leader, backbone=name, input_size_px=side), f"backbone {name} at {side} px"
                )
                if self.leader != leader:
                    return

    def go_on_from(self, recipe: ProbeRecipe) -> None:
        """Let another recipe lead: what led on the sample did not lead on all images."""
        if recipe != self.leader:
            self.leader, self._losses = recipe, None

    def _step(self, candidate: ProbeRecipe, name: str) -> Iterator[Step]:
        """The step that compares a candidate with the leader; none for what was compared already."""
        if candidate in (self.leader, self._start):
            return
        n, share = len(self._sample), len(self._sample) / max(1, self._cost.learning)
        recipes = [candidate] if self._losses is not None else [self.leader, candidate]
        fitting = len(recipes) * min(1.0, _FIT_SHARE * share) * self._cost.fit_seconds
        adopting = max(
            self._cost.reading(recipe) + self._cost.fit_seconds + self._cost.longer(recipe, self._start)
            for recipe in {candidate, self.leader} - {self._start}
        )

        def run(progress: Progress) -> Outcome:
            if self._losses is None:
                self._losses = self._cross_validate(self.leader, progress)
            losses = self._cross_validate(candidate, progress)
            difference = losses - self._losses
            before, after = float(self._losses.mean()), float(losses.mean())
            better = bool(difference.mean() < -difference.std() / len(difference) ** 0.5)
            if better:
                self.leader, self._losses = candidate, losses
            return Outcome(before=before, after=after, n=n, kept=better)

        yield Step(
            name=name, seconds=n * self._cost.each(candidate) + fitting + 1.0, then_seconds=adopting, run=run
        )

    def _cross_validate(self, recipe: ProbeRecipe, progress: Progress) -> NDArray[np.float64]:
        """(n,) log loss of each image of the sample, answered by a probe that did not learn from it."""
        way = ProbeWay(recipe)
        prepare_all(way, self._sample, progress)
        found = search_strength(
            way.matrix(self._sample),
            self._sample.labels,
            strengths=self._strengths,
            folds=recipe.folds,
            seed=self._seed,
            groups=groups_of(self._sample),
            class_weights=recipe.class_weights,
        )
        return log_losses(self._sample.labels[found.images], found.logits, recipe.class_weights)


def prepare_all(way: Way, dataset: Dataset, progress: Progress) -> None:
    """Prepare images that were read before.

    Raises:
        ImageError: unreadable-file, when one of them no longer can be: that ends what is tried, not the run.
    """
    if len(way.prepare(dataset, progress).used()) < len(dataset.used()):
        raise ImageError("unreadable-file", "an image that was there when the run began can no longer be read")


_RESIZES: tuple[ResizeMode, ...] = ("crop", "pad")
