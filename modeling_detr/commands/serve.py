"""Answer over HTTP: images in, objects as JSON out.

    detr serve runs/mine
    detr serve runs/mine --port 8000 --device cuda --dtype auto --batch_size 16
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?threshold=0.7'

`POST /predict` takes the bytes of an image, a form with files, or JSON with images as Base64. The page at / shows an
image that is dropped on it with its boxes. /docs describes the addresses, /health says whether the model is ready, and
/metrics is for Prometheus. Images that arrive together are computed together.

The server listens on this machine only. With another --host, it needs a token, which requests then send as
`Authorization: Bearer TOKEN`. After Ctrl-C or SIGTERM, what was accepted is answered, and the exit code is 0.

Needs: pip install 'modeling-detr[serve]'
"""

import argparse
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from modeling_detr.atomic_output import exits_on_sigterm
from modeling_detr.commands.command_parser import CommandParser, check_at_least, height_and_width
from modeling_detr.commands.device import add_device, add_dtype, add_trust_code, check_device, precision_of
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.image_headers import MAX_PIXELS
from modeling_detr.errors_detr import ServeError, printable
from modeling_detr.listening import LAST_PORT, is_loopback, listen, url_of
from modeling_detr.predicting import Detector


if TYPE_CHECKING:
    from modeling_detr.serving.limits import Limits


TOKEN = "DETR_TOKEN"  # in the environment, where other users of the machine do not see it
_PACKAGES = ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client")
_SHORTEST_TOKEN = 16
_IN_REQUESTS = "requests choose it: /predict?threshold=0.3&classes=cat,dog"
_ONE_PROCESS = "a server is one process; start several on ports of their own"
_FAMILIAR_OPTIONS = {
    "--threshold": _IN_REQUESTS,
    "--conf": _IN_REQUESTS,
    "--classes": _IN_REQUESTS,
    "--workers": _ONE_PROCESS,
    "--num_workers": _ONE_PROCESS,
    "--api_key": "--token",
    "--cors": "--allowed_origins",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM, and returns the exit code."""
    arguments = build_parser().parse_args(argv)
    _check_packages()
    _check_arguments(arguments)

    from modeling_detr.serving.app import create_app
    from modeling_detr.serving.server import Server
    from modeling_detr.serving.service import Service

    token = _token(arguments)
    warnings.filterwarnings("ignore", module="PIL")  # about images of clients, which get an error if it matters
    with exits_on_sigterm(), listen(arguments.host, arguments.port) as listener:
        detector = _load(arguments)
        service = Service(
            detector,
            _limits(arguments),
            batch_size=arguments.batch_size,
            batch_wait=arguments.batch_wait_ms / 1000,
            warm_up_size=arguments.warm_up,
        )
        url = url_of(arguments.host, listener)
        print(f"serving {printable(arguments.model)} at {url} (Ctrl-C ends)", flush=True)
        Server(service, create_app(service, token, arguments.allowed_origins)).serve_on(listener)
    if service.failure is not None:
        raise service.failure
    print("stopped", flush=True)
    return 0


def build_parser() -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it."""
    parser = CommandParser("detr serve", __doc__, familiar=_FAMILIAR_OPTIONS)
    parser.add_argument(
        "model", help="a model folder, the folder of a run, a Hub id, an original checkpoint or an exported model"
    )
    add_trust_code(parser)
    add_device(parser)
    add_dtype(parser)
    parser.add_argument("--compile", action="store_true", help="compile the model: images of a new size take minutes")
    parser.add_argument(
        "--warm_up",
        type=height_and_width,
        default=(480, 640),
        metavar="HEIGHT,WIDTH",
        help="size of the image that is predicted before the server is ready; with --compile, that of your images "
        "(default: 480,640)",
    )
    group = parser.add_argument_group("where it listens")
    group.add_argument("--port", type=int, default=8000, help="port (default: 8000; 0: one that is free)")
    group.add_argument(
        "--host", default="127.0.0.1", help="address (default: 127.0.0.1; 0.0.0.0: all of this machine)"
    )
    group.add_argument(
        "--token",
        help=f"what clients send to be answered (default: {TOKEN} of the environment, which `ps` does not show)",
    )
    group.add_argument(
        "--allowed_origins",
        type=_origins,
        default=[],
        metavar="ORIGINS",
        help="web pages that may use the server in a browser, separated by commas, such as http://localhost:3000 "
        "(default: only its own)",
    )
    group = parser.add_argument_group("images that are computed together")
    group.add_argument("--batch_size", type=int, default=8, help="at most (default: 8)")
    group.add_argument(
        "--batch_wait_ms", type=float, default=5.0, help="how long one waits for others of its size (default: 5)"
    )
    _add_limits(parser)
    return parser


def _origins(text: str) -> list[str]:
    """The value of `--allowed_origins`."""
    origins = [origin.strip().rstrip("/") for origin in text.split(",")]
    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s*?#@]+", origin):
            raise argparse.ArgumentTypeError(f"got '{origin}', expected http://HOST:PORT or https://HOST")
    return origins


def _add_limits(parser: CommandParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument("--max_bytes", type=int, default=20_000_000, help="of a request (default: 20,000,000)")
    group.add_argument("--max_pixels", type=int, default=64_000_000, help="of an image (default: 64,000,000)")
    group.add_argument("--max_images", type=int, default=16, help="in a request (default: 16)")
    group.add_argument(
        "--queue_size",
        type=int,
        default=64,
        help="images that wait, before clients are told to come back (default: 64)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="to receive a request, and again to answer it (default: 30)",
    )


def _check_packages() -> None:
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise ServeError(name, "is not installed", "pip install 'modeling-detr[serve]'")


def _check_arguments(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.port <= LAST_PORT:
        raise ValueError(f"--port: got {arguments.port}, expected 0 to {LAST_PORT}.")
    for name in ("batch_size", "max_bytes", "max_images", "max_pixels"):
        check_at_least(name, getattr(arguments, name), 1)
    check_at_least("batch_wait_ms", arguments.batch_wait_ms, 0)
    check_at_least("queue_size", arguments.queue_size, arguments.max_images)
    if arguments.max_pixels > MAX_PIXELS:
        raise ValueError(
            f"--max_pixels: got {arguments.max_pixels:,}, expected at most {MAX_PIXELS:,}, Pillow's limit."
        )
    if not 0 < arguments.timeout < float("inf"):
        raise ValueError(f"--timeout: got {arguments.timeout:g}, expected a positive number of seconds.")
    check_device(arguments.device)


def _token(arguments: argparse.Namespace) -> str | None:
    """The token; a server that other machines reach must have one."""
    token: str | None = arguments.token or os.environ.get(TOKEN) or None
    if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        problem = f"has {len(token)} characters, expected at least {_SHORTEST_TOKEN}, all of them printable ASCII"
        raise ServeError(
            "--token", problem, "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    if is_loopback(arguments.host):
        return token
    if token is None:
        problem = "other machines can reach the server there, and no token is set"
        remedy = f"set {TOKEN} to the output of: python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise ServeError(f"--host {arguments.host}", problem, remedy)
    print(
        f"warning: other machines can reach the server at {arguments.host}. It speaks plain HTTP, so the token and "
        "the images can be read on the way; put a proxy with TLS in front of it.",
        file=sys.stderr,
    )
    return token


def _limits(arguments: argparse.Namespace) -> "Limits":
    from modeling_detr.serving.limits import Limits

    return Limits(
        arguments.max_bytes, arguments.max_pixels, arguments.max_images, arguments.queue_size, arguments.timeout
    )


def _load(arguments: argparse.Namespace) -> Detector:
    model, processor = load_detector(arguments.model, arguments.trust_code)
    device = torch.device(arguments.device)
    dtype = precision_of(arguments.dtype, model, device, arguments.model)
    return Detector(model, processor, source=arguments.model, device=device, dtype=dtype, compiled=arguments.compile)
