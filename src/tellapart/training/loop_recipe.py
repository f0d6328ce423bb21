"""Recipes of the gradient loop: networks from nothing, and pretrained ones trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from tellapart.errors import RecipeError
from tellapart.inference.bundled import BUNDLED, LAST_STAGE, Pooling
from tellapart.models.layers import parse_layers
from tellapart.models.normalize import require_normalize
from tellapart.records import Interpolation, Preprocess, ResizeMode
from tellapart.training.augment_settings import parse_augment
from tellapart.training.probe_recipe import DEFAULT_BACKBONE, ProbeRecipe, probe
from tellapart.training.recipe_parts import ClassWeights, Conformal, check_parts

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one-cycle"]
ColorMode = Literal["rgb", "gray"]
LoopPrecision = Literal["auto", "f32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
When = Literal["auto", "always", "never"]

TUTORIAL_LAYERS = "conv 5x3, pool 2, conv 32x3, pool 2, flatten, dense 128"


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
        check_parts(self)
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
    """The last stages of a bundled backbone, or a whole network of timm, trained on from the probe.

    Attributes:
        backbone: name of the bundled weights, ``timm/NAME``, or ``local-dir:FOLDER``.
        weights: a ``.safetensors`` file for ``timm/NAME``; empty for the hub's.
        interpolation: filter with which an image becomes the model's input: ``bilinear`` or ``bicubic``.
        crop_share: of ``crop``: share of the middle square's side that is kept.
        train_stages: of a bundled backbone: how many of the last stages are trained, of 8; the others are computed once.
        views: of a bundled backbone: how often each training image is computed, the first time as it is, the others augmented.
        lr_decay: what the learning rate is multiplied by at each stage towards the image.
        feature_stages: as of the probe.
        feature_pooling: as of the probe.
        strengths: as of the probe.
        folds: as of the probe.
    """

    backbone: str = "efficientnet_lite0"
    weights: str = ""
    interpolation: Interpolation = "bilinear"
    crop_share: float = 1.0
    train_stages: int = 5
    views: int = 6
    lr_decay: float = 0.7
    feature_stages: tuple[int, ...] = (LAST_STAGE,)
    feature_pooling: Pooling = "mean"
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    folds: int = 5

    def __post_init__(self) -> None:
        LoopRecipe.__post_init__(self)  # super() knows nothing of the class that slots make
        if self.is_bundled:
            self._check_stages()
        _ = self.probe  # checks its own settings

    def _check_stages(self) -> None:
        if parse_augment(self.augment).cutmix:
            message = "the views of an image are computed one by one: none can be cut into another"
            raise RecipeError("bad-setting", message, hint="leave cutmix out; mixup is possible")
        if max(self.feature_stages, default=0) <= LAST_STAGE - self.train_stages:
            message = (
                f"train_stages={self.train_stages} trains nothing that feature_stages {self.feature_stages} see"
            )
            raise RecipeError("bad-setting", message)
        if list(self.feature_stages) != sorted(self.feature_stages):
            raise RecipeError("bad-setting", f"feature_stages must ascend, got {self.feature_stages}")

    @property
    def is_bundled(self) -> bool:
        """Whether the stages of the backbone are known, so that some can be computed once."""
        return self.backbone in BUNDLED

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input."""
        return Preprocess(
            input_size_px=self.input_size_px,
            resize=self.resize,
            interpolation=self.interpolation,
            crop_share=self.crop_share,
        )

    @property
    def probe(self) -> ProbeRecipe:
        """The probe it begins with: of the stage that pretraining ended with, which training moves most."""
        if not self.is_bundled:
            return self.fallback
        return replace(self.fallback, feature_stages=self.feature_stages, feature_pooling=self.feature_pooling)

    @property
    def fallback(self) -> ProbeRecipe:
        """The probe that ships where training does not beat it; for a network of timm as the weights' record has it."""
        return probe(
            backbone=self.backbone,
            weights=self.weights,
            input_size_px=self.input_size_px,
            resize=self.resize if self.is_bundled or self.resize != "squash" else "auto",
            strengths=self.strengths,
            folds=self.folds,
            class_weights=self.class_weights,
        )


_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "color": get_args(ColorMode),
        "optimizer": get_args(Optimizer),
        "schedule": get_args(Schedule),
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
    bundled = BUNDLED.get(settings.get("backbone", DEFAULT_BACKBONE))
    if bundled and not settings["input_size_px"]:
        settings["input_size_px"] = bundled.input_size_px
    return FinetuneRecipe(name="finetune", **settings)


_FINETUNE: Mapping[str, Any] = MappingProxyType(
    {
        "input_size_px": 0,
        "augment": "zoom 0.2, shift 0.1, flip horizontal",
        "epochs": 6,
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 1e-3,
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
