"""The messages of the Open Inference Protocol, version 2, with its binary tensors: bytes to arrays and back.

Source: Open Inference Protocol, "Inference Protocol - REST" and the extension "Binary data", as Triton's clients speak it.
"""

import base64
import binascii
import itertools
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.imaging.decode import Pixels
from tellapart.records import ModelCard, Prediction
from tellapart.serving.refusals import refuse
from tellapart.serving.settings import Limits
from tellapart.serving.uploads import Upload

IMAGES, FILES = "images", "files"
"""Inputs, of which a request gives one: uint8 pixels as the model takes them, or image files."""

MAX_JSON_BYTES = 4 * 2**20
"""More would keep the event loop from all other requests while it is read."""

_LENGTH = struct.Struct("<I")
_MAX_DIGITS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedOutput:
    """An output that was asked for, and whether as binary data."""

    name: str
    binary: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """What was asked.

    Attributes:
        id: as given, to be sent back; empty for none.
        images: uploads, or (N, S, S, 3) uint8.
        outputs: those wanted; none: all of them.
        binary: whether outputs are binary where all are wanted.
    """

    id: str
    images: Sequence[Upload] | Pixels = field(repr=False)
    outputs: tuple[WantedOutput, ...]
    binary: bool


def describe_tensors(card: ModelCard) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of a model, as its metadata has them."""
    side = card.preprocess.input_size_px
    outputs = [("probs", "FP32", [-1, len(card.class_names)])]
    outputs += [("familiarity", "FP32", [-1])] if card.familiarity is not None else []
    outputs += [(name, "BYTES", [-1]) for name in ("label", "verdict", "prediction_set", "error")]
    inputs = [(IMAGES, "UINT8", [-1, side, side, 3]), (FILES, "BYTES", [-1])]
    return {
        "inputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in inputs],
        "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in outputs],
    }


def read_request(body: bytes, json_length: str | None, card: ModelCard, limits: Limits) -> InferRequest:
    """Read an inference request.

    Args:
        body: JSON, and behind it binary data.
        json_length: the header ``Inference-Header-Content-Length``; None where all of the body is JSON.
        card: of the model that is asked.
        limits: of the server.

    Raises:
        RequestError: bad-request, body-too-large, too-many-parts.
    """
    if json_length is None:
        length = len(body)
    elif re.fullmatch(rf"[0-9]{{1,{_MAX_DIGITS}}}", json_length) and int(json_length) <= len(body):
        length = int(json_length)
    else:
        raise refuse("bad-request", "Inference-Header-Content-Length does not fit the body")
    if length > MAX_JSON_BYTES:
        message = f"the JSON part may have {MAX_JSON_BYTES:,} bytes; send tensors as binary data"
        raise refuse("body-too-large", message)
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise refuse("bad-request", "the body is not JSON") from None
    binary = memoryview(body)[length:]
    try:
        return _request(document, binary, card, limits)
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError):
        raise refuse("bad-request", "the request is not of the form of the Open Inference Protocol") from None


def _request(document: Any, binary: memoryview, card: ModelCard, limits: Limits) -> InferRequest:
    inputs = document["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise refuse("bad-request", f"give one input, {IMAGES} or {FILES}")
    (tensor,) = inputs
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        data = None
    elif isinstance(size, int) and size == len(binary):
        data = binary
    else:
        raise refuse("bad-request", "binary_data_size does not fit the body")
    identity = document.get("id", "")
    if not isinstance(identity, str):
        raise refuse("bad-request", "id must be a text")
    return InferRequest(
        id=identity,
        images=_images(tensor, data, card, limits),
        outputs=_wanted(document.get("outputs") or (), card),
        binary=bool(_parameters(document).get("binary_data_output", False)),
    )


def _wanted(outputs: Any, card: ModelCard) -> tuple[WantedOutput, ...]:
    known = {output["name"] for output in describe_tensors(card)["outputs"]}
    if len(outputs) > len(known):
        raise refuse("bad-request", "more outputs are asked for than the model has")
    wanted = tuple(
        WantedOutput(name=str(output["name"]), binary=bool(_parameters(output).get("binary_data", False)))
        for output in outputs
    )
    names = {output.name for output in wanted}
    if names - known:
        raise refuse("bad-request", "the model has no such output", hint="the model's metadata lists its outputs")
    if len(names) < len(wanted):
        raise refuse("bad-request", "an output is asked for twice")
    return wanted


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found = document.get("parameters") or {}
    if not isinstance(found, dict):
        raise TypeError
    return found


def _images(
    tensor: Mapping[str, Any], data: memoryview | None, card: ModelCard, limits: Limits
) -> Sequence[Upload] | Pixels:
    shape = [int(length) for length in tensor["shape"]]
    if not shape or not 1 <= shape[0] <= limits.queue_images:
        raise refuse("too-many-parts", f"a request may have 1 to {limits.queue_images} images")
    if (tensor["name"], tensor["datatype"]) == (FILES, "BYTES") and shape[1:] in ([], [1]):
        files = _base64_files(_flat(tensor["data"], shape[0])) if data is None else _binary_files(data, shape[0])
        return [Upload("", file) for file in files]
    side = card.preprocess.input_size_px
    if (tensor["name"], tensor["datatype"]) != (IMAGES, "UINT8") or shape[1:] != [side, side, 3]:
        raise refuse("bad-request", f"expected {IMAGES}, UINT8 [N, {side}, {side}, 3], or {FILES}, BYTES [N]")
    if data is None:
        try:
            data = memoryview(bytes(_flat(tensor["data"], math.prod(shape))))
        except (TypeError, ValueError):
            raise refuse("bad-request", "pixels are whole numbers from 0 to 255") from None
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _flat(values: Any, count: int) -> list[Any]:
    """The values of a tensor in JSON, which may come as one list or as lists of lists.

    Raises:
        RequestError: bad-request, they are not as many as the shape says.
    """
    while isinstance(values, list) and 0 < len(values) <= count and isinstance(values[0], list):
        values = list(itertools.chain.from_iterable(values))
    if not isinstance(values, list) or len(values) != count:
        raise refuse("bad-request", f"the shape says {count} values, the data holds others")
    return values


def _binary_files(data: memoryview, count: int) -> list[bytes]:
    """Each has its length before it, in four bytes."""
    files: list[bytes] = []
    position = 0
    for _ in range(count):
        begin = position + _LENGTH.size
        if begin > len(data):
            raise refuse("bad-request", f"the shape says {count} files, the data holds {len(files)}")
        (length,) = _LENGTH.unpack_from(data, position)
        position = begin + length
        if position > len(data):
            raise refuse("bad-request", "a file ends behind the end of the body")
        files.append(bytes(data[begin:position]))
    if position < len(data):
        raise refuse("bad-request", f"the shape says {count} files, the data holds more")
    return files


def _base64_files(texts: list[Any]) -> list[bytes]:
    """JSON has no bytes: files come in base64."""
    try:
        return [base64.b64decode(text.encode("ascii"), validate=True) for text in texts]
    except (binascii.Error, UnicodeError, AttributeError):
        raise refuse("bad-request", "in JSON, files are texts in base64") from None


def write_response(
    request: InferRequest, predictions: Sequence[Prediction], card: ModelCard, *, name: str, version: str
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part where binary data follows.

    Of an image that cannot be read, ``error`` holds the code, numbers are not a number, and texts are empty.
    """
    known = {tensor["name"]: tensor["datatype"] for tensor in describe_tensors(card)["outputs"]}
    wanted = request.outputs or tuple(WantedOutput(name=output, binary=request.binary) for output in known)
    outputs, parts = [], []
    for output in wanted:
        values = _output(output.name, predictions, len(card.class_names))
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": known[output.name],
            "shape": [len(values), *values.shape[1:]] if isinstance(values, np.ndarray) else [len(values)],
        }
        if output.binary:
            part = _binary(values)
            tensor["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            flat = values.ravel().tolist() if isinstance(values, np.ndarray) else values
            tensor["data"] = [None if isinstance(v, float) and not math.isfinite(v) else v for v in flat]
        outputs.append(tensor)
    document = {"model_name": name, "model_version": version, "outputs": outputs}
    head = json.dumps(document | ({"id": request.id} if request.id else {}), allow_nan=False).encode()
    return head + b"".join(parts), len(head) if parts else None


def _output(name: str, predictions: Sequence[Prediction], num_classes: int) -> NDArray[np.float32] | list[str]:
    if name == "probs":
        unknown = (math.nan,) * num_classes
        return np.array([said.probs or unknown for said in predictions], dtype=np.float32)
    if name == "familiarity":
        found = [math.nan if said.familiarity is None else said.familiarity for said in predictions]
        return np.array(found, dtype=np.float32)
    if name == "label":
        return [said.label or "" for said in predictions]
    if name == "verdict":
        return [said.verdict for said in predictions]
    if name == "prediction_set":
        return ["|".join(said.prediction_set) for said in predictions]
    return [said.error for said in predictions]


def _binary(values: NDArray[np.float32] | list[str]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype("<f4").tobytes()
    encoded = [text.encode() for text in values]
    return b"".join(_LENGTH.pack(len(text)) + text for text in encoded)
