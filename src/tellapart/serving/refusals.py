"""Refusals: which status belongs to which code, and what a client is told; never a path, a version or a traceback."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from tellapart.errors import CODES, ImageError, RequestError, TellapartError

STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "bad-request": 400,
        "unknown-class": 400,
        "no-such-coverage": 400,
        "token-needed": 401,
        "cross-site": 403,
        "no-such-route": 404,
        "no-such-model": 404,
        "wrong-method": 405,
        "too-slow": 408,
        "body-too-large": 413,
        "too-many-parts": 413,
        "wrong-host": 421,
        "head-too-large": 431,
        "internal-error": 500,
        "inference-timeout": 500,
        "overloaded": 503,
    }
)
"""Of codes of requests; an image that cannot be used, where it is all that was asked about, is 422."""

DISCONNECTED = 499
"""Stands in log and counters for requests whose client went away; nobody receives it."""

RETRY_AFTER_SECONDS = 1

_NEXT = MappingProxyType(
    {
        "token-needed": "send the header Authorization: Bearer TOKEN, or open the link that the server printed",
        "wrong-host": "start the server with --allowed-host NAME",
        "cross-site": "open the server's own page, or call it from a program",
        "overloaded": "send the same again after the seconds in Retry-After",
        "no-such-route": "GET /docs lists what there is",
        "wrong-method": "GET /docs lists what there is",
        "too-slow": "send the request again, over a faster line or in smaller parts",
        "too-many-parts": "send fewer images in one request",
        "body-too-large": "send fewer or smaller images in one request",
    }
)


def status_of(error: TellapartError) -> int:
    """The HTTP status of a refusal."""
    return 422 if isinstance(error, ImageError) else STATUSES.get(error.code, 500)


def refusal_document(error: TellapartError) -> dict[str, dict[str, str]]:
    """What a client is told: the code, and a text that says nothing about this machine."""
    # Messages of decoders are not ours, and may hold anything.
    message = error.message if isinstance(error, RequestError) else CODES[error.code]
    return {"error": {"code": error.code, "message": message, "next": error.hint or _NEXT.get(error.code, "")}}


def refusal_bytes(error: TellapartError, path: str = "") -> bytes:
    """The same as JSON; under ``/v2`` as one text, as the Open Inference Protocol has it."""
    document = refusal_document(error)
    if not path.startswith("/v2"):
        return json.dumps(document).encode()
    said = document["error"]
    return json.dumps({"error": f"[{said['code']}] {said['message']}"}).encode()


def refusal_headers(error: TellapartError) -> list[tuple[bytes, bytes]]:
    """Headers of the answer, beside its length."""
    headers = [(b"content-type", b"application/json")]
    if error.code == "overloaded":
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if error.code == "token-needed":
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def refuse(code: str, message: str = "", *, hint: str = "") -> RequestError:
    """An error for a client; the code's meaning when there is no more to say."""
    return RequestError(code, message or CODES[code], hint=hint)
