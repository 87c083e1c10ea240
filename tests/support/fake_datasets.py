"""A Hugging Face Hub on this machine with datasets, as the package `datasets` downloads them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from support.fake_hub import serve


@dataclass
class DatasetHub:
    """The files of each dataset at each commit: files[name][commit][path]. The last commit is `main`."""

    url: str = ""
    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit to a dataset and return it."""
        commits = self.files.setdefault(name, {})
        commit = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits[commit] = files
        return commit

    def environment(self, home, **changes: str) -> dict[str, str]:
        """The variables of a process that uses this hub."""
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {**hub, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **changes}


class Handler(BaseHTTPRequestHandler):
    """Answers one request with the state in `self.server.hub`."""

    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        hub: DatasetHub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        for pattern, action in ROUTES:
            if found := re.fullmatch(pattern, path):
                action(self, hub, body, *found.groups())
                return
        self.answer(b"{}", 404)

    do_GET = do_HEAD = do_POST = respond

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def commit(self, hub: DatasetHub, name: str, revision: str | None) -> str | None:
        """The commit of a revision. Answers with an error if there is none."""
        if name not in hub.files:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
            return None
        commit = list(hub.files[name])[-1] if revision in (None, "main") else revision
        if commit not in hub.files[name]:
            self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
            return None
        return commit

    def describe(self, hub: DatasetHub, body: bytes, name: str, revision: str | None = None) -> None:
        if commit := self.commit(hub, name, revision):
            siblings = [{"rfilename": path} for path in hub.files[name][commit]]
            document = {"_id": "1", "id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            self.answer(json.dumps(document).encode())

    def tree(self, hub: DatasetHub, body: bytes, name: str, revision: str, folder: str = "") -> None:
        if commit := self.commit(hub, name, revision):
            files = hub.files[name][commit]
            start = f"{folder}/" if folder else ""
            recursive = "recursive=true" in self.path.lower()
            found = [
                self.entry(path, content)
                for path, content in files.items()
                if path.startswith(start) and (recursive or "/" not in path.removeprefix(start))
            ]
            folders = {path.removeprefix(start).partition("/")[0] for path in files if path.startswith(start)}
            folders = {each for each in folders if f"{start}{each}" not in files}
            found += [{"type": "directory", "path": f"{start}{each}", "oid": "0" * 40, "size": 0} for each in folders]
            self.answer(json.dumps(found).encode())

    def paths_info(self, hub: DatasetHub, body: bytes, name: str, revision: str) -> None:
        if commit := self.commit(hub, name, revision):
            files, text = hub.files[name][commit], body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else re.findall(r"paths=([^&]+)", unquote(text))
            found = [self.entry(path, files[path]) for path in wanted if path in files]
            folders = [path for path in wanted if any(file.startswith(f"{path}/") for file in files)]
            found += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
            self.answer(json.dumps(found).encode())

    @staticmethod
    def entry(path: str, content: bytes) -> dict:
        return {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}

    def resolve(self, hub: DatasetHub, body: bytes, name: str, revision: str, path: str) -> None:
        if commit := self.commit(hub, name, revision):
            if path not in hub.files[name][commit]:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            content = hub.files[name][commit][path]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(content, ETag=tag, X_Repo_Commit=commit, Accept_Ranges="bytes")

    def log_message(self, *_: object) -> None:
        pass


NAME = r"([^/]+/[^/]+)"
ROUTES = (
    (rf"/api/datasets/{NAME}", Handler.describe),
    (rf"/api/datasets/{NAME}/revision/([^/]+)", Handler.describe),
    (rf"/api/datasets/{NAME}/tree/([^/]+)", Handler.tree),
    (rf"/api/datasets/{NAME}/tree/([^/]+)/(.*)", Handler.tree),
    (rf"/api/datasets/{NAME}/paths-info/([^/]+)", Handler.paths_info),
    (rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
)


@contextmanager
def serving() -> Iterator[DatasetHub]:
    """A hub without datasets on a free port."""
    with serve(Handler, DatasetHub) as hub:
        yield hub
