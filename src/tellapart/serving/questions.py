"""What may stand behind the question mark of an address: read by hand, which is ten times as fast as the framework does it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tellapart.serving.refusals import refuse

_MAX_TEXT = 1000
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """How an image is to be answered.

    Attributes:
        model: name of the model; empty: the first.
        class_name: to be explained; empty: the most probable.
        probs: whether every class' probability is wanted.
        coverage: of the prediction sets; the model's own when None.
        keep: whether the image may be kept for labelling, where the server collects.
    """

    model: str = ""
    class_name: str = ""
    probs: bool = False
    coverage: float | None = None
    keep: bool = True


def read_question(query: Mapping[str, str]) -> Question:
    """The question in an address.

    Raises:
        RequestError: bad-request.
    """
    if not query:
        return _PLAIN
    coverage = query.get("coverage")
    return Question(
        model=_text(query, "model"),
        class_name=_text(query, "class"),
        probs=_truth(query, "probs", False),
        coverage=None if coverage is None else _share(coverage),
        keep=_truth(query, "keep", True),
    )


_PLAIN = Question()


def _text(query: Mapping[str, str], name: str) -> str:
    text = query.get(name, "")
    if len(text) > _MAX_TEXT:
        raise refuse("bad-request", f"{name} is too long")
    return text


def _truth(query: Mapping[str, str], name: str, default: bool) -> bool:
    text = query.get(name)
    if text is None:
        return default
    if text not in _TRUTHS:
        raise refuse("bad-request", f"{name} must be true or false")
    return _TRUTHS[text]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise refuse("bad-request", "coverage must be a number between 0 and 1")
    return value


def parameter(name: str) -> dict[str, Any]:
    """The OpenAPI description of one of them."""
    text = {"type": "string", "maxLength": _MAX_TEXT}
    said: dict[str, tuple[str, dict[str, Any]]] = {
        "model": ("Name of the model; the first one if left out.", text),
        "class": ("Class to explain; the most probable one if left out.", text),
        "probs": ("Add the probability of every class.", {"type": "boolean", "default": False}),
        "coverage": (
            "Share of prediction sets that hold the truth, one of those the model has.",
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ),
        "keep": (
            "Whether the image may be kept for labelling, where the server collects.",
            {"type": "boolean", "default": True},
        ),
    }
    description, schema = said[name]
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
