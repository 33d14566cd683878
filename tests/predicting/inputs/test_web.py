import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from noise_images import picture

from modeling_detr.predicting.inputs import find_inputs, web


class Handler(BaseHTTPRequestHandler):
    content = b""
    busy = 0  # answers before the image

    def do_GET(self) -> None:
        if self.path.startswith("/busy") and type(self).busy > 0:
            type(self).busy -= 1
            self.send_error(503)
        elif self.path.startswith("/missing"):
            self.send_error(404)
        elif self.path.startswith("/elsewhere/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/elsewhere/"))
            self.end_headers()
        elif self.path.startswith("/page"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>not an image</html>")
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content[: 100 if self.path.startswith("/cut") else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Handler.content = picture(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(web, "FIRST_WAIT", 0.01)
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def test_an_image_is_read_and_named(server: str) -> None:
    (image,) = find_inputs([f"{server}/photos/a%20b.png?size=large"])
    assert (image.name, tuple(image.read().shape)) == ("a b.png", (3, 60, 90))


@pytest.mark.parametrize(("path", "name"), [("/", "image"), ("/a/..", "image"), ("/%2e%2e", "image")])
def test_a_url_without_a_file_name_gets_one(server: str, path: str, name: str) -> None:
    (image,) = find_inputs([server + path])
    assert image.name == name


@pytest.mark.parametrize(
    ("path", "name"),
    [("/ü b.png?x=ä", "ü b.png"), ("/a%00b.p%00", "a_b.p_"), ("/a." + 400 * "x", "a." + 11 * "x")],
)
def test_a_url_may_hold_anything(server: str, path: str, name: str) -> None:
    (image,) = find_inputs([server + path])
    assert (image.name, tuple(image.read().shape)) == (name, (3, 60, 90))


def test_what_is_no_url_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"http://\[x/a.jpg: not a URL"):
        find_inputs(["http://[x/a.jpg"])


def test_a_busy_server_is_asked_again(server: str) -> None:
    (image,) = find_inputs([f"{server}/busy.png"])
    Handler.busy = 2
    assert tuple(image.read().shape) == (3, 60, 90)
    Handler.busy = 3
    with pytest.raises(OSError, match="the server answers 503"):
        image.read()
    assert Handler.busy == 0


def test_an_answer_that_is_no_image_says_what_it_is(server: str) -> None:
    (missing,) = find_inputs([f"{server}/missing.png"])
    with pytest.raises(OSError, match="the server answers 404"):
        missing.read()
    (cut,) = find_inputs([f"{server}/cut.png"])
    with pytest.raises(OSError, match=r"cannot be read|the connection ended"):
        cut.read()
    (nobody,) = find_inputs(["http://127.0.0.1:9/a.png"])
    with pytest.raises(OSError, match="cannot be read"):
        nobody.read()


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/a.png", "file:///etc/hostname"])
def test_a_redirect_out_of_the_web_is_not_followed(server: str, place: str) -> None:
    (image,) = find_inputs([f"{server}/elsewhere/{place}"])
    with pytest.raises(OSError, match=r"unknown url type: ftp|the server answers 302"):
        image.read()


def test_a_page_is_no_image(server: str) -> None:
    (image,) = find_inputs([f"{server.replace('http', 'HTTP')}/page"])
    with pytest.raises(ValueError, match="what was read is not an image"):
        image.read()


def test_an_answer_that_is_too_large_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 1000)
    (image,) = find_inputs([f"{server}/a.png"])
    with pytest.raises(OSError, match="is larger than"):
        image.read()


def test_a_server_that_drips_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MOST_SECONDS", -1.0)
    (image,) = find_inputs([f"{server}/a.png"])
    with pytest.raises(OSError, match="too slow"):
        image.read()
