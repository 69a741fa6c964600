"""A hub on this machine: the few routes that huggingface_hub uses, for files in memory, and plain files beside them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What is served.

    Attributes:
        repos: "models/owner/name" or "datasets/owner/name" -> path -> content.
        sizes: sizes that are listed instead of the true ones, by path.
        errors: "models/owner/name" -> HTTP status and X-Error-Code.
        files: path of the address -> (headers, content), served as they are.
        redirects: path of a file in a repository -> address that it is redirected to.
        etag: of every file, instead of one for each.
        listed: paths that are listed besides those that exist.
        requests: (method, path, Authorization header) of every request.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    files: dict[str, tuple[dict[str, str], bytes]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    etag: str | None = None
    commit: str = COMMIT
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def downloads(self) -> list[str]:
        """The paths of the files that were sent."""
        return [path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Authorization", "")))
        if path in self.hub.files:
            headers, content = self.hub.files[path]
            self.send(int(headers.get("status", 200)), content, headers)
        elif path.startswith("/api/"):
            self.answer_api(path.removeprefix("/api/").split("/"))
        else:
            self.answer_file(path.lstrip("/").split("/"))

    def answer_api(self, parts: list[str]) -> None:
        repo, words = "/".join(parts[:3]), parts[3:]
        if not self.check_repo(repo, words[1] if len(words) > 1 else "main"):
            return
        files = self.hub.repos[repo]
        if words[:1] == ["tree"]:
            names = [*files, *self.hub.listed]
            listing = [
                {
                    "type": "file",
                    "path": name,
                    "oid": "b" * 40,
                    "size": self.hub.sizes.get(name, len(files.get(name, b""))),
                }
                for name in names
            ]
            self.send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        else:
            info = {"id": "/".join(parts[1:3]), "sha": self.hub.commit, "siblings": [], "tags": []}
            self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def answer_file(self, parts: list[str]) -> None:
        parts = parts if parts[0] == "datasets" else ["models", *parts]
        repo, name = "/".join(parts[:3]), "/".join(parts[5:])
        if not self.check_repo(repo, parts[4] if len(parts) > 4 else "main"):
            return
        if name not in self.hub.repos[repo]:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "X-Repo-Commit": self.hub.commit,
            "ETag": f'"{hash_name(name)}"' if self.hub.etag is None else f'"{self.hub.etag}"',
        }
        if name in self.hub.redirects:
            self.send(302, b"", headers | {"Location": self.hub.redirects[name], "X-Linked-Etag": '"elsewhere"'})
        else:
            self.send(200, self.hub.repos[repo][name], headers)

    def check_repo(self, repo: str, revision: str) -> bool:
        status, code = self.hub.errors.get(repo, (200, ""))
        if repo not in self.hub.repos:
            status, code = 404, "RepoNotFound"
        elif revision not in ("main", "v1", self.hub.commit):
            status, code = 404, "RevisionNotFound"
        if status != 200:
            self.send(status, b"", {"X-Error-Code": code})
        return status == 200

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            if name != "status" and value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def hash_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes the connection is no error here."""


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine while the block runs."""
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = QuietServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
