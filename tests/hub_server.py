"""A local stand-in for the Hub: enough for huggingface_hub to create repositories, upload and download.

    python tests/hub_server.py    # prints its address and serves until it is stopped

Everything is kept in memory. Writing requires the token `hf_loopback`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


TOKEN = "hf_loopback"


class HubServer(ThreadingHTTPServer):
    """A server of repositories: their files by name, large files by SHA-256."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: dict[str, int] = {}
        self.large: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        """The address that it listens on."""
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Environment variables that make a client process use this server, with an empty cache in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # upload each file in one request
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PATH": "",
        }

    def sha(self, repository: str) -> str:
        """The current commit of `main`."""
        return hashlib.sha1(f"{repository} {self.commits[repository]}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Keep the log of requests out of the tests' output."""

    def do_GET(self) -> None:
        self._answer_reading(with_body=True)

    def do_HEAD(self) -> None:
        self._answer_reading(with_body=False)

    def do_PUT(self) -> None:
        content = self._body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self._send(200)

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if path == "/api/validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send_json({"error": "Invalid user token."}, 401)
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'somebody'}/{request['name']}"
            exists = name in self.server.repositories
            if not exists:
                self.server.repositories[name], self.server.commits[name] = {}, 0
                self.server.private[name] = request.get("visibility") == "private"
            answer = {"url": f"{self.server.url}/{name}", "name": name}
            return self._send_json(
                answer | ({"error": "You already created this model repo"} if exists else {}), 409 if exists else 200
            )
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send_json({"files": files})
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**file, "actions": {"upload": {"href": f"{self.server.url}/upload/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            return self._send_json({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        return self._send_json({"error": f"no such address: POST {path}"}, 404)

    def _commit(self, name: str, entries: list[dict[str, Any]]) -> None:
        files = self.server.repositories[name]
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        self.server.commits[name] += 1
        sha = self.server.sha(name)
        self._send_json({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})

    def _answer_reading(self, with_body: bool) -> None:
        path = self._path()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            if (files := self.server.repositories.get(match[1])) is None:
                return self._send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": file} for file in sorted(files)]
            return self._send_json(
                {"id": match[1], "sha": self.server.sha(match[1]), "siblings": siblings, "tags": []}
            )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+.*", path):
            files = self.server.repositories.get(match[1], {})
            entries = [{"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40} for file in files]
            return self._send_json(entries)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            name, file = match[1], match[2]
            if name not in self.server.repositories:
                return self._send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            headers = {"X-Repo-Commit": self.server.sha(name)}
            if (content := self.server.repositories[name].get(file)) is None:
                return self._send_json({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._send(200, content, headers, with_body)
        return self._send_json({"error": f"no such address: {self.command} {path}"}, 404)

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self._send(status, content, {"Content-Type": "application/json"} | (headers or {}), self.command != "HEAD")

    def _send(
        self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[HubServer]:
    """Run a server for the duration of a `with` block."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with serving() as hub:
        print(hub.url, flush=True)
        threading.Event().wait()
