"""Images on the web: read with a limit on time and size, and again if the server is busy or the connection breaks."""

import http.client
import io
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from modeling_detr.predicting.inputs.input_image import FoundImage


TIMEOUT = 20.0  # seconds without a byte
MOST_SECONDS = 120.0  # in all, for a server that sends a byte now and then
MAX_BYTES = 200_000_000
_CHUNK = 1 << 16
_TRIES = 3
FIRST_WAIT = 0.5  # seconds; doubled after each try
_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # of HTTP's status codes


def is_url(text: str) -> bool:
    """Whether a text is a URL of an image."""
    return text.lower().startswith(("http://", "https://"))


def find_on_the_web(url: str, _ignored: Sequence[Path]) -> Iterator[FoundImage]:
    """The image with a URL; nothing is read yet."""
    try:
        path = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path).replace("\0", "_"))
    except ValueError as error:
        raise ValueError(f"{url}: not a URL ({error}).") from error
    name = path.name if path.name.strip(".") else "image"
    yield FoundImage(PurePosixPath(name), url, open_url)


def open_url(url: str) -> BinaryIO:
    """Reads what a URL leads to.

    Raises:
        OSError: It cannot be read, also after three tries, or is larger than 200 MB.
    """
    for attempt in range(_TRIES):
        try:
            return _read(url)
        except urllib.error.HTTPError as error:
            error.close()
            failure = OSError(f"the server answers {error.code} ({error.reason})")
            if error.code not in _AGAIN:
                raise failure from error
        except (http.client.HTTPException, TimeoutError, ConnectionError, urllib.error.URLError) as error:
            failure = OSError(f"cannot be read ({getattr(error, 'reason', None) or error or type(error).__name__})")
        if attempt < _TRIES - 1:
            time.sleep(FIRST_WAIT * 2**attempt)
    raise failure


def _escaped(url: str) -> str:
    """A URL as browsers send it: without spaces and letters beyond ASCII, which people type."""
    parts = urllib.parse.urlsplit(url)
    path, query = (urllib.parse.quote(text, safe="/%:;=?&@!$'()*+,~[]") for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit(parts._replace(path=path, query=query, fragment=""))


def _opener() -> urllib.request.OpenerDirector:
    """Opens `http` and `https` only, also after a redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _read(url: str) -> BinaryIO:
    started = time.monotonic()
    request = urllib.request.Request(_escaped(url), headers={"User-Agent": "modeling_detr"})
    with _opener().open(request, timeout=TIMEOUT) as response:
        content = io.BytesIO()
        while chunk := response.read1(_CHUNK):
            content.write(chunk)
            if content.tell() > MAX_BYTES:
                raise OSError(f"is larger than {MAX_BYTES / 1e6:.0f} MB")
            if time.monotonic() - started > MOST_SECONDS:
                raise OSError(f"has sent {content.tell():,} bytes in {MOST_SECONDS:.0f} seconds, which is too slow")
        expected = response.headers.get("Content-Length")
    if expected is not None and expected.isdigit() and content.tell() < int(expected):
        raise ConnectionError(f"the connection ended after {content.tell():,} of {int(expected):,} bytes")
    content.seek(0)
    return content
