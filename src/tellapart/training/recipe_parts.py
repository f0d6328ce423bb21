"""What every recipe says of the parts of a dataset and of answers."""

from typing import Literal, Protocol, get_args

from tellapart.errors import RecipeError
from tellapart.evaluation.multilabel import require_threshold_goal

Conformal = Literal["all-classes", "per-class"]
ClassWeights = Literal["none", "balanced"]


class _Parts(Protocol):
    @property
    def test_fraction(self) -> float: ...
    @property
    def calib_fraction(self) -> float: ...
    @property
    def coverage(self) -> float: ...
    @property
    def conformal(self) -> Conformal: ...
    @property
    def false_alarms(self) -> float: ...
    @property
    def label_thresholds(self) -> str: ...
    @property
    def class_weights(self) -> ClassWeights: ...


def check_parts(recipe: _Parts) -> None:
    """Check them.

    Raises:
        RecipeError: bad-setting.
    """
    for key, fraction in (("test_fraction", recipe.test_fraction), ("calib_fraction", recipe.calib_fraction)):
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
    if recipe.class_weights not in get_args(ClassWeights):
        message = f"class_weights must be one of {', '.join(get_args(ClassWeights))}, got {recipe.class_weights!r}"
        raise RecipeError("bad-setting", message)
