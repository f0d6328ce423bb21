"""Answers as JSON."""

import json
import math
from typing import Any

from fastapi import Response

from tellapart.errors import CODES
from tellapart.inference.rows import row
from tellapart.records import Prediction
from tellapart.serving.shelf import ServedModel


def prediction_row(prediction: Prediction, model: ServedModel, *, probs: bool) -> dict[str, Any]:
    """The CLI's row, and what an error's code means."""
    card = model.card
    cells = row(prediction, card.class_names, all_probs=probs, rules=card.decision_rules)
    return {**cells, "message": CODES[prediction.error] if prediction.error else None}


def json_response(document: dict[str, Any]) -> Response:
    """A document as an answer."""
    return Response(to_json(document), media_type="application/json")


def to_json(document: Any) -> bytes:
    """As JSON; a number that is none becomes null."""
    try:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_finite(document), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
