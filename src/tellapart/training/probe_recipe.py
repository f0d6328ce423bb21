"""Recipes of the probe, and of the search that begins with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from tellapart.errors import RecipeError
from tellapart.inference.bundled import BUNDLED, Pooling
from tellapart.records import LOCAL, TIMM, Interpolation, Preprocess, ResizeMode
from tellapart.training.budget import MAX_BUDGET_SECONDS
from tellapart.training.recipe_parts import ClassWeights, Conformal, check_parts

Auto = Literal["auto"]

DEFAULT_BACKBONE = "efficientnet_lite0"
_FEATURE_STAGES = (3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecipe:
    """Frozen features and a linear head.

    Attributes:
        name: the recipe's own.
        backbone: name of the bundled weights, ``timm/NAME``, or ``local-dir:FOLDER``.
        weights: a ``.safetensors`` file for ``timm/NAME``; empty for the hub's.
        input_size_px: side of the square the model sees; 0 until it is taken from the weights' record, as are the next three.
        resize: how an image becomes that square: ``squash``, ``crop`` or ``pad``.
        interpolation: filter of that: ``bilinear`` or ``bicubic``.
        crop_share: of ``crop``: share of the middle square's side that is kept.
        feature_stages: which stages' pooled outputs are the features; none where the backbone is not bundled.
        feature_pooling: ``mean`` or ``mean-max``.
        strengths: inverse L2 strengths C to choose from, weakest model first.
        folds: parts of the cross-validation that chooses.
        class_weights: ``none``, or ``balanced``: every class counts the same, however few images it has.
        test_fraction: share of the images set aside for testing when there is no test folder, 0-1.
        calib_fraction: share of the rest set aside for calibration when there is no val folder, 0-1.
        coverage: share of prediction sets that hold the true class, 0-1.
        conformal: whether that holds over ``all-classes`` together, or ``per-class``, which needs more images.
        false_alarms: share of familiar images that may be called unfamiliar, 0-0.5; 49 images are enough to promise 0.02.
        label_thresholds: how thresholds are chosen where an image may have several labels: ``f1`` or ``precision P``.
        decision_rules: named bands of a class's probability, such as ``dog: high precision 0.95, low``.
    """

    name: str
    backbone: str
    weights: str
    input_size_px: int
    resize: ResizeMode | Auto
    interpolation: Interpolation | Auto
    crop_share: float
    feature_stages: tuple[int, ...]
    feature_pooling: Pooling
    strengths: tuple[float, ...]
    folds: int
    class_weights: ClassWeights
    test_fraction: float
    calib_fraction: float
    coverage: float
    conformal: Conformal
    false_alarms: float
    label_thresholds: str
    decision_rules: str

    def __post_init__(self) -> None:
        self._check_backbone()
        ascending = list(self.strengths) == sorted(set(self.strengths))
        if not (self.strengths and ascending and all(0 < c < math.inf for c in self.strengths)):
            raise RecipeError("bad-setting", f"strengths must be above 0 and ascending, got {self.strengths}")
        if self.folds < 2:
            raise RecipeError("bad-setting", f"folds must be at least 2, got {self.folds}")
        check_parts(self)

    def _check_backbone(self) -> None:
        if self.backbone not in BUNDLED:
            if not self.backbone.startswith((TIMM, LOCAL)):
                hint = f"one of {', '.join(BUNDLED)}; timm/NAME; or local-dir:FOLDER"
                raise RecipeError("bad-setting", f"there is no backbone {self.backbone!r}", hint=hint)
            if self.feature_stages:
                raise RecipeError(
                    "bad-setting", "feature_stages are those of bundled backbones", hint="leave it out"
                )
        if self.weights and not self.backbone.startswith(TIMM):
            message = (
                f"weights={self.weights} needs an architecture, and the backbone {self.backbone!r} brings its own"
            )
            raise RecipeError("bad-setting", message, hint="name it: --backbone timm/NAME")
        _ = self.preprocess  # checks its own settings

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input; what is open until the weights are known as bundled backbones have it."""
        return Preprocess(
            input_size_px=self.input_size_px or BUNDLED[DEFAULT_BACKBONE].input_size_px,
            resize="squash" if self.resize == "auto" else self.resize,
            interpolation="bilinear" if self.interpolation == "auto" else self.interpolation,
            crop_share=self.crop_share or 1.0,
        )

    @property
    def val_fraction(self) -> float:
        """None: the strength is chosen by cross-validation inside train."""
        return 0.0

    @property
    def cross_fits(self) -> bool:
        """Whether it can calibrate without images of their own."""
        return True


def probe(
    *,
    backbone: str = DEFAULT_BACKBONE,
    weights: str = "",
    input_size_px: int = 0,
    resize: ResizeMode | Auto = "auto",
    interpolation: Interpolation | Auto = "auto",
    crop_share: float = 0.0,
    feature_stages: tuple[int, ...] = _FEATURE_STAGES,
    feature_pooling: Pooling = "mean-max",
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    folds: int = 5,
    class_weights: ClassWeights = "none",
    test_fraction: float = 0.2,
    calib_fraction: float = 0.1,
    coverage: float = 0.95,
    conformal: Conformal = "all-classes",
    false_alarms: float = 0.02,
    label_thresholds: str = "f1",
    decision_rules: str = "",
) -> ProbeRecipe:
    """Pretrained features and logistic regression: the default, seconds on a laptop.

    Args:
        backbone: name of bundled weights; ``timm/NAME``: timm's, from the hub; ``local-dir:FOLDER``, as timm writes it.
        weights: a ``.safetensors`` file for ``timm/NAME``, in place of the hub's.
        input_size_px: side of the square the model sees; 0 takes the size the backbone was trained at.
        resize: ``squash``, ``crop`` or ``pad``; ``auto``: ``squash`` for bundled weights, else what their record says.
        interpolation: ``bilinear`` or ``bicubic``; ``auto``: ``bilinear`` for bundled weights, else what their record says.
        crop_share: of ``crop``: share of the middle square's side that is kept; 0: all, or what the weights' record says.
        feature_stages: for bundled weights: stages 1-8 whose pooled outputs are the features; 8 follows the last block.
        feature_pooling: ``mean`` of each map, or ``mean-max``: its mean and its largest value (stage 8: the mean only).
        strengths: inverse L2 strengths C to choose from by cross-validation inside train.
        folds: parts of that cross-validation.
        class_weights: ``none``, or ``balanced``: every class counts the same, however few images it has.
        test_fraction: share of the images to test on when there is no test folder.
        calib_fraction: share of the rest to calibrate on when there is no val folder.
        coverage: share of prediction sets that hold the true class.
        conformal: whether that holds over ``all-classes`` together, or ``per-class``, which needs more images.
        false_alarms: share of familiar images that may be called unfamiliar, 0-0.5; 49 images are enough to promise 0.02.
        label_thresholds: how thresholds are chosen where an image may have several labels: ``f1`` or ``precision P``.
        decision_rules: named bands of a class's probability, such as ``dog: high precision 0.95, low``.

    Raises:
        RecipeError: bad-setting.
    """
    if backbone in BUNDLED:
        input_size_px = input_size_px or BUNDLED[backbone].input_size_px
        resize = "squash" if resize == "auto" else resize
        interpolation = "bilinear" if interpolation == "auto" else interpolation
        crop_share = crop_share or 1.0
    elif feature_stages == _FEATURE_STAGES:
        feature_stages = ()
    return ProbeRecipe(
        name="probe",
        backbone=backbone,
        weights=weights,
        input_size_px=input_size_px,
        resize=resize,
        interpolation=interpolation,
        crop_share=crop_share,
        feature_stages=feature_stages,
        feature_pooling=feature_pooling,
        strengths=strengths,
        folds=folds,
        class_weights=class_weights,
        test_fraction=test_fraction,
        calib_fraction=calib_fraction,
        coverage=coverage,
        conformal=conformal,
        false_alarms=false_alarms,
        label_thresholds=label_thresholds,
        decision_rules=decision_rules,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoRecipe(ProbeRecipe):
    """The best model within a budget; as a ``ProbeRecipe`` it says where the search begins.

    Attributes:
        budget_seconds: wall-clock from the command to the finished report.
        val_fraction: share of what is left beside test, without a val folder: it chooses between what was trained.
        searches: names of settings that are searched, of ``SEARCHABLE``.
    """

    budget_seconds: float
    val_fraction: float
    searches: tuple[str, ...]

    def __post_init__(self) -> None:
        ProbeRecipe.__post_init__(self)  # super() knows nothing of the class that slots make
        if not 1 <= self.budget_seconds <= MAX_BUDGET_SECONDS:
            message = f"budget_seconds must be 1 to {MAX_BUDGET_SECONDS:,}, got {self.budget_seconds:g}"
            raise RecipeError("bad-setting", message)
        if not 0 <= self.val_fraction <= 0.5:
            raise RecipeError("bad-setting", f"val_fraction must be 0 to 0.5, got {self.val_fraction:g}")
        for name in self.searches:
            if name not in SEARCHABLE:
                hint = f"any of {', '.join(SEARCHABLE)}"
                raise RecipeError("bad-setting", f"{name!r} cannot be searched", hint=hint)
            if name in ("backbone", "feature_stages") and self.backbone not in BUNDLED:
                message = f"{name} can be searched among bundled backbones only, and {self.backbone} is none"
                raise RecipeError("bad-setting", message, hint="leave it out of searches")

    @property
    def cross_fits(self) -> bool:
        """Not where a gradient loop may follow: that would have to train again for each fold."""
        return not self.val_fraction

    def as_probe(self, **changes: Any) -> ProbeRecipe:
        """The probe with these settings, some of them changed."""
        settings = {f.name: getattr(self, f.name) for f in fields(ProbeRecipe)}
        return ProbeRecipe(**{**settings, "name": "probe", **changes})


def auto(
    *,
    budget_seconds: float = 120.0,
    val_fraction: float = 0.1,
    searches: tuple[str, ...] | None = None,
    **settings: Any,
) -> AutoRecipe:
    """The best model this machine can make in a given time: it tries, and keeps what is better on images it did not learn from.

    Args:
        budget_seconds: wall-clock from the command to the finished report.
        val_fraction: share of what is left beside test, without a val folder: it chooses between what was trained.
        searches: names of settings that are searched, of ``SEARCHABLE``; those that are not given when None.
        settings: of ``probe``.

    Raises:
        RecipeError: bad-setting.
    """
    start = probe(**settings)
    base = {f.name: getattr(start, f.name) for f in fields(ProbeRecipe)}
    if searches is None:
        open_ones = (name for name, unset in SEARCHABLE.items() if settings.get(name, unset) == unset)
        searches = tuple(open_ones) if start.backbone in BUNDLED else ()
    return AutoRecipe(
        **{**base, "name": "auto"}, budget_seconds=budget_seconds, val_fraction=val_fraction, searches=searches
    )


SEARCHABLE: Mapping[str, Any] = MappingProxyType(
    {"input_size_px": 0, "resize": "auto", "backbone": None, "feature_stages": None}
)
"""Settings that ``auto`` can search, and the values that leave them open; None: only being absent does."""
