"""The setting ``augment``: every option of image augmentation, read from one line of text.

zoom 0.2, flip horizontal, rotation 15, fill reflect
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tellapart.errors import RecipeError
from tellapart.grammar import Clause, Word, parse_clauses

Fill = Literal["nearest", "reflect", "wrap", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSettings:
    """What may happen to a training image; ``parse_augment`` makes it and checks the numbers.

    Where Keras' ImageDataGenerator has the option, it means the same here. The defaults change nothing.

    Attributes:
        zoom: lowest and highest factor, above 0; below 1 enlarges the picture, as in Keras.
        zoom_square: one factor for both axes, not one for each.
        flip_horizontal: mirror left and right, one image in two.
        flip_vertical: mirror top and bottom, one image in two.
        rotation: largest angle to either side, in degrees.
        shift: largest shift to either side along x and y, as fractions of width and height.
        shear: largest angle to either side, in degrees.
        brightness: lowest and highest factor.
        channel_shift: largest value added to all channels or taken from them, 0-255.
        fill: what shows where the geometry looks past the edge of the image.
        fill_value: 0-255, for ``constant``.
        crop: smallest and largest share of the area that a random resized crop keeps, 0-1.
        color: how far brightness, contrast and saturation may move from 1, and hue from 0 (in turns, at most 0.5).
        randaugment: how many operations an image gets, and their magnitude 0-10.
        erase: probability that a box of the image is painted over.
        mixup: parameter of the beta distribution that blends two images; 0 is off.
        cutmix: the same for pasting a box of one image into another; 0 is off.
    """

    zoom: tuple[float, float] | None = None
    zoom_square: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    shear: float = 0.0
    brightness: tuple[float, float] | None = None
    channel_shift: float = 0.0
    fill: Fill = "nearest"
    fill_value: float = 0.0
    crop: tuple[float, float] | None = None
    color: tuple[float, float, float, float] | None = None
    randaugment: tuple[int, float] | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether images are blended, so that targets are no longer of one class."""
        return self.mixup > 0 or self.cutmix > 0


def parse_augment(text: str) -> AugmentSettings:
    """Read the setting; an empty text asks for nothing.

    Raises:
        RecipeError: bad-setting, with the wrong word underlined.
    """
    values: dict[str, Any] = {}
    seen: set[str] = set()
    for clause in parse_clauses("augment", text):
        if clause.name not in _CLAUSES:
            raise _unknown(clause, clause.words[0], _CLAUSES)
        usage, read = _CLAUSES[clause.name]
        try:
            if clause.name in seen:
                raise clause.error("each option once", clause.words[0])
            values |= read(clause)
        except RecipeError as error:
            raise RecipeError(error.code, error.message, hint=error.hint or f"write it as: {usage}") from None
        seen.add(clause.name)
    return AugmentSettings(**values)


def _unknown(clause: Clause, word: Word | None, known: Iterable[str]) -> RecipeError:
    names = list(known)
    error = clause.error(f"one of {', '.join(names)}", word)
    near = difflib.get_close_matches(word.text.lower(), names, n=1) if word else []
    return RecipeError(error.code, error.message, hint=f"did you mean {near[0]!r}?" if near else "")


def _zoom(clause: Clause) -> dict[str, Any]:
    words = [word.text for word in clause.arguments]
    square = "square" in words[1:]
    numbers = words.index("square") if square else len(words)
    if numbers > 2:
        raise clause.error("'square' or a comma", clause.arguments[2])
    clause.no_more(numbers + square)
    if numbers == 2:
        return {"zoom": _range(clause, "a factor", low=0.05, high=20), "zoom_square": square}
    share = clause.number(0, "a share", low=0, high=0.95)
    return {"zoom": (1 - share, 1 + share), "zoom_square": square}


def _flip(clause: Clause) -> dict[str, Any]:
    which = _choice(clause, ("horizontal", "vertical", "both"))
    clause.no_more(1)
    return {"flip_horizontal": which != "vertical", "flip_vertical": which != "horizontal"}


def _shift(clause: Clause) -> dict[str, Any]:
    x = clause.number(0, "a fraction of the width", low=0, high=1)
    y = clause.number(1, "a fraction of the height", low=0, high=1) if len(clause.arguments) > 1 else x
    clause.no_more(2)
    return {"shift": (x, y)}


def _brightness(clause: Clause) -> dict[str, Any]:
    factors = _range(clause, "a factor", low=0, high=10)
    clause.no_more(2)
    return {"brightness": factors}


def _fill(clause: Clause) -> dict[str, Any]:
    fill = _choice(clause, ("nearest", "reflect", "wrap", "constant"))
    valued = fill == "constant" and len(clause.arguments) > 1
    value = clause.number(1, "a gray value", low=0, high=255) if valued else 0.0
    clause.no_more(1 + valued)
    return {"fill": fill, "fill_value": value}


def _crop(clause: Clause) -> dict[str, Any]:
    clause.no_more(2)
    if len(clause.arguments) > 1:
        return {"crop": _range(clause, "a share of the area", low=0.01, high=1)}
    return {"crop": (clause.number(0, "a share of the area", low=0.01, high=1), 1.0)}


def _color(clause: Clause) -> dict[str, Any]:
    parts = [clause.number(i, f"how far {name} may move", low=0, high=1) for i, name in enumerate(_JITTERED)]
    hue = clause.number(3, "how far hue may move", low=0, high=0.5) if len(clause.arguments) > 3 else 0.0
    clause.no_more(4)
    return {"color": (*parts, hue)}


def _randaugment(clause: Clause) -> dict[str, Any]:
    count = clause.number(0, "a number of operations", low=0, high=10)
    if count != int(count):
        raise clause.error("a whole number of operations", clause.arguments[0])
    magnitude = clause.number(1, "a magnitude", low=0, high=10)
    clause.no_more(2)
    return {"randaugment": (int(count), magnitude)}


def _single(field: str, expected: str, *, high: float) -> Callable[[Clause], dict[str, Any]]:
    """The reader of a clause that takes one number, from 0 to ``high``."""

    def read(clause: Clause) -> dict[str, Any]:
        value = clause.number(0, expected, low=0, high=high)
        clause.no_more(1)
        return {field: value}

    return read


def _range(clause: Clause, expected: str, *, low: float, high: float) -> tuple[float, float]:
    """The first two arguments, in ascending order."""
    lowest = clause.number(0, expected, low=low, high=high)
    return lowest, clause.number(1, expected, low=lowest, high=high)


def _choice(clause: Clause, known: tuple[str, ...]) -> str:
    word = clause.arguments[0] if clause.arguments else None
    if word is None or word.text not in known:
        raise _unknown(clause, word, known)
    return word.text


_JITTERED = ("brightness", "contrast", "saturation")

_CLAUSES: Mapping[str, tuple[str, Callable[[Clause], dict[str, Any]]]] = MappingProxyType(
    {
        "zoom": ("zoom R [square], or zoom LOW HIGH [square]", _zoom),
        "flip": ("flip horizontal, flip vertical, or flip both", _flip),
        "rotation": ("rotation DEGREES", _single("rotation", "an angle in degrees", high=180)),
        "shift": ("shift X [Y]", _shift),
        "shear": ("shear DEGREES", _single("shear", "an angle in degrees", high=80)),
        "brightness": ("brightness LOW HIGH", _brightness),
        "channel_shift": ("channel_shift R", _single("channel_shift", "a difference", high=255)),
        "fill": ("fill nearest, fill reflect, fill wrap, or fill constant [VALUE]", _fill),
        "crop": ("crop LOW [HIGH]", _crop),
        "color": ("color BRIGHTNESS CONTRAST SATURATION [HUE]", _color),
        "randaugment": ("randaugment N MAGNITUDE", _randaugment),
        "erase": ("erase P", _single("erase", "a probability", high=1)),
        "mixup": ("mixup ALPHA", _single("mixup", "alpha", high=100)),
        "cutmix": ("cutmix ALPHA", _single("cutmix", "alpha", high=100)),
    }
)
