"""The addresses of the server, with their schema for OpenAPI."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from modeling_detr import __version__
from modeling_detr.errors_detr import printable
from modeling_detr.serving.body import SentJson
from modeling_detr.serving.guard import HEALTH, METRICS, MODEL, PREDICT, Guard
from modeling_detr.serving.page import serve_page
from modeling_detr.serving.refusal import Refusal, error_answer, phrase_of
from modeling_detr.serving.service import Service


class Found(BaseModel):
    """An object."""

    label: int
    name: str
    score: float
    box_xyxy: Annotated[list[float], Field(description="x0, y0, x1, y1 in pixels of the image.")]
    segmentation: Annotated[
        dict[str, Any] | None, Field(description="The mask as COCO's RLE, from a model with masks.")
    ] = None


class FoundSegment(BaseModel):
    """A segment of a panoptic model."""

    id: int
    label: int
    name: str
    score: float
    area: Annotated[int, Field(description="In pixels.")]
    segmentation: Annotated[dict[str, Any], Field(description="Its pixels as COCO's RLE.")]


class Predicted(BaseModel):
    """The prediction for an image: `detections`, or `segments` of a panoptic model."""

    height: int
    width: int
    detections: list[Found] | None = None
    segments: list[FoundSegment] | None = None


class Answer(BaseModel):
    """The predictions for a request, in the order of its images."""

    model: str
    predictions: list[Predicted]
    seconds: Annotated[
        dict[str, float],
        Field(description="Spent to receive the request, to prepare its images, to wait for the model, in the model."),
    ]


class Error(BaseModel):
    """What went wrong."""

    status: int
    message: str


class ErrorAnswer(BaseModel):
    """An error."""

    error: Error


class Health(BaseModel):
    """Whether requests are answered."""

    status: Literal["starting", "ready", "stopping"]


class Model(BaseModel):
    """The model that is served."""

    model: str
    task: Literal["detection", "instance", "panoptic"]
    classes: list[str]
    device: str
    dtype: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The token is missing or wrong."},
    408: {"model": ErrorAnswer, "description": "The request was sent too slowly."},
    413: {"model": ErrorAnswer, "description": "Too many bytes, pixels or images."},
    415: {"model": ErrorAnswer, "description": "The body is compressed."},
    422: {"model": ErrorAnswer, "description": "A broken image, an unknown class, a wrong option."},
    500: {"model": ErrorAnswer, "description": "The model failed."},
    503: {"model": ErrorAnswer, "description": "Too busy or stopping; Retry-After says when to try again."},
}
_OPTIONS = {"threshold", "classes"}  # of an address
_FILES = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "One or several."},
        "threshold": {"type": "string"},
        "classes": {"type": "string", "description": "Separated by commas."},
    },
    "required": ["image"],
}


def create_app(service: Service, token: str | None = None, origins: Collection[str] = ()) -> Guard:
    """The application: any ASGI server can run it.

    Args:
        service: The model.
        token: See `Guard`.
        origins: See `Guard`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.to_thread(service.close)

    app = FastAPIOffline(
        redoc_url=None,
        title="detr serve",
        version=__version__,
        lifespan=lifespan,
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},
    )
    _add_error_answers(app)
    secured = [] if token is None else [Depends(HTTPBearer(auto_error=False))]  # for the schema; Guard checks it
    _add_predict(app, service, secured)
    _add_others(app, service, secured)
    return Guard(app, service, token, origins)


def _add_predict(app: FastAPI, service: Service, secured: Sequence[params.Depends]) -> None:
    binary = {"schema": {"type": "string", "format": "binary"}}
    sent_json = SentJson.model_json_schema(ref_template="#/components/schemas/{model}")
    content = {
        "image/*": binary,
        "multipart/form-data": {"schema": _FILES},
        "application/json": {"schema": sent_json},
    }

    @app.post(
        PREDICT,
        dependencies=secured,
        summary="Find the objects in images",
        responses={200: {"model": Answer}, **_ERRORS},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )
    async def predict(
        request: Request,
        threshold: Annotated[
            str | None,
            Query(description="Lowest score, from 0 to 1, or `best`; a threshold in the body goes before it."),
        ] = None,
        classes: Annotated[
            str | None, Query(description="Names of the classes that count, separated by commas.")
        ] = None,
    ) -> Response:
        """The body is the bytes of an image, a form with files, or JSON with Base64."""
        unknown = sorted(request.query_params.keys() - _OPTIONS)
        if unknown:
            raise Refusal(
                422, printable(unknown[0][:80]), "is no option of this address", "expected threshold, classes"
            )
        return Response(await service.predict(request, threshold, classes), media_type="application/json")


def _add_others(app: FastAPI, service: Service, secured: Sequence[params.Depends]) -> None:
    page = serve_page()

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get(HEALTH, response_model=Health, responses={503: {"model": Health}}, summary="Whether it is ready")
    async def health() -> JSONResponse:
        is_well, status = service.health()
        return JSONResponse({"status": status}, 200 if is_well else 503)

    @app.get(
        MODEL,
        dependencies=secured,
        response_model=Model,
        responses={401: _ERRORS[401]},
        summary="The model and its classes",
    )
    async def model() -> dict[str, Any]:
        return service.description()

    @app.get(
        METRICS,
        dependencies=secured,
        responses={401: _ERRORS[401]},
        summary="Counters for Prometheus",
        response_class=Response,
    )
    async def metrics() -> Response:
        return Response(service.metrics.to_text(), media_type=service.metrics.kind)


def _add_error_answers(app: FastAPI) -> None:
    """All errors in one form."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return refusal.answer()

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {printable(request.url.path[:200])}"
        allowed = (error.headers or {}).get("Allow")
        remedy = f"use {allowed}" if allowed else "/docs lists what there is"
        message = f"{where}: {phrase_of(error.status_code)}; {remedy}."
        return error_answer(error.status_code, message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return error_answer(422, f"{first['loc'][-1]}: {first['msg']}.")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return error_answer(500, f"the model: failed ({reason[:300]}); the log of the server has the traceback.")
