"""A Hugging Face hub on this machine that accepts uploads: repositories, model cards, LFS files and commits.

It answers the requests of `create_repo`, `repo_info` and `upload_folder` of huggingface_hub as the real hub does, and
keeps what it received.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_TokenOfTheFakeHub"
REVISION = "c" * 40


@dataclass
class Repository:
    """A repository: whether it is private, and the files of each of its commits by name."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=list)


@dataclass
class FakeHub:
    """The state of the hub. `denied` is the HTTP status of every answer if it is not None; `lfs` are suffixes."""

    url: str = ""
    denied: int | None = None
    lfs: tuple[str, ...] = (".safetensors",)
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def environment(self, home, **changes: str) -> dict[str, str]:
        """The variables of a process that uses this hub with its token, and LFS in place of Xet."""
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        return {**hub, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", **changes}


class Handler(BaseHTTPRequestHandler):
    """Answers one request with the state in `self.server.hub`."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub

    def answer(self, document: object = None, status: int = 200, **headers: str) -> None:
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def respond(self) -> None:
        body = self.body()
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.denied is not None:
            self.answer({"error": "refused"}, self.hub.denied, X_Error_Message="refused by the test")
            return
        if not self.path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401, X_Error_Message="Invalid username or password.")
            return
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, self.path)
            if found is not None and method == self.command:
                action(self, body, *found.groups())
                return
        self.answer({"error": "unknown"}, 404)

    do_GET = do_POST = do_PUT = respond

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        exists = name in self.hub.repositories
        self.hub.repositories.setdefault(name, Repository(wanted.get("visibility") == "private"))
        self.answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name}, 409 if exists else 200)

    def describe(self, body: bytes, name: str) -> None:
        if name not in self.hub.repositories:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        private = self.hub.repositories[name].private
        self.answer({"_id": "1", "id": name, "private": private, "sha": REVISION, "tags": [], "siblings": []})

    def validate(self, body: bytes) -> None:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        valid = front is not None and isinstance(yaml.safe_load(front[1]), dict)
        errors = [] if valid else [{"message": "no valid front matter"}]
        self.answer({"errors": errors, "warnings": []}, 200 if valid else 400)

    def preupload(self, body: bytes, name: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(self.hub.lfs) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}}}
            for each in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.uploads[oid] = body
        self.answer()

    def commit(self, body: bytes, name: str) -> None:
        files: dict[str, bytes] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        self.hub.repositories[name].commits.append(files)
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{REVISION}", "commitOid": REVISION, "success": True})

    def log_message(self, *_: object) -> None:
        pass


ROUTES = (
    ("POST", r"/api/repos/create", Handler.create),
    ("GET", r"/api/models/([^/]+/[^/]+)", Handler.describe),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/main", Handler.preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.store),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/main", Handler.commit),
)


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler], make_hub: Callable[[str], Any]) -> Iterator[Any]:
    """A server on a free port. `make_hub` makes its attribute `hub` from the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.hub = make_hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub without repositories on a free port."""
    with serve(Handler, FakeHub) as hub:
        yield hub
