"""The best model within a budget: a probe first, and then whatever is better and fits."""

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tellapart.data.dataset import Dataset
from tellapart.errors import RecipeError
from tellapart.imaging.decode import Pixels
from tellapart.inference.bundled import BUNDLED, LAST_STAGE
from tellapart.records import EpochLog, Progress, no_progress
from tellapart.training.at_hand import measure_speed, typical_shape
from tellapart.training.budget import Budget, Clock, Outcome, Step, spend
from tellapart.training.cost import MIN_LOOP_IMAGES, Cost
from tellapart.training.feature_search import FeatureSearch, prepare_all
from tellapart.training.folds import draw_images, thin_out
from tellapart.training.loop_recipe import FinetuneRecipe, NetworkRecipe, finetune, scratch
from tellapart.training.probe import ProbeWay, fit_head, is_better, val_score
from tellapart.training.probe_recipe import AutoRecipe, ProbeRecipe
from tellapart.training.recipes import Recipe
from tellapart.training.train import LOG_FILES, Fitted, Way, learning_part, open_loop_way

_SMALLER_SIDE_PX = 160  # where even the first probe does not fit
_FEWER = 0.9  # from one number of images to the next that may be learned from in time
_SMALL_SIDE_PX = 64
"""Up to here an image is small enough for a network from nothing to be worth a try."""

MIN_SAMPLE_IMAGES, MAX_SAMPLE_IMAGES = 300, 2_000
"""Training images that features are chosen on: enough to see a tenth of the loss."""

_SHARE_A_CHOICE = 1 / 12  # of the time, for embedding the sample once more


@dataclass(frozen=True, kw_only=True, slots=True)
class _Best:
    """The best model so far, and how it did on val: log loss in nats and accuracy; None while nobody asked."""

    fitted: Fitted
    recipe: Recipe
    val: tuple[float, float] | None = None


class AutoWay:
    """A probe to fall back on, a search of its features, and gradient loops, as far as the budget goes.

    Args:
        recipe: budget, where the search begins, and what it may change.
        folder: the run's own.
        on_epoch: called after each epoch of a gradient loop.
        clock: what is asked for the time.
        began: when the budget began, by the clock; now when None.
    """

    def __init__(
        self,
        recipe: AutoRecipe,
        folder: Path,
        *,
        on_epoch: Callable[[EpochLog], None],
        clock: Clock = time.monotonic,
        began: float | None = None,
    ) -> None:
        self.recipe: Recipe = recipe
        self._auto = recipe
        self._folder = folder
        self._on_epoch = on_epoch
        self._budget = Budget(recipe.budget_seconds, clock, began)
        self._way = ProbeWay(recipe.as_probe())
        self._leading: Way | None = None  # the way of the best so far
        self._begun: set[str] = set()  # names of the loops that were tried
        self._untrained = ""  # why there were none

    def prepare(self, dataset: Dataset, progress: Progress) -> Dataset:
        """Measure this machine on some images, settle what the first probe sees, and embed the images; see ``Way``.

        Raises:
            RecipeError: budget-too-short, when reading the images once takes longer.
        """
        recipe, own_test = self._way.recipe, len(dataset.used("test"))
        images = learning_part(dataset).images
        speed = measure_speed(self._way.backbone, recipe.preprocess, images, len(dataset.class_names))
        expected = partial(Cost.expected, speed, recipe, own_test=own_test)
        self._way, dataset = self._in_time(dataset, expected)
        self._cost = expected(images=len(learning_part(dataset)))
        self._untrained = self._why_not_train(self._cost.learning - (0 if own_test else self._cost.tested))
        self.recipe = self._auto = replace(
            self._auto,
            input_size_px=self._way.recipe.input_size_px,
            val_fraction=0.0 if self._untrained else self._auto.val_fraction,
        )
        begun = self._budget.spent()
        dataset = self._way.prepare(dataset, progress)
        self._budget.learn(self._cost.reading(self._way.recipe), self._budget.spent() - begun)
        return dataset

    def thumbnails(self, part: Dataset) -> Pixels:
        """(N, 32, 32) uint8 of prepared images, as the best model sees them."""
        return (self._leading or self._way).thumbnails(part)

    def fit(self, dataset: Dataset, *, seed: int, progress: Progress) -> Fitted:
        """Fit the probe, then improve on it while there is time; what is chosen is chosen by train and val."""
        begun = self._budget.spent()
        fitted = self._way.fit(_taught(dataset), seed=seed, progress=progress)
        self._keep(_Best(fitted=fitted, recipe=self._way.recipe), self._way)
        self._cost = replace(
            self._cost, learning=len(learning_part(dataset)), fit_seconds=self._budget.spent() - begun
        )
        search = spend(self._budget, self._steps(dataset, seed), progress)
        fitted = self._best.fitted
        found = {
            "budget_seconds": self._budget.seconds,
            "images_per_s": 1 / self._cost.each(self._cost.recipe),
            "tried": [asdict(tried) for tried in search.tried],
            "left_out": [asdict(left) for left in search.left_out],
            "untrained": self._untrained,
            "interrupted": search.interrupted,
        }
        interrupted = search.interrupted or fitted.interrupted
        return replace(fitted, details={**fitted.details, "search": found}, interrupted=interrupted)

    def _in_time(self, dataset: Dataset, expected: Callable[..., Cost]) -> tuple[ProbeWay, Dataset]:
        """A probe that there is time for: at the size where the search begins, else at a smaller one, else of fewer images.

        Args:
            dataset: all of them.
            expected: what a number of them will cost.
        """
        recipe, learning = self._way.recipe, learning_part(dataset)
        smaller = _SMALLER_SIDE_PX if "input_size_px" in self._auto.searches else recipe.input_size_px
        sides = (recipe.input_size_px, min(smaller, recipe.input_size_px))
        images, fewest = len(learning), len(draw_images(learning, 0))
        plans = [(side, images) for side in sides]
        while images > fewest:
            images = max(fewest, int(_FEWER * images))
            plans.append((sides[-1], images))
        for side, images in plans:
            probe, cost = replace(recipe, input_size_px=side), expected(images=images)
            needed = cost.reading(probe) + cost.fit_seconds + cost.finish(probe)
            # Without caution: there is no smaller step to fall back on, and fewer images are worse than some seconds more.
            if needed < self._budget.seconds - self._budget.spent():
                return ProbeWay(probe), thin_out(dataset, images)
        message = (
            f"a budget of {self._budget.seconds:g} s is too short: learning from {images:,} images,"
            f" testing {cost.tested:,} and reporting takes about {needed:.0f} s here"
        )
        enough = 10 * (1 + round(self._budget.spent() + 1.5 * needed) // 10)
        raise RecipeError("budget-too-short", message, hint=f"give it more: --budget {enough}s; or fewer images")

    def _why_not_train(self, learning: int) -> str:
        """Why no gradient loop can have its turn, so that no images need be kept for val; empty where one may.

        Args:
            learning: how many images will not be tested on.
        """
        if not self._auto.val_fraction:
            return "val_fraction is 0, and without val images there is nothing to choose by"
        if self._way.recipe.backbone not in BUNDLED:
            return "the backbone is not bundled; --recipe finetune trains it"
        if learning < MIN_LOOP_IMAGES:
            return f"with fewer than {MIN_LOOP_IMAGES} images to learn from there are too few to choose by"
        if importlib.util.find_spec("torch") is None:
            return "PyTorch is not installed (pip install 'tellapart[train]')"
        trained = round(learning * (1 - self._auto.calib_fraction) * (1 - self._auto.val_fraction))
        recipe = self._finetune(self._way.recipe, _EXTENTS[-1], _EXTENTS[-1].least_epochs(trained))
        rest = self._cost.reading(self._way.recipe) + self._cost.finish(self._way.recipe)
        # Without caution: each step is asked again before it begins, and val images teach a probe all the same.
        needed = self._budget.spent() + rest + self._cost.loop(recipe, trained)
        if needed > self._budget.seconds:
            return f"it would take a budget of about {needed:.0f} s here"
        return ""

    def _steps(self, dataset: Dataset, seed: int) -> Iterator[Step]:
        """What to try, the most promising for its time first; each is settled when its turn comes."""
        train = dataset.used("train")
        shape = typical_shape(train.images)
        search = FeatureSearch(
            self._auto,
            self._way.recipe,
            train,
            cost=self._cost,
            strength=self._best.fitted.details["strength"],
            images=self._sample_images(),
            shape=shape,
            seed=seed,
        )
        yield from search.framing()
        if search.leader != self._way.recipe:
            yield self._adopt(search.leader, dataset, seed)
            search.go_on_from(self._way.recipe)
        if self._auto.val_fraction and len(dataset.used("val")):
            if shape.side_px <= _SMALL_SIDE_PX:
                yield self._train(
                    self._scratch(shape.side_px), "a small network trained from nothing", dataset, seed
                )
            yield from self._finetunes(dataset, seed)
        if self._best.fitted.log:
            return  # trained, and better than the probe, which what follows would hardly make up for
        yield from search.sources()
        if search.leader != self._way.recipe:
            yield self._adopt(search.leader, dataset, seed)

    def _finetunes(self, dataset: Dataset, seed: int) -> Iterator[Step]:
        """The largest that fits, and no other: what is trained longer and deeper has been better, where it had the time."""
        features = self._best.recipe if isinstance(self._best.recipe, ProbeRecipe) else self._way.recipe
        for extent in _EXTENTS:
            for epochs in range(extent.most_epochs, extent.least_epochs(len(dataset.used("train"))) - 1, -1):
                recipe = self._finetune(features, extent, epochs)
                first = LAST_STAGE + 1 - recipe.train_stages
                name = f"stages {first}-{LAST_STAGE} trained, {epochs} epochs, {recipe.input_size_px} px"
                step = self._train(recipe, name, dataset, seed)
                if self._budget.fits(step.seconds + step.then_seconds):
                    break
            # A loop that is cut short gave less than a smaller one with its whole schedule; there is none after the last.
            yield replace(step, ends_in_time=extent == _EXTENTS[-1])
            if step.name in self._begun:
                return

    def _sample_images(self) -> int:
        """How many images a choice is made on: as many as leave time for several choices."""
        affordable = (
            self._budget.left() * _SHARE_A_CHOICE / self._budget.expected(self._cost.each(self._cost.recipe))
        )
        return min(MAX_SAMPLE_IMAGES, max(MIN_SAMPLE_IMAGES, int(affordable)))

    def _adopt(self, recipe: ProbeRecipe, dataset: Dataset, seed: int) -> Step:
        """The probe with the features that led on a sample, on all images; kept if it leads there, too."""

        def run(progress: Progress) -> Outcome:
            way = ProbeWay(recipe)
            prepare_all(way, dataset, progress)
            fitted = way.fit(_taught(dataset), seed=seed, progress=no_progress)
            before, after = (_search_loss(one) for one in (self._best.fitted, fitted))
            if after < before:
                self._way = way
                self._keep(_Best(fitted=fitted, recipe=recipe), way)
            return Outcome(before=before, after=after, n=len(dataset.used("train", "val")), kept=after < before)

        return Step(
            name="the best of these, on all images",
            seconds=self._cost.reading(recipe) + self._cost.fit_seconds,
            then_seconds=self._cost.longer(recipe, self._best.recipe),
            run=run,
        )

    def _train(self, recipe: NetworkRecipe | FinetuneRecipe, name: str, dataset: Dataset, seed: int) -> Step:
        """A gradient loop; kept if it is better on val."""
        seconds = self._cost.loop(recipe, len(dataset.used("train")))

        def run(progress: Progress) -> Outcome:
            self._begun.add(name)
            folder = self._folder / "checkpoint" / recipe.name
            after_loop, before = self._cost.after_loop(recipe), self._val_before(dataset)
            lead = before[1] if isinstance(recipe, NetworkRecipe) else 0.0
            watch = _Watch(self._on_epoch, lead=lead, at_the_end=self._budget.wind_up)

            def no_more() -> bool:
                over = watch.hopeless or self._budget.left() < self._budget.expected(after_loop)
                if over:
                    self._budget.wind_up()
                return over

            way = open_loop_way(recipe, folder, on_epoch=watch, out_of_time=no_more, falls_back=False)
            try:
                prepare_all(way, dataset, progress)
                fitted = way.fit(dataset, seed=seed, progress=progress)
                after: tuple[float, float] | None = fitted.details["val_after"]
                better = after is not None and is_better(after, before)
                if better:
                    kept = replace(fitted, interrupted=False)
                    self._keep(_Best(fitted=kept, recipe=way.recipe, val=after), way)
                    for file in LOG_FILES:
                        (folder / file).replace(self._folder / file)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return Outcome(
                before=before[0],
                after=after[0] if after else before[0],
                n=len(dataset.used("val")),
                kept=better,
                interrupted=fitted.interrupted,
            )

        return Step(name=name, seconds=seconds, then_seconds=self._cost.longer(recipe, self._best.recipe), run=run)

    def _keep(self, best: _Best, way: Way) -> None:
        self._best, self._leading = best, way
        self.recipe = best.recipe
        self._budget.finish_seconds = self._cost.finish(best.recipe)

    def _finetune(self, features: ProbeRecipe, extent: "_Extent", epochs: int) -> FinetuneRecipe:
        share = extent.side_share if "input_size_px" in self._auto.searches else 1.0
        return finetune(
            backbone=features.backbone,
            resize=features.resize,
            interpolation=features.interpolation,
            crop_share=features.crop_share,
            strengths=features.strengths,
            folds=features.folds,
            input_size_px=max(32, 32 * round(features.input_size_px * share / 32)),
            train_stages=extent.train_stages,
            epochs=epochs,
            views=min(epochs, extent.views),
            **_of_any(self._auto),
        )

    def _scratch(self, image_side_px: int) -> NetworkRecipe:
        """Sized by the images where no size was given."""
        given = {} if "input_size_px" in self._auto.searches else {"input_size_px": self._auto.input_size_px}
        resize = self._way.recipe.preprocess.resize
        return scratch(resize=resize, **given, **_of_any(self._auto)).sized(image_side_px)

    def _val_before(self, dataset: Dataset) -> tuple[float, float]:
        """Log loss and accuracy on val of the best so far; of a probe, as it is without having learned from val."""
        if self._best.val is not None:
            return self._best.val
        train, val = dataset.used("train"), dataset.used("val")
        matrix = self._way.matrix(train)
        head = fit_head(
            matrix,
            train.labels,
            strength=self._best.fitted.details["final_strength"],
            class_weights=self._auto.class_weights,
        )
        logits = head.logits(self._way.matrix(val))
        measured = val_score(val.labels, logits, self._auto.class_weights)
        self._best = replace(self._best, val=measured)
        return measured


class _Watch:
    """Listens to a loop's epochs, and gives up on one that is far behind.

    Args:
        on_epoch: told of each, too.
        lead: accuracy on val of the best so far; 0 for a loop that begins there.
        at_the_end: called after the last.

    Attributes:
        hopeless: whether it is still ``_FAR_BEHIND`` after half its epochs.
    """

    def __init__(
        self, on_epoch: Callable[[EpochLog], None], *, lead: float, at_the_end: Callable[[], None]
    ) -> None:
        self._on_epoch = on_epoch
        self._lead = lead
        self._at_the_end = at_the_end
        self.hopeless = False

    def __call__(self, entry: EpochLog) -> None:
        self._on_epoch(entry)
        if entry.epoch == entry.epochs:
            self._at_the_end()
        if 2 * entry.epoch >= entry.epochs and entry.val_accuracy is not None:
            self.hopeless = entry.val_accuracy < self._lead - _FAR_BEHIND


_FAR_BEHIND = 0.2

_OF_ANY = ("test_fraction", "val_fraction", "calib_fraction", "coverage", "conformal", "false_alarms", "label_thresholds",
           "decision_rules", "class_weights")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extent:
    """How far a backbone is trained.

    Attributes:
        side_share: of the side that suits the probe.
        train_stages: the last so many.
        least: epochs of ``_USUAL_IMAGES`` below which a smaller extent does better.
        most_epochs: more have not been better.
        views: of each image, at most.
    """

    side_share: float
    train_stages: int
    least: int
    most_epochs: int
    views: int = 8

    def least_epochs(self, images: int) -> int:
        """Of more images, fewer epochs: it is the steps that count."""
        return max(1, min(self.least, round(self.least * _USUAL_IMAGES / max(1, images))))


_USUAL_IMAGES = 2_600  # how many were trained on where the extents were compared (docs/experiments.md)


# The largest first. A smaller image buys epochs: at 0.57 of the side they take a third of the time (docs/experiments.md).
_EXTENTS = (
    _Extent(side_share=1.0, train_stages=6, least=6, most_epochs=12),
    _Extent(side_share=0.71, train_stages=6, least=8, most_epochs=10),
    _Extent(side_share=0.57, train_stages=6, least=6, most_epochs=10),
    _Extent(side_share=0.57, train_stages=5, least=3, most_epochs=8),
)


def _of_any(recipe: AutoRecipe) -> dict[str, Any]:
    """The settings that do not depend on what is trained."""
    return {name: getattr(recipe, name) for name in _OF_ANY}


def _taught(dataset: Dataset) -> Dataset:
    """With val as part of train: a probe chooses nothing by it."""
    return dataset.with_columns(pl.col("split").replace("val", "train"))


def _search_loss(fitted: Fitted) -> float:
    """Cross-validated log loss of a probe at the strength that was chosen."""
    losses: dict[str, float] = fitted.details["search_log_loss"]
    return min(losses.values())
