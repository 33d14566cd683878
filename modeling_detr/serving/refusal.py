"""A request that is not answered with predictions, and why."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from modeling_detr.errors_detr import DetrError


CLIENT_GONE = 499  # nobody reads it; nginx's number, for the metrics


class Refusal(DetrError, ValueError):
    """Why a request is refused.

    Attributes:
        status: The status of the answer.
        retry_after: Seconds after which the same request may succeed; None: never.
        closes: Whether the connection ends with the answer.
    """

    def __init__(
        self,
        status: int,
        where: object,
        problem: str,
        remedy: str = "",
        *,
        retry_after: int | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(where, problem, remedy)
        self.status, self.retry_after, self.closes = status, retry_after, closes

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.status, self.where, self.problem, self.remedy)

    def answer(self) -> JSONResponse:
        """The answer: `{"error": {"status": …, "message": …}}`."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.closes:
            headers["Connection"] = "close"
        return error_answer(self.status, str(self), headers)


def error_answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as every address answers it."""
    content: dict[str, Any] = {"error": {"status": status, "message": message}}
    return JSONResponse(content, status, dict(headers or {}))


def phrase_of(status: int) -> str:
    """The name of a status: "Not Found"."""
    return HTTPStatus(status).phrase if status in {*HTTPStatus} else "Error"
