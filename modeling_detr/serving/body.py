"""The body of a request: received within limits, in any of three forms, and taken apart.

The bytes of an image; a form with files; or JSON with images as Base64.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, NamedTuple

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from modeling_detr.errors_detr import printable
from modeling_detr.serving.images import SentImage
from modeling_detr.serving.limits import Limits
from modeling_detr.serving.refusal import Refusal


_MOST_PARTS = 1000  # of a form
_MOST_FIELD_BYTES = 100_000  # of a part that is no file

Classes = str | list[str]
SentThreshold = Annotated[float | dict[str, float] | str, Field(union_mode="left_to_right")]


class SentJson(BaseModel):
    """A request as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[
        list[str] | str,
        Field(description="One image or several, each the bytes of a file as Base64, also as a data: address."),
    ]
    threshold: Annotated[
        SentThreshold | None,
        Field(description="Lowest score; by class, with '' for all others; or 'best', from thresholds.json."),
    ] = None
    classes: Annotated[
        Classes | None, Field(description="Classes that count: a list, or names separated by commas.")
    ] = None


class Upload(NamedTuple):
    """What a request asks for. `threshold` and `classes` are None where the body does not give them."""

    images: list[SentImage]
    threshold: float | dict[str, float] | str | None = None
    classes: Classes | None = None


class BodyReader:
    """Receives the bodies of all requests.

    Args:
        limits: What is accepted.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buffered = 0
        self._receiving: set[asyncio.Timeout] = set()
        self._stopping = False

    def stop(self) -> None:
        """Refuses all bodies that have not been received yet."""
        self._stopping = True
        for timeout in self._receiving:
            timeout.reschedule(asyncio.get_running_loop().time())

    async def read(self, request: Request) -> tuple[Upload, int]:
        """Receives a body and takes it apart.

        Returns:
            What it asks for, and the bytes that it takes, which `release` gives back.

        Raises:
            Refusal: It is too large, comes too slowly, is malformed or has no images.
            ClientDisconnect: The client has gone.
        """
        count = _Count()
        try:
            return await self._read(request, count), count.bytes
        except BaseException:
            self.release(count.bytes)
            raise

    def release(self, count: int) -> None:
        """Notes that bytes are not in memory any more."""
        self.buffered -= count

    async def _read(self, request: Request, count: "_Count") -> Upload:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            problem = f"has the Content-Encoding '{printable(encoding[:40])}', which is not supported"
            raise Refusal(415, "the request", problem, "send the bytes without it")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            async with asyncio.timeout(self.limits.timeout) as timeout:
                self._receiving.add(timeout)
                try:
                    if kind == "multipart/form-data":
                        upload = await self._read_form(request, count)
                    else:
                        content = b"".join([chunk async for chunk in self._chunks(request, count)])
                        is_json = kind == "application/json" or content.startswith(b"{")  # as no image does
                        upload = await asyncio.to_thread(_from_json if is_json else _from_bytes, content)
                finally:
                    self._receiving.discard(timeout)
        except TimeoutError as error:
            raise self._too_late() from error
        if len(upload.images) > self.limits.max_images:
            problem = f"has {len(upload.images):,} images, more than the limit of {self.limits.max_images}"
            raise Refusal(413, "the request", problem, "send several requests")
        return upload

    async def _chunks(self, request: Request, count: "_Count") -> AsyncGenerator[bytes, None]:
        """The parts of a body as they arrive, counted."""
        most = self.limits.max_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(most)
        async for chunk in request.stream():
            count.bytes += len(chunk)
            self.buffered += len(chunk)
            if count.bytes > most:
                raise _too_large(most)
            if self.buffered > self.limits.max_buffered_bytes:
                problem = "is busy: the bodies of other requests fill the memory"
                raise Refusal(503, "the server", problem, "send the request again later", retry_after=1)
            yield chunk

    async def _read_form(self, request: Request, count: "_Count") -> Upload:
        parser = MultiPartParser(
            request.headers,
            self._chunks(request, count),
            max_files=_MOST_PARTS,
            max_fields=_MOST_PARTS,
            max_part_size=_MOST_FIELD_BYTES,
        )
        parser.spool_max_size = self.limits.max_bytes + 1  # in memory, never on the disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            reason = error.message.rstrip(".")
            raise Refusal(422, "the form", f"cannot be read ({reason})", "send files as curl -F does") from error
        images: list[SentImage] = []
        texts: dict[str, str] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                images.append(SentImage(_named(len(images), value.filename), await value.read()))
                await value.close()
            elif name in ("threshold", "classes"):
                texts[name] = value
            else:
                problem = f"has a field '{printable(name[:80])}', which is no file"
                raise Refusal(422, "the form", problem, "expected files (curl -F image=@FILE), threshold and classes")
        if not images:
            raise Refusal(422, "the form", "has no files", "send an image: curl -F image=@photo.jpg")
        return Upload(images, texts.get("threshold"), texts.get("classes"))

    def _too_late(self) -> Refusal:
        if self._stopping:
            return stopping(closes=True)
        problem = f"was not received within {self.limits.timeout:g} seconds"
        return Refusal(408, "the request", problem, "send it faster, or send a smaller image", closes=True)


class _Count:
    """The bytes of a body that are in memory."""

    def __init__(self) -> None:
        self.bytes = 0


def stopping(*, closes: bool = False) -> Refusal:
    """The refusal of a server that is about to end."""
    remedy = "send the request to another server, or again later"
    return Refusal(503, "the server", "is stopping", remedy, retry_after=5, closes=closes)


def _from_bytes(content: bytes) -> Upload:
    if not content:
        remedy = "send the bytes of an image, a form with files, or JSON with Base64"
        raise Refusal(422, "the request", "has no body", remedy)
    return Upload([SentImage("the image", content)])


def _from_json(content: bytes) -> Upload:
    try:
        sent = SentJson.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"][:1])) or "the request"
        remedy = 'expected {"images": ["…"], "threshold": 0.5, "classes": ["…"]}'
        raise Refusal(
            422, printable(where[:80]), f"is not valid JSON for this address ({first['msg']})", remedy
        ) from None
    texts = [sent.images] if isinstance(sent.images, str) else sent.images
    if not texts:
        raise Refusal(422, "images", "is empty", "send at least one image as Base64")
    images = [SentImage(where, _decoded(text, where)) for where, text in _with_names(texts)]
    return Upload(images, sent.threshold, sent.classes)


def _with_names(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"image {number}", text) for number, text in enumerate(texts, start=1)]


def _decoded(text: str, where: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        remedy = "encode the bytes of the file; URLs and paths are not read"
        raise Refusal(422, where, f"is not Base64 ({error})", remedy) from error


def _named(index: int, name: str | None) -> str:
    return f"image {index + 1} ({printable(name[:120])})" if name else f"image {index + 1}"


def _too_large(most: int) -> Refusal:
    problem = f"has a body of more than {most:,} bytes"
    return Refusal(413, "the request", problem, "send less, or start the server with a larger --max_bytes")
