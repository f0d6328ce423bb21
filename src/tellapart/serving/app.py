"""The routes."""

import importlib.resources

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tellapart.errors import TellapartError
from tellapart.serving import contract
from tellapart.serving.answers import Answers
from tellapart.serving.description import describe_model
from tellapart.serving.documents import json_response, prediction_row
from tellapart.serving.explaining import Explainer
from tellapart.serving.guard import LOG
from tellapart.serving.measures import Measures
from tellapart.serving.open_inference_routes import build_routes
from tellapart.serving.protocol import wanted_by
from tellapart.serving.questions import read_question
from tellapart.serving.refusals import DISCONNECTED, refusal_bytes, refusal_headers, refuse, status_of
from tellapart.serving.settings import Limits, Settings
from tellapart.serving.shelf import Shelf
from tellapart.serving.uploads import read_uploads

_SCRIPTS = ("about", "cards", "detail", "elements", "page", "table", "uploads", "words")
_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _SCRIPTS},
}

_CODES_OF_STATUSES = {404: "no-such-route", 405: "wrong-method"}


def build_app(
    shelf: Shelf, answers: Answers, explainer: Explainer, measures: Measures, settings: Settings
) -> FastAPI:
    """All routes of the server."""
    app = FastAPI(
        title="tellapart",
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Response,
    )
    _add_work(app, shelf, answers, explainer, settings.limits)
    _add_descriptions(app, shelf, measures, settings)
    app.include_router(build_routes(shelf, answers, settings.limits), responses=contract.INFERENCE_REFUSALS)
    _add_pages(app)
    _add_errors(app)
    return app


def _add_work(app: FastAPI, shelf: Shelf, answers: Answers, explainer: Explainer, limits: Limits) -> None:
    @app.post("/predict", responses=contract.PREDICTED | contract.REFUSALS, openapi_extra=contract.PREDICT)
    async def predict(request: Request) -> Response:
        """Predict images: the raw bytes of one, or a multipart form with several."""
        question = read_question(request.query_params)
        model = shelf.get(question.model)
        uploads = await read_uploads(request.stream(), request.headers.get("content-type", ""), limits)
        predictions = await answers.predict(
            model,
            uploads,
            coverage=question.coverage,
            keep=question.keep,
            require_wanted=wanted_by(request.scope),
        )
        rows = [prediction_row(said, model, probs=question.probs) for said in predictions]
        return json_response({"model": model.name, "version": model.version, "predictions": rows})

    @app.post("/explain", responses=contract.EXPLAINED | contract.REFUSALS, openapi_extra=contract.EXPLAIN)
    async def explain(request: Request) -> Response:
        """Show where in an image the evidence for a class lies: orange speaks for it, blue against it."""
        question = read_question(request.query_params)
        model = shelf.get(question.model)
        uploads = await read_uploads(request.stream(), request.headers.get("content-type", ""), limits)
        if len(uploads) != 1:
            raise refuse("bad-request", "give exactly one image")
        picture = await explainer.explain(model, uploads[0].data, question.class_name, wanted_by(request.scope))
        return Response(picture, media_type="image/png")


def _add_descriptions(app: FastAPI, shelf: Shelf, measures: Measures, settings: Settings) -> None:
    @app.get("/model", responses=contract.SAID | contract.REFUSALS, openapi_extra=contract.MODEL)
    async def model_description(request: Request) -> Response:
        """What a model is: classes, accuracy with interval, limits."""
        model = shelf.get(read_question(request.query_params).model)
        collecting = settings.collect is not None
        return json_response(describe_model(model, collecting=collecting, limits=settings.limits))

    @app.get("/models", responses=contract.SAID | contract.REFUSALS)
    async def models() -> Response:
        """Names and versions of all models; the first answers where none is named."""
        found = [shelf.get(name) for name in shelf.names]
        return json_response({"models": [{"name": model.name, "version": model.version} for model in found]})

    @app.get("/metrics", responses=contract.COUNTED | contract.REFUSALS)
    async def metrics() -> Response:
        """Counters for Prometheus, and whether images are still like those the model was tested on."""
        return Response(measures.exposition(), media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI) -> None:
    folder = importlib.resources.files("tellapart.serving").joinpath("page")
    for path, (file, media_type) in _PAGES.items():
        content = folder.joinpath(file).read_bytes()

        async def page(content: bytes = content, media_type: str = media_type) -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    async def interface() -> Response:
        return json_response(app.openapi())

    async def docs() -> Response:
        return Response(contract.render_docs(app.openapi()), media_type="text/html; charset=utf-8")

    app.add_api_route("/openapi.json", interface, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)


def _add_errors(app: FastAPI) -> None:
    """Answer what routes raise in one form."""

    async def refused(request: Request, error: Exception) -> Response:
        refusal = _as_ours(error)
        if refusal.code == "inference-timeout":
            LOG.error("%s", refusal)
        headers = {name.decode(): value.decode() for name, value in refusal_headers(refusal)}
        return Response(refusal_bytes(refusal, request.url.path), status_of(refusal), headers)

    async def disconnected(_request: Request, _error: Exception) -> Response:
        return Response(status_code=DISCONNECTED)

    for kind in (TellapartError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(ClientDisconnect, disconnected)


def _as_ours(error: Exception) -> TellapartError:
    if isinstance(error, TellapartError):
        return error
    if isinstance(error, RequestValidationError):
        names = ", ".join(str(detail["loc"][-1]) for detail in error.errors())
        return refuse("bad-request", f"a value that cannot be: {names}")
    if isinstance(error, HTTPException):
        return refuse(_CODES_OF_STATUSES.get(error.status_code, "bad-request"))
    return refuse("internal-error")
