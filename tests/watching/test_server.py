import html
import http.client
import json
import socket
import threading

import numpy as np
import pytest

from modeling_detr.errors_detr import OutputError
from modeling_detr.training.picture_history import keep_pictures
from modeling_detr.watching.server import WatchServer


@pytest.fixture
def server(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with WatchServer(tmp_path / "run") as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, path, headers=(), method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, headers=dict(headers))
    answer = connection.getresponse()
    answer.content = answer.read()
    connection.close()
    return answer


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.port}/"


def test_the_page_and_the_view_are_served(server):
    page = get(server, "/")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "connect-src 'self'" in html.unescape(page.content.decode())
    view = get(server, "/status.json?x=1")
    assert json.loads(view.content)["state"] == "waiting"
    assert view.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert get(server, "/", method="HEAD").content == b""


def test_what_a_browser_has_is_not_sent_again(server):
    first = get(server, "/status.json")
    again = get(server, "/status.json", {"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.content) == (304, b"")
    other = get(server, "/status.json", {"If-None-Match": '"other"'})
    assert other.status == 200


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_names_of_this_machine_are_answered(server, name):
    assert get(server, "/", {"Host": f"{name}:{server.port}"}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example:{port}", "evil.example", "127.0.0.1", "localhost:1", "", "127.0.0.1:{port}.evil"]
)
def test_other_hosts_are_refused(server, host):
    answer = get(server, "/status.json", {"Host": host.format(port=server.port)})
    assert answer.status == 421
    assert b"state" not in answer.content


def test_a_request_without_a_host_or_with_two_is_refused(server):
    for hosts in ("", f"Host: 127.0.0.1:{server.port}\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
            assert connection.recv(99).startswith(b"HTTP/1.1 421 ")


def test_other_methods_do_nothing(server):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(server, "/", method=method).status == 501


PATHS = ["/pictures/40/../../secret.txt", "/../secret.txt", "/pictures/40/%2e%2e", "/pictures/..%2f/0", "//etc/passwd"]


@pytest.mark.parametrize(
    "path", [*PATHS, "/pictures/40/9", "/pictures/99/0", "/pictures/x/0", "/log.jsonl", "/recipe.yaml"]
)
def test_no_address_leads_to_another_file(server, path):
    keep_pictures(server.run_dir, 40, {"000_cat": np.zeros((8, 8, 3), np.uint8)}, most=5)
    assert get(server, path).status == 404
    picture = get(server, "/pictures/40/0")
    assert (picture.status, picture.content[:3], picture.headers["Content-Type"]) == (
        200,
        b"\xff\xd8\xff",
        "image/jpeg",
    )


def test_a_link_in_place_of_a_picture_is_not_followed_out_of_its_folder(server, tmp_path):
    folder = server.run_dir / "predictions_by_step" / "step_00000040"
    folder.mkdir(parents=True)
    (folder / "000_link.jpg").symlink_to(tmp_path / "secret.txt")
    assert get(server, "/pictures/40/0").status == 404


def test_several_browsers_are_served_at_once(server):
    slow = socket.create_connection(("127.0.0.1", server.port))  # says nothing
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(get(server, "/status.json").status)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slow.close()
    assert answers == [200] * 8


def test_a_port_in_use_is_an_error_that_says_what_to_do(server, tmp_path):
    with pytest.raises(OutputError, match=rf"port {server.port}: cannot be opened .*; choose another --port"):
        WatchServer(tmp_path, server.port)
