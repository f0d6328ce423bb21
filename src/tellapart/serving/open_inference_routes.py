"""The routes of the Open Inference Protocol, version 2, under ``/v2``."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from tellapart.serving.answers import Answers
from tellapart.serving.contract import INFER, SAID
from tellapart.serving.documents import json_response
from tellapart.serving.open_inference import describe_tensors, read_request, write_response
from tellapart.serving.protocol import wanted_by
from tellapart.serving.refusals import refuse
from tellapart.serving.settings import Limits
from tellapart.serving.shelf import ServedModel, Shelf

_MODEL = "/models/{name}"
_VERSION = "/models/{name}/versions/{version}"


def build_routes(shelf: Shelf, answers: Answers, limits: Limits) -> APIRouter:
    """All of them."""
    routes = APIRouter(prefix="/v2", default_response_class=Response, responses=SAID)
    _add_health(routes, shelf)

    @routes.get(_MODEL)
    @routes.get(_VERSION)
    async def metadata(name: str, version: str = "") -> Response:
        """A model's inputs and outputs."""
        model = shelf.get(name, version)
        about = {"name": model.name, "versions": [model.version], "platform": "onnx_openvino"}
        return json_response({**about, **describe_tensors(model.card)})

    @routes.post(_MODEL + "/infer", openapi_extra=INFER)
    @routes.post(_VERSION + "/infer", openapi_extra=INFER)
    async def infer(
        request: Request,
        name: str,
        version: str = "",
        inference_header_content_length: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Answer image files (``files``, BYTES) or pixels (``images``, UINT8), in JSON or as binary data."""
        model = shelf.get(name, version)
        body = b"".join([chunk async for chunk in request.stream()])
        asked = read_request(body, inference_header_content_length, model.card, limits)
        predictions = await answers.predict(model, asked.images, require_wanted=wanted_by(request.scope))
        content, length = write_response(asked, predictions, model.card, name=model.name, version=model.version)
        if length is None:
            return Response(content, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    return routes


def _add_health(routes: APIRouter, shelf: Shelf) -> None:
    @routes.get("")
    async def server() -> Response:
        """What the server is."""
        return json_response({"name": "tellapart", "version": "1", "extensions": ["binary_tensor_data"]})

    @routes.get("/health/live")
    async def live() -> Response:
        """Whether the server runs."""
        return json_response({"live": True})

    @routes.get("/health/ready")
    async def ready() -> Response:
        """Whether all models answer, which one that hangs does not; whether a newer file is not used because it is unsound."""
        return json_response({"ready": True, "models": [_state(shelf, shelf.get(name)) for name in shelf.names]})

    @routes.get(_MODEL + "/ready")
    @routes.get(_VERSION + "/ready")
    async def model_ready(name: str, version: str = "") -> Response:
        """Whether a model answers."""
        return json_response(_state(shelf, shelf.get(name, version)))


def _state(shelf: Shelf, model: ServedModel) -> dict[str, Any]:
    if model.engine.hangs:
        raise refuse("inference-timeout", "the model answers no more")
    return {
        "name": model.name,
        "version": model.version,
        "ready": True,
        "newer_file_error": shelf.error(model.name) or None,
    }
