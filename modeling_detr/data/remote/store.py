"""Requests to an object store or web server: limited in time, repeated after failures, with errors that name the file.

fsspec and the libraries behind it speak the protocols; a protocol that needs settings of its own has a line in
`_SETTINGS`. How often and how long a request is repeated is decided here alone, since otherwise each layer multiplies
the attempts of the one below it.
"""

import base64
import contextlib
import functools
import html
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from modeling_detr.atomic_output import sync
from modeling_detr.errors_detr import DatasetNotFoundError, DatasetReadError, StoreError
from modeling_detr.output_errors import explained_output
from modeling_detr.remote_addresses import credentials_of, protocol_of


ATTEMPTS = 5
FIRST_PAUSE = 0.5  # seconds before the second attempt; doubled after each
SECONDS_TO_CONNECT = 5
SECONDS_OF_SILENCE = 20  # after which an attempt ends
SECONDS_OF_ATTEMPT = 60  # that an image may take
SECONDS_IN_ALL = 60  # after which no attempt begins
SECONDS_DEAD = 10  # for which no request is made to a store that has just been found not to answer
_REPEATED_STATUS = (408, 425, 429)  # of the client's errors; those of the server are all repeated
_VERSIONS = ("ETag", "etag", "oid", "blob_id", "LastModified", "mtime")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "RefreshError")
_BAD_REDIRECTS = ("NonHttpUrlRedirectClientError", "InvalidUrlRedirectClientError", "TooManyRedirects")  # of aiohttp

_Result = TypeVar("_Result")


def _http(credentials: tuple[str, str] | None) -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS_TO_CONNECT, sock_read=SECONDS_OF_SILENCE)
    settings: dict[str, Any] = {"timeout": timeout, "trust_env": True}  # proxies, and passwords in ~/.netrc
    if credentials:
        encoded = base64.b64encode(":".join(credentials).encode()).decode()
        settings["headers"] = {"Authorization": f"Basic {encoded}"}
    return {"client_kwargs": settings}


def _s3(credentials: tuple[str, str] | None) -> dict[str, Any]:
    config = {
        "connect_timeout": SECONDS_TO_CONNECT,
        "read_timeout": SECONDS_OF_SILENCE,
        "retries": {"total_max_attempts": 1},
    }
    return {"config_kwargs": config} | (dict(zip(("key", "secret"), credentials, strict=True)) if credentials else {})


def _gcs(_: tuple[str, str] | None) -> dict[str, Any]:
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of each failure
    return {"requests_timeout": SECONDS_OF_SILENCE}


_SETTINGS: Mapping[str, Callable[[tuple[str, str] | None], dict[str, Any]]] = {
    "http": _http,
    "https": _http,
    "s3": _s3,
    "s3a": _s3,
    "gs": _gcs,
    "gcs": _gcs,
}


class Entry(NamedTuple):
    """A file or folder: the last part of its address, and its size and version as far as a listing has them."""

    name: str
    is_folder: bool
    size: int | None
    version: list[str]


def list_folder(address: str) -> list[Entry]:
    """List a folder.

    Raises:
        DatasetNotFoundError: There is no such folder.
        DatasetReadError: It cannot be listed.
        StoreError: The store does not answer.
    """
    system = _system(address, os.getpid())
    is_web = protocol_of(address).startswith("http")

    def list_now() -> list[dict[str, Any]]:
        system.invalidate_cache()
        entries: list[dict[str, Any]] = system.ls(_place(system, address.rstrip("/") + "/"), detail=True)
        return entries

    own = _plain(_place(system, address), is_web).rstrip("/")
    found = []
    for entry in _repeated(address, list_now):
        place = str(entry["name"])
        name = _plain(place, is_web).rstrip("/").removeprefix(own).lstrip("/")
        if not name or "/" in name or (is_web and ("?" in place or "#" in place)):  # itself, or a link that sorts
            continue
        is_folder = entry.get("type") == "directory" or place.endswith("/")
        version = [str(entry[key]) for key in _VERSIONS if entry.get(key)]
        found.append(Entry(name, is_folder, entry.get("size"), version))
    return found


def version_of(address: str) -> list[str]:
    """What tells the content of a file from what it was before, where a listing does not; empty if nothing does."""
    system = _system(address, os.getpid())
    info: dict[str, Any] = _repeated(address, lambda: system.info(_place(system, address)))
    version = [str(info[key]) for key in (*_VERSIONS, "Last-Modified", "last_modified") if info.get(key)]
    return [str(info.get("size")), *version] if version else []  # the size alone stays the same in many changes


def read(address: str) -> bytes:
    """Read a file of moderate size, such as an image.

    Raises:
        DatasetNotFoundError: There is no such file.
        DatasetReadError: It may not be read.
        StoreError: The store does not answer, or breaks off each time.
    """
    system = _system(address, os.getpid())

    def read_now() -> bytes:
        content: bytes
        if system.async_impl:
            from fsspec.asyn import sync

            place = _place(system, address)
            content = sync(system.loop, system._cat_file, place, timeout=SECONDS_OF_ATTEMPT)
        else:
            content = system.cat_file(_place(system, address))
        return content

    return _repeated(address, read_now)


def download(address: str, target: Path, size: int | None) -> None:
    """Download a file of any size to `target`, which appears when it is complete; see `read`."""
    system = _system(address, os.getpid())
    part = target.with_name(f"{target.name}.{os.getpid()}.part")

    def download_now() -> None:
        system.get_file(_place(system, address), str(part))
        if size is not None and part.stat().st_size != size:
            raise OSError(f"got {part.stat().st_size:,} of {size:,} bytes")

    try:
        _repeated(address, download_now)
        with explained_output(target):
            sync(part)  # before its version is noted, also in a power cut
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@functools.lru_cache(maxsize=32)
def _cached_system(start: str, credentials: tuple[str, str] | None, process: int) -> Any:  # noqa: ARG001
    protocol = protocol_of(start)
    try:
        import fsspec

        settings = _SETTINGS.get(protocol, lambda _: {})(credentials)
        system = fsspec.filesystem(protocol, skip_instance_cache=True, **settings)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        remedy = "pip install 'modeling-detr[remote]' has what s3://, gs:// and https:// need"
        raise DatasetReadError(f"{protocol}://", f"cannot be opened ({reason})", remedy) from error
    if hasattr(system, "retries"):  # of s3fs and gcsfs, which would repeat each of our attempts
        system.retries = 1
    return system


def _system(address: str, process: int) -> Any:
    """The file system of an address. A process that was forked makes its own, since connections cannot be shared."""
    start = "/".join(address.split("/")[:3])
    return _cached_system(start, credentials_of(address), process)


def _plain(place: str, is_web: bool) -> str:
    """A place without the escapes of web pages and addresses."""
    return unquote(html.unescape(place)) if is_web else place


def _place(system: Any, address: str) -> str:
    """An address as the file system takes it."""
    if protocol_of(address).startswith("http"):
        start, rest = "/".join(address.split("/")[:3]), "/".join(address.split("/")[3:])
        return f"{start}/{quote(rest)}"
    place: str = system._strip_protocol(address)
    return place


_dead: dict[str, tuple[float, StoreError]] = {}  # start of an address → when a request failed for good, and how
_alive: dict[str, float] = {}  # start of an address → when it last answered


def _repeated(address: str, request: Callable[[], _Result]) -> _Result:
    """Make a request until it succeeds; wait longer after each failure.

    When one fails for good, those of other threads end too: hundreds may be waiting, each for its own attempts.
    """
    began = time.monotonic()
    start = "/".join(address.split("/")[:3])
    attempt = 0
    while True:
        attempt += 1
        when, failure = _dead.get(start, (-math.inf, None))
        if failure is not None and time.monotonic() - when < SECONDS_DEAD:
            raise StoreError(address, failure.problem, failure.remedy)
        try:
            result = request()
            _alive[start] = time.monotonic()
            return result
        except Exception as error:  # of any library; what is not worth another attempt is raised by `_explain`
            _explain(address, error)
            pause = FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
            seconds = time.monotonic() - began
            if attempt == ATTEMPTS or seconds + pause > SECONDS_IN_ALL:
                attempts = f"{attempt} attempts in {seconds:.0f} seconds" if attempt > 1 else f"{seconds:.0f} seconds"
                problem = f"the store does not answer ({attempts}, the last: {_reason(error)})"
                failure = StoreError(address, problem, "check the address and the connection")
                if _alive.get(start, -math.inf) < began:
                    _dead[start] = (time.monotonic(), failure)
                raise failure from error
            time.sleep(pause)


def _explain(address: str, error: Exception) -> None:
    """Raise what another attempt would not change."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise DatasetNotFoundError(address, "no such file or folder in the store", "check the address") from error
    if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ in _NO_CREDENTIALS:
        remedy = "set the credentials where the store's own tools look for them (docs/data.md, Remote data)"
        raise DatasetReadError(address, f"access is denied ({_reason(error)})", remedy) from error
    is_refused = status is not None and 400 <= status < 500 and status not in _REPEATED_STATUS
    is_redirected = type(error).__name__ in _BAD_REDIRECTS
    if is_refused or is_redirected or isinstance(error, TypeError | ValueError | NotImplementedError):
        raise DatasetReadError(address, f"cannot be read ({_reason(error)})", "check the address") from error


def _status(error: Exception) -> int | None:
    """The HTTP status in an error of aiohttp, botocore, gcsfs or the Hub's client."""
    for holder, name in ((error, "status"), (getattr(error, "response", None), "status_code"), (error, "code")):
        value = getattr(holder, name, None)
        if isinstance(value, int):
            return value
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])  # type: ignore[attr-defined]
    return None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
