"""How long things will take on this machine, in proportion to what was measured on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tellapart.data.dataset import Dataset
from tellapart.data.split import MIN_CALIB_IMAGES
from tellapart.inference.bundled import BUNDLED
from tellapart.training.answers import Answered
from tellapart.training.at_hand import Speed
from tellapart.training.folds import MAX_SEARCH_IMAGES
from tellapart.training.loop_recipe import FinetuneRecipe, NetworkRecipe, finetune
from tellapart.training.probe_recipe import ProbeRecipe
from tellapart.training.recipes import Recipe

# An image's share of the loop against its way through the whole backbone by the engine, both on the same cores, by the number of
# stages that are trained, and what the stages before them take of the engine: measured at 224 px, docs/experiments.md.
_TRAINED: Mapping[int, float] = MappingProxyType({1: 0.5, 2: 0.9, 3: 2.1, 4: 3.0, 5: 4.0, 6: 5.5, 7: 7.5})
_FROZEN: Mapping[int, float] = MappingProxyType({1: 0.95, 2: 0.9, 3: 0.75, 4: 0.55, 5: 0.45, 6: 0.35, 7: 0.25})
_STEP_SHARE = 0.05  # of that work which does not shrink with the image: the optimiser's

_ASKED_SHARE = (
    0.1  # val, without gradients, of the last epoch and of the mean of all, against a step with all images
)
_ENGINES_SECONDS = 1.0  # compiling what was trained, for each head and before it is embedded
_LOOP_START_SECONDS = 6.0  # PyTorch's import, the first steps
_VERIFYING_PASSES = 3  # as the file will be used, and in full precision, which takes twice as long
_REPORT_SECONDS = 3.5  # with the start and the end of the process, which no clock of the search sees
_REPORT_SECONDS_PER_IMAGE = 4e-4  # intervals, predictions, ranks
_COPIES_SECONDS_PER_IMAGE = 1e-4  # finding those among images
_FIT_ITERATIONS = 150  # of a head's fit on all images, rounded up: 30 to 140 were seen
_SEARCH_ITERATIONS = 180  # of all fits before it, in folds of MAX_SEARCH_IMAGES at most: 40 to 170
_DEPTH_POWER = (
    3  # deeper bundled backbones are wider, too: 1.3 and 1.6 times the work a pixel were measured for 1.1 and 1.2
)
_SCRATCH_SHARE = 0.4  # an epoch of ``scratch`` at 32 px, an image, against the backbone at 224 px

MIN_LOOP_IMAGES = 400
"""Images to learn from below which a gradient loop is not worth a try: a tenth of them is too few to choose by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Estimates in seconds.

    Attributes:
        speed: of an image's file and of ``recipe``'s backbone, as measured.
        recipe: what was measured.
        learning: number of images outside the test part.
        verified: number of images that verifying asks the finished file about.
        tested: number of test images.
        fit_seconds: what fitting a probe took, or may take.
    """

    speed: Speed
    recipe: ProbeRecipe
    learning: int
    verified: int
    tested: int
    fit_seconds: float = 1.0

    @classmethod
    def expected(cls, speed: Speed, recipe: ProbeRecipe, *, images: int, own_test: int) -> "Cost":
        """What things will take before any of them is done.

        Args:
            speed: as measured.
            recipe: what was measured.
            images: number of those outside a test folder.
            own_test: number of those inside; the recipe's share of the others is tested where there is none.
        """
        tested = own_test or round(recipe.test_fraction * images)
        taught = images if own_test else images - tested
        calib = round(taught * recipe.calib_fraction)
        passes = _FIT_ITERATIONS * taught + _SEARCH_ITERATIONS * min(taught, MAX_SEARCH_IMAGES)
        return cls(
            speed=speed,
            recipe=recipe,
            learning=images,
            verified=calib if calib >= MIN_CALIB_IMAGES else taught,
            tested=tested,
            fit_seconds=1.0 + speed.fitting * passes + _COPIES_SECONDS_PER_IMAGE * images,
        )

    def each(self, recipe: ProbeRecipe | NetworkRecipe | FinetuneRecipe) -> float:
        """An image's way from its file to the answer of another backbone or size; decoding takes as long for any size."""
        return self.speed.decoding + self._engine(recipe)

    def _engine(self, recipe: ProbeRecipe | NetworkRecipe | FinetuneRecipe, side_px: int = 0) -> float:
        """An image's way through that backbone."""
        return self.speed.engine * _work(recipe, side_px) / _work(self.recipe)

    def reading(self, recipe: ProbeRecipe | NetworkRecipe | FinetuneRecipe) -> float:
        """Embedding all images to learn from."""
        return self.learning * self.each(recipe)

    def finish(self, recipe: ProbeRecipe | NetworkRecipe | FinetuneRecipe) -> float:
        """The rest of a run after the search: calibration, verifying, testing, the report."""
        answered = (self.verified + self.tested) * self.each(recipe)
        again = (_VERIFYING_PASSES - 1) * self.verified * self._engine(recipe)
        leaks = _COPIES_SECONDS_PER_IMAGE * (self.learning + self.tested)
        return answered + again + leaks + _REPORT_SECONDS + _REPORT_SECONDS_PER_IMAGE * self.tested

    def longer(
        self,
        recipe: ProbeRecipe | NetworkRecipe | FinetuneRecipe,
        former: ProbeRecipe | NetworkRecipe | FinetuneRecipe,
    ) -> float:
        """How much longer that rest is than with another recipe; at least 0."""
        return max(0.0, self.finish(recipe) - self.finish(former))

    def after_loop(self, recipe: NetworkRecipe | FinetuneRecipe) -> float:
        """What comes between a loop's last step and its model: val, embeddings for two heads, and the fit of one."""
        if not isinstance(recipe, FinetuneRecipe):
            return 0.0
        asked = _ASKED_SHARE * self.learning * self._step(recipe)
        return _ENGINES_SECONDS + asked + 3 * self.learning * self._engine(recipe) + self.fit_seconds

    def _step(self, recipe: FinetuneRecipe) -> float:
        """An image's share of a step of the loop."""
        shrinking = _STEP_SHARE + (1 - _STEP_SHARE) * (recipe.input_size_px / 224) ** 2
        return _TRAINED[recipe.train_stages] * self._engine(recipe, 224) * shrinking

    def loop(self, recipe: NetworkRecipe | FinetuneRecipe, images: int) -> float:
        """A gradient loop over that many training images, its own decoding and embedding included."""
        if isinstance(recipe, FinetuneRecipe):
            training = recipe.epochs * images * self._step(recipe)
            views = recipe.views * images * _FROZEN[recipe.train_stages] * self._engine(recipe)
            start = self.reading(recipe) + self.fit_seconds  # the probe it begins with
            return _LOOP_START_SECONDS + start + training + views + self.after_loop(recipe)
        step = _SCRATCH_SHARE * self._engine(recipe, 224) * ((recipe.input_size_px or 32) / 32) ** 2
        return _LOOP_START_SECONDS + recipe.epochs * images * step


def finetune_seconds(recipe: Recipe, *, learning: Dataset, tested: Answered) -> float | None:
    """What training on the last stages would take on this machine, after a probe.

    Args:
        recipe: of the probe; for any other, and for a backbone that is not bundled, there is no such step.
        learning: the images it learned from; with too few of them there is none either.
        tested: the test images with the time that the model file took for them, all processors working.
    """
    if type(recipe) is not ProbeRecipe or recipe.backbone not in BUNDLED or not tested.answers:
        return None
    if len(learning) < MIN_LOOP_IMAGES:
        return None
    cost = Cost(
        speed=Speed(decoding=0.0, engine=tested.seconds / len(tested.answers)),
        recipe=recipe,
        learning=len(learning),
        verified=0,
        tested=0,
    )
    step = finetune(backbone=recipe.backbone, input_size_px=recipe.input_size_px)
    return cost.loop(step, len(learning.used("train")))


def _work(recipe: ProbeRecipe | NetworkRecipe | FinetuneRecipe, side_px: int = 0) -> float:
    """What an image costs, in units that mean nothing by themselves: pixels times depth."""
    name = recipe.backbone if isinstance(recipe, ProbeRecipe | FinetuneRecipe) else ""
    depth = BUNDLED[name].depth if name in BUNDLED else 1.0
    return (side_px or recipe.input_size_px or 224) ** 2 * depth**_DEPTH_POWER
