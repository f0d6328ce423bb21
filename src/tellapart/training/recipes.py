"""Recipes: functions that return frozen settings, checked and complete."""

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from tellapart.errors import RecipeError
from tellapart.evaluation.multilabel import require_threshold_goal
from tellapart.inference.bundled import BUNDLED, LAST_STAGE, Pooling
from tellapart.models.layers import parse_layers
from tellapart.models.normalize import require_normalize
from tellapart.records import Interpolation, Preprocess, ResizeMode
from tellapart.training.augment_settings import parse_augment

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one-cycle"]
ColorMode = Literal["rgb", "gray"]
ClassWeights = Literal["none", "balanced"]
LoopPrecision = Literal["auto", "f32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Conformal = Literal["all-classes", "per-class"]
When = Literal["auto", "always", "never"]
Auto = Literal["auto"]

TUTORIAL_LAYERS = "conv 5x3, pool 2, conv 32x3, pool 2, flatten, dense 128"


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
        _check_parts(self)

    def _check_backbone(self) -> None:
        if self.backbone not in BUNDLED:
            if not self.backbone.startswith(("timm/", "local-dir:")):
                hint = f"one of {', '.join(BUNDLED)}; timm/NAME; or local-dir:FOLDER"
                raise RecipeError("bad-setting", f"there is no backbone {self.backbone!r}", hint=hint)
            if self.feature_stages:
                raise RecipeError(
                    "bad-setting", "feature_stages are those of bundled backbones", hint="leave it out"
                )
        if self.weights and not self.backbone.startswith("timm/"):
            message = (
                f"weights={self.weights} needs an architecture, and the backbone {self.backbone!r} brings its own"
            )
            raise RecipeError("bad-setting", message, hint="name it: --set backbone=timm/NAME")
        _ = self.preprocess  # checks its own settings

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input; what is open until the weights are known as bundled backbones have it."""
        return Preprocess(
            input_size_px=self.input_size_px or BUNDLED[_DEFAULT_BACKBONE].input_size_px,
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


_DEFAULT_BACKBONE = "efficientnet_lite0"
_FEATURE_STAGES = (3, 4, 5, 6, 7, 8)


def probe(
    *,
    backbone: str = _DEFAULT_BACKBONE,
    weights: str = "",
    input_size_px: int = 0,
    resize: ResizeMode | Auto = "auto",
    interpolation: Interpolation | Auto = "auto",
    crop_share: float = 0.0,
    feature_stages: tuple[int, ...] = _FEATURE_STAGES,
    feature_pooling: Pooling = "mean-max",
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    folds: int = 5,
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
        test_fraction=test_fraction,
        calib_fraction=calib_fraction,
        coverage=coverage,
        conformal=conformal,
        false_alarms=false_alarms,
        label_thresholds=label_thresholds,
        decision_rules=decision_rules,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopRecipe:
    """What the gradient loop is told, whatever it trains.

    Attributes:
        name: the recipe's own.
        input_size_px: side of the square the model sees; 0 until it is taken from the images.
        resize: how an image becomes that square: ``squash``, ``crop`` or ``pad``.
        augment: what is done to training images at random.
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: ``adam``, ``adamw`` or ``sgd``.
        lr: peak learning rate.
        schedule: of the learning rate: ``constant``, ``cosine`` or ``one-cycle``.
        warmup_epochs: epochs of linear rise, for constant and cosine.
        weight_decay: of kernels and matrices.
        momentum: of ``sgd``.
        label_smoothing: share of the target spread over all classes, 0-1.
        clip_norm: longest gradient, 0 for any.
        ema_decay: of the averaged weights that are measured and kept, 0 for none.
        patience: epochs without a better val before it stops, 0 for never.
        class_weights: ``none``, or ``balanced``: every class counts the same.
        precision: ``f32``, ``bf16`` or ``auto``.
        compile: whether PyTorch compiles the network: ``never``, ``always``, or ``auto``: where it pays.
        device: ``cpu``, ``cuda`` or ``auto``.
        checkpoint_minutes: longest time between checkpoints; one is written after every epoch anyway.
        test_fraction: share of the images set aside for testing when there is no test folder, 0-1.
        val_fraction: share of the rest that chooses the epoch, when there is no val folder; 0 keeps the last epoch.
        calib_fraction: share of the rest set aside for calibration, 0-1.
        coverage: share of prediction sets that hold the true class, 0-1.
        conformal: whether that holds over ``all-classes`` together, or ``per-class``, which needs more images.
        false_alarms: share of familiar images that may be called unfamiliar, 0-0.5; 49 images are enough to promise 0.02.
        label_thresholds: how thresholds are chosen where an image may have several labels: ``f1`` or ``precision P``.
        decision_rules: named bands of a class's probability, such as ``dog: high precision 0.95, low``.
    """

    name: str
    input_size_px: int = 64
    resize: ResizeMode = "squash"
    augment: str = "zoom 0.2, flip horizontal"
    epochs: int = 5
    batch_size: int = 32
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    schedule: Schedule = "constant"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    patience: int = 0
    class_weights: ClassWeights = "none"
    precision: LoopPrecision = "auto"
    compile: When = "auto"
    device: Device = "auto"
    checkpoint_minutes: float = 5.0
    test_fraction: float = 0.2
    val_fraction: float = 0.1
    calib_fraction: float = 0.1
    coverage: float = 0.95
    conformal: Conformal = "all-classes"
    false_alarms: float = 0.02
    label_thresholds: str = "f1"
    decision_rules: str = ""

    def __post_init__(self) -> None:
        for key, values in _CHOICES.items():
            choice = getattr(self, key, values[0])
            if choice not in values:
                raise RecipeError("bad-setting", f"{key} must be one of {', '.join(values)}, got {choice!r}")
        for key, (low, high) in _RANGES.items():
            value: float = getattr(self, key, low)
            if not low <= value <= high:
                raise RecipeError("bad-setting", f"{key} must be {low:g} to {high:g}, got {value:g}")
        _check_parts(self)
        parse_augment(self.augment)
        if self.input_size_px:
            _ = self.preprocess

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input."""
        return Preprocess(input_size_px=self.input_size_px, resize=self.resize)

    @property
    def cross_fits(self) -> bool:
        """Whether it can calibrate without images of their own: not without training again for each fold."""
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkRecipe(LoopRecipe):
    """A network trained from nothing by the gradient loop.

    Attributes:
        color: ``rgb``, or ``gray``: the network sees brightness only.
        normalize: words of Keras' ImageDataGenerator, applied inside the model.
        layers: the network, without its output layer; empty until it is chosen by the images' size.
        first_layer_filters: ``learned``, ``sobel``, ``gabor``, ``laplacian``, or a ``.npy`` file to begin from.
        freeze_first_layer: whether those filters stay as they are.
    """

    color: ColorMode = "rgb"
    normalize: str = ""
    layers: str = TUTORIAL_LAYERS
    first_layer_filters: str = "learned"
    freeze_first_layer: bool = False

    def __post_init__(self) -> None:
        LoopRecipe.__post_init__(self)  # super() knows nothing of the class that slots make
        if self.input_size_px:
            require_normalize(self.normalize_words, color=self.color, input_size_px=self.input_size_px)
        if self.input_size_px and self.layers:
            parse_layers(self.layers, input_size_px=self.input_size_px, channels=self.channels)

    @property
    def normalize_words(self) -> tuple[str, ...]:
        """The words of ``normalize``."""
        return tuple(word.strip() for word in self.normalize.split(",") if word.strip())

    @property
    def channels(self) -> int:
        """What the first layer sees of a pixel."""
        return 3 if self.color == "rgb" else 1

    def sized(self, image_side_px: int) -> "NetworkRecipe":
        """The recipe with what was left to the images filled in.

        Args:
            image_side_px: side of a typical image.
        """
        side = self.input_size_px or min(
            max(_SCRATCH_SIDES), max(min(_SCRATCH_SIDES), 8 * round(image_side_px / 8))
        )
        return replace(self, input_size_px=side, layers=self.layers or _scratch_layers(side))


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneRecipe(LoopRecipe):
    """The last stages of a bundled backbone, trained on from the probe.

    Attributes:
        backbone: name of the bundled weights.
        train_stages: how many of the last stages are trained, of 8; the others are computed once.
        views: how often each training image is computed, the first time as it is, the others augmented.
        lr_decay: what the learning rate is multiplied by at each stage towards the image.
        feature_stages: as of the probe.
        feature_pooling: as of the probe.
        strengths: as of the probe.
        folds: as of the probe.
    """

    backbone: str = "efficientnet_lite0"
    train_stages: int = 3
    views: int = 4
    lr_decay: float = 0.7
    feature_stages: tuple[int, ...] = _FEATURE_STAGES
    feature_pooling: Pooling = "mean-max"
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    folds: int = 5

    def __post_init__(self) -> None:
        LoopRecipe.__post_init__(self)  # super() knows nothing of the class that slots make
        if self.backbone not in BUNDLED:
            message = f"finetune trains bundled backbones, not {self.backbone!r}"
            raise RecipeError("bad-setting", message, hint=f"one of {', '.join(BUNDLED)}")
        if parse_augment(self.augment).mixes:
            hint = "leave mixup and cutmix out"
            raise RecipeError("bad-setting", "the views of an image are computed one by one, not mixed", hint=hint)
        if max(self.feature_stages, default=0) <= LAST_STAGE - self.train_stages:
            message = (
                f"train_stages={self.train_stages} trains nothing that feature_stages {self.feature_stages} see"
            )
            raise RecipeError("bad-setting", message)
        if list(self.feature_stages) != sorted(self.feature_stages):
            raise RecipeError("bad-setting", f"feature_stages must ascend, got {self.feature_stages}")
        _ = self.probe  # checks its own settings

    @property
    def probe(self) -> ProbeRecipe:
        """The probe it begins with."""
        return probe(
            backbone=self.backbone,
            input_size_px=self.input_size_px,
            resize=self.resize,
            feature_stages=self.feature_stages,
            feature_pooling=self.feature_pooling,
            strengths=self.strengths,
            folds=self.folds,
        )


_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "color": get_args(ColorMode),
        "optimizer": get_args(Optimizer),
        "schedule": get_args(Schedule),
        "class_weights": get_args(ClassWeights),
        "precision": get_args(LoopPrecision),
        "compile": get_args(When),
        "device": get_args(Device),
    }
)
_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "epochs": (1, 100_000),
        "batch_size": (2, 65_536),
        "lr": (1e-9, 1e3),
        "warmup_epochs": (0, 1e5),
        "weight_decay": (0, 10),
        "momentum": (0, 0.9999),
        "label_smoothing": (0, 0.9),
        "clip_norm": (0, 1e9),
        "ema_decay": (0, 0.99999),
        "patience": (0, 100_000),
        "checkpoint_minutes": (0.01, 1e6),
        "val_fraction": (0, 0.5),
        "train_stages": (1, 7),
        "views": (1, 64),
        "lr_decay": (0.01, 1),
    }
)
_SCRATCH_SIDES = (16, 128)


def cnn(**settings: Any) -> NetworkRecipe:
    """The tutorial's network, trained from scratch: to see how a convolutional network learns.

    Args:
        settings: fields of ``NetworkRecipe`` that shall differ from the tutorial's.

    Raises:
        RecipeError: bad-setting.
    """
    return NetworkRecipe(name="cnn", **settings)


def scratch(**settings: Any) -> NetworkRecipe:
    """A compact residual network from scratch, sized by the images: for what no pretrained backbone knows.

    Args:
        settings: fields of ``NetworkRecipe`` that shall differ.

    Raises:
        RecipeError: bad-setting.
    """
    return NetworkRecipe(name="scratch", **{**_SCRATCH, **settings})


_SCRATCH: Mapping[str, Any] = MappingProxyType(
    {
        "input_size_px": 0,
        "layers": "",
        "normalize": "featurewise_center, featurewise_std",
        "augment": "shift 0.08, rotation 8, zoom 0.1",
        "epochs": 20,
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 4e-3,
        "schedule": "one-cycle",
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
    }
)


def finetune(**settings: Any) -> FinetuneRecipe:
    """The probe, and then the last stages of its backbone trained on from there; never worse on val than the probe.

    Args:
        settings: fields of ``FinetuneRecipe`` that shall differ; an ``input_size_px`` of 0 takes the backbone's own.

    Raises:
        RecipeError: bad-setting.
    """
    settings = {**_FINETUNE, **settings}
    bundled = BUNDLED.get(settings.get("backbone", _DEFAULT_BACKBONE))
    if bundled and not settings["input_size_px"]:
        settings["input_size_px"] = bundled.input_size_px
    return FinetuneRecipe(name="finetune", **settings)


_FINETUNE: Mapping[str, Any] = MappingProxyType(
    {
        "input_size_px": 0,
        "augment": "zoom 0.1, shift 0.05, flip horizontal",
        "epochs": 6,
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 3e-4,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "clip_norm": 1.0,
        "ema_decay": 0.99,
    }
)


def _scratch_layers(side: int) -> str:
    """Halve the image until about 4 pixels are left, and double the channels."""
    width = 32
    words = [f"conv {width}x3 same", "batchnorm"]
    while side >= 8 and width <= 256:
        words += ["pool 2", f"residual {width}"]
        side, width = side // 2, 2 * width
    return ", ".join([*words, "average"])


Recipe = ProbeRecipe | NetworkRecipe | FinetuneRecipe
RECIPES: Mapping[str, Callable[..., Recipe]] = MappingProxyType(
    {"probe": probe, "finetune": finetune, "cnn": cnn, "scratch": scratch}
)


def build_recipe(name: str = "probe", settings: Mapping[str, Any] | None = None) -> Recipe:
    """Build a recipe by name with some settings of one's own.

    Args:
        name: one of ``RECIPES``.
        settings: values by setting; strings are read as TOML values where they are not meant as text.

    Raises:
        RecipeError: unknown-recipe, unknown-setting, bad-setting.
    """
    if name not in RECIPES:
        raise RecipeError("unknown-recipe", f"there is no recipe {name!r}", hint=f"one of {', '.join(RECIPES)}")
    function = RECIPES[name]
    defaults = recipe_settings(function())
    del defaults["name"]
    for key in settings or {}:
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(defaults)}"
            raise RecipeError("unknown-setting", f"recipe {name!r} has no setting {key!r}", hint=hint)
    return function(**{key: _typed(key, value, defaults[key]) for key, value in (settings or {}).items()})


def _typed(key: str, value: Any, default: Any) -> Any:
    """The value as the kind of thing its default is."""
    if isinstance(value, str) and not isinstance(default, str):
        try:
            (value,) = tomllib.loads(f"value = {value}").values()  # one value: a second line would be another
        except ValueError:  # also TOML's own error, and a number with more digits than Python reads
            raise _wrong_kind(key, value, default) from None
    if isinstance(default, tuple):
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_typed(key, item, default[0]) for item in values)
    if isinstance(default, float) and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _wrong_kind(key, value, default) from None
    if type(value) is not type(default):
        raise _wrong_kind(key, value, default)
    return value


def _wrong_kind(key: str, value: object, default: object) -> RecipeError:
    return RecipeError("bad-setting", f"{key} must be like {json.dumps(default)}, got {value!r}")


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain data."""
    return asdict(recipe)


def recipe_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML. Strings, numbers and lists are written in JSON exactly as in TOML."""
    return "".join(f"{field.name} = {json.dumps(getattr(recipe, field.name))}\n" for field in fields(recipe))


def _check_parts(recipe: ProbeRecipe | LoopRecipe) -> None:
    for key in ("test_fraction", "calib_fraction"):
        fraction = getattr(recipe, key)
        if not 0 < fraction <= 0.5:
            raise RecipeError("bad-setting", f"{key} must be above 0 and at most 0.5, got {fraction}")
    if not 0.5 <= recipe.coverage < 1:
        raise RecipeError("bad-setting", f"coverage must be at least 0.5 and below 1, got {recipe.coverage}")
    if recipe.conformal not in get_args(Conformal):
        message = f"conformal must be {' or '.join(get_args(Conformal))}, got {recipe.conformal!r}"
        raise RecipeError("bad-setting", message)
    if not 0 < recipe.false_alarms <= 0.5:
        raise RecipeError(
            "bad-setting", f"false_alarms must be above 0 and at most 0.5, got {recipe.false_alarms}"
        )
    require_threshold_goal(recipe.label_thresholds)
