"""The interface as OpenAPI describes it, and as a page for people; the framework knows of requests only what is said here."""

import html
from collections.abc import Mapping
from typing import Any

from tellapart.serving.questions import parameter

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_BINARY = {"type": "string", "format": "binary"}


def _object(properties: Mapping[str, Any], *, more: bool = False) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": more,
    }


def _answer(description: str, media_type: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": dict(schema)}}}


def _refusals(schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {
        "4XX": _answer("The request is refused.", "application/json", schema),
        500: _answer("The server failed.", "application/json", schema),
        503: _answer("Too much to do; try again.", "application/json", schema) | {"headers": retry},
    }


REFUSALS = _refusals(_object({"error": _object({"code": _TEXT, "message": _TEXT, "next": _TEXT})}))
"""Of every route."""

INFERENCE_REFUSALS = _refusals(_object({"error": _TEXT}))
"""Of the Open Inference Protocol."""

_ROW = _object(
    {
        "path": _TEXT,
        "label": _TEXT_OR_NULL,
        "prob": _NUMBER_OR_NULL,
        "verdict": {"type": "string", "enum": ["sure", "unsure", "unfamiliar", "error"]},
        "familiarity": _NUMBER_OR_NULL,
        "prediction_set": _TEXT_OR_NULL,
        "error": _TEXT_OR_NULL,
        "message": _TEXT_OR_NULL,
    },
    more=True,
)

PREDICTED: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "One row an image, in order, with the columns of tellapart predict; also for those that cannot be read.",
        "application/json",
        _object({"model": _TEXT, "version": _TEXT, "predictions": {"type": "array", "items": _ROW}}),
    )
}
EXPLAINED: dict[int | str, dict[str, Any]] = {200: _answer("The picture.", "image/png", _BINARY)}
COUNTED: dict[int | str, dict[str, Any]] = {200: _answer("The counters.", "text/plain", _TEXT)}
SAID: dict[int | str, dict[str, Any]] = {200: _answer("As JSON.", "application/json", {"type": "object"})}

_IMAGES = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": _BINARY},
        "image/*": {"schema": _BINARY},
        "multipart/form-data": {
            "schema": _object({"files": {"type": "array", "items": _BINARY, "minItems": 1}}, more=True)
        },
    },
}

PREDICT = {
    "parameters": [parameter(name) for name in ("model", "probs", "coverage", "keep")],
    "requestBody": _IMAGES,
}
EXPLAIN = {"parameters": [parameter(name) for name in ("model", "class")], "requestBody": _IMAGES}
MODEL = {"parameters": [parameter("model")]}
INFER = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _object(
                    {
                        "inputs": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 1,
                            "items": _object(
                                {
                                    "name": {"type": "string", "enum": ["images", "files"]},
                                    "datatype": {"type": "string", "enum": ["UINT8", "BYTES"]},
                                    "shape": {"type": "array", "items": {"type": "integer"}},
                                },
                                more=True,
                            ),
                        }
                    },
                    more=True,
                )
            },
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}


def render_docs(document: Mapping[str, Any]) -> bytes:
    """The interface as a page, from its OpenAPI document."""
    parts = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
            parts += _rows("Parameters", _parameters(operation))
            parts += _rows("Body", dict.fromkeys(operation.get("requestBody", {}).get("content", {}), ""))
            parts += _rows("Answers", _answers(operation))
    return _PAGE.replace("{parts}", "\n".join(parts)).encode()


def _parameters(operation: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{found['name']} ({found['in']})": found.get("description", "")
        for found in operation.get("parameters", ())
    }


def _answers(operation: Mapping[str, Any]) -> dict[str, str]:
    return {
        status: f"{said['description']} {', '.join(said.get('content', {}))}"
        for status, said in operation["responses"].items()
    }


def _rows(title: str, rows: Mapping[str, str]) -> list[str]:
    if not rows:
        return []
    cells = [
        f"<tr><th scope='row'><code>{html.escape(name)}</code></th><td>{html.escape(text)}</td></tr>"
        for name, text in rows.items()
    ]
    return [f"<table><caption>{title}</caption>", *cells, "</table>"]


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tellapart: the interface</title>
<link rel="stylesheet" href="docs.css">
<main>
<h1>The interface</h1>
<p>For programs: <a href="openapi.json">openapi.json</a>. Every refusal is JSON with a code that never changes its name.</p>
{parts}
</main>
"""
