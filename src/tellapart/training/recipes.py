"""All recipes by name: functions that return frozen settings, checked and complete."""

import difflib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

from tellapart.errors import RecipeError
from tellapart.training.loop_recipe import FinetuneRecipe, NetworkRecipe, cnn, finetune, scratch
from tellapart.training.probe_recipe import AutoRecipe, ProbeRecipe, auto, probe

Recipe = ProbeRecipe | AutoRecipe | NetworkRecipe | FinetuneRecipe
RECIPES: Mapping[str, Callable[..., Recipe]] = MappingProxyType(
    {"probe": probe, "auto": auto, "finetune": finetune, "cnn": cnn, "scratch": scratch}
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
