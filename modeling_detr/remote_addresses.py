"""Addresses of datasets in object stores and on web servers, without the passwords that may be in them.

A password in an address (`https://user:password@host/data`) is taken out as soon as a command or function gets it, so
that it appears in no log, record or run folder. It is kept in the environment, which loader and training processes
inherit.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from urllib.parse import unquote


_REMOTE = re.compile(r"([a-z][a-z0-9+]+)://", re.ASCII)
# A password ends at the last `@` before a slash, or, as secrets of S3 have slashes, at the last `@` of all
_CREDENTIALS = re.compile(
    r"(?P<start>\b[a-z][a-z0-9+]+://)(?P<user>[^\s/@:]+)(?P<password>:[^\s/]*|:(?!\d+/)\S*)?@(?=[^\s/])"
)
_VARIABLE = "_DETR_STORE_CREDENTIALS"  # JSON: start and host of an address → user and password


def is_remote(path: object) -> bool:
    """Whether `path` is an address such as `s3://bucket/coco`, not a path of this machine."""
    return isinstance(path, str) and _REMOTE.match(path) is not None


def protocol_of(address: str) -> str:
    """The protocol of an address, such as `s3`; empty for a path."""
    match = _REMOTE.match(address)
    return "" if match is None else match[1]


def without_credentials(text: str) -> str:
    """Takes `user:password@` out of the addresses in a text, and remembers it for `credentials_of`."""
    return _CREDENTIALS.sub(_remember, text) if "@" in text else text


def credentials_of(address: str) -> tuple[str, str] | None:
    """The user and password that an address came with, in this process or in the one that has started it; or None."""
    found = _remembered().get(_host_of(address))
    return None if found is None else (found[0], found[1])


@contextlib.contextmanager
def arguments_without_credentials() -> Iterator[None]:
    """Take the passwords out of `sys.argv` during the block, for libraries that note the command."""
    arguments = sys.argv
    sys.argv = [without_credentials(text) for text in arguments]
    try:
        yield
    finally:
        sys.argv = arguments


def remembered_credentials() -> str:
    """All users and passwords, for `remember_credentials` in a process that another machine starts."""
    return os.environ.get(_VARIABLE, "{}")


def remember_credentials(text: str) -> None:
    """Takes over those of another process."""
    os.environ[_VARIABLE] = json.dumps({**_remembered(), **json.loads(text)})


def _remember(match: re.Match[str]) -> str:
    host = match.string[match.end() :].partition("/")[0].split()[0]
    user, password = unquote(match["user"]), unquote((match["password"] or ":")[1:])
    known = {**_remembered(), f"{match['start']}{host}": [user, password]}
    os.environ[_VARIABLE] = json.dumps(known)
    return match["start"]


def _remembered() -> dict[str, list[str]]:
    known: dict[str, list[str]] = json.loads(os.environ.get(_VARIABLE, "{}"))
    return known


def _host_of(address: str) -> str:
    start, separator, rest = address.partition("://")
    return f"{start}{separator}{rest.partition('/')[0]}"
