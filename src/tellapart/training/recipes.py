"""Recipes: functions that return frozen settings, checked and complete."""

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from tellapart.errors import RecipeError
from tellapart.inference.bundled import BUNDLED, LAST_STAGE
from tellapart.records import Preprocess, ResizeMode


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecipe:
    """Frozen features and a linear head.

    Attributes:
        name: the recipe's own.
        backbone: name of the bundled weights.
        input_size_px: side of the square the model sees.
        resize: how an image becomes that square: ``squash``, ``crop`` or ``pad``.
        feature_stages: which stages' pooled outputs are the features.
        strengths: inverse L2 strengths C to choose from, weakest model first.
        folds: parts of the cross-validation that chooses.
        test_fraction: share of the images set aside for testing when there is no test folder, 0-1.
        calib_fraction: share of the rest set aside for calibration when there is no val folder, 0-1.
        coverage: share of prediction sets that hold the true class, 0-1.
    """

    name: str
    backbone: str
    input_size_px: int
    resize: ResizeMode
    feature_stages: tuple[int, ...]
    strengths: tuple[float, ...]
    folds: int
    test_fraction: float
    calib_fraction: float
    coverage: float

    def __post_init__(self) -> None:
        _ = self.preprocess  # checks its own settings
        ascending = list(self.strengths) == sorted(set(self.strengths))
        if not (self.strengths and ascending and all(0 < c < math.inf for c in self.strengths)):
            raise RecipeError("bad-setting", f"strengths must be above 0 and ascending, got {self.strengths}")
        if self.folds < 2:
            raise RecipeError("bad-setting", f"folds must be at least 2, got {self.folds}")
        for key, fraction in (("test_fraction", self.test_fraction), ("calib_fraction", self.calib_fraction)):
            if not 0 < fraction <= 0.5:
                raise RecipeError("bad-setting", f"{key} must be above 0 and at most 0.5, got {fraction}")
        if not 0.5 <= self.coverage < 1:
            raise RecipeError("bad-setting", f"coverage must be at least 0.5 and below 1, got {self.coverage}")

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input."""
        return Preprocess(input_size_px=self.input_size_px, resize=self.resize)


def probe(
    *,
    backbone: str = "efficientnet_lite0",
    input_size_px: int = 0,
    resize: ResizeMode = "squash",
    feature_stages: tuple[int, ...] = (LAST_STAGE,),
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    folds: int = 5,
    test_fraction: float = 0.2,
    calib_fraction: float = 0.1,
    coverage: float = 0.95,
) -> ProbeRecipe:
    """Pretrained features and logistic regression: the default, seconds on a laptop.

    Args:
        backbone: name of the bundled weights.
        input_size_px: side of the square the model sees; 0 takes the size the backbone was trained at.
        resize: ``squash``, ``crop`` or ``pad``.
        feature_stages: stages 1-8 whose pooled outputs are the features; 8 is the last.
        strengths: inverse L2 strengths C to choose from by cross-validation inside train.
        folds: parts of that cross-validation.
        test_fraction: share of the images to test on when there is no test folder.
        calib_fraction: share of the rest to calibrate on when there is no val folder.
        coverage: share of prediction sets that hold the true class.

    Raises:
        RecipeError: bad-setting.
    """
    if backbone not in BUNDLED:
        raise RecipeError("bad-setting", f"there is no backbone {backbone!r}", hint=f"one of {', '.join(BUNDLED)}")
    return ProbeRecipe(
        name="probe",
        backbone=backbone,
        input_size_px=input_size_px or BUNDLED[backbone].input_size_px,
        resize=resize,
        feature_stages=feature_stages,
        strengths=strengths,
        folds=folds,
        test_fraction=test_fraction,
        calib_fraction=calib_fraction,
        coverage=coverage,
    )


RECIPES: Mapping[str, Callable[..., ProbeRecipe]] = MappingProxyType({"probe": probe})


def build_recipe(name: str = "probe", settings: Mapping[str, Any] | None = None) -> ProbeRecipe:
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
    defaults: Mapping[str, Any] = function.__kwdefaults__ or {}
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


def recipe_settings(recipe: ProbeRecipe) -> dict[str, Any]:
    """The resolved recipe as plain data."""
    return asdict(recipe)


def recipe_toml(recipe: ProbeRecipe) -> str:
    """The resolved recipe as TOML. Strings, numbers and lists are written in JSON exactly as in TOML."""
    return "".join(f"{field.name} = {json.dumps(getattr(recipe, field.name))}\n" for field in fields(recipe))
