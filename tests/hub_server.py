"""A small Hugging Face Hub on 127.0.0.1: what the client libraries ask for, a log of it, and faults on demand.

`test_hub` and `drill_hub` fill it with what `hub_repositories` builds and point the libraries at it by HF_ENDPOINT.
What it holds is served at one commit; everything else is a 404.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_WR
from threading import Event, Lock, Thread
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin")  # kept in large-file storage: another host, named by their SHA-256
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?$")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
BLOCK = 1 << 20  # bytes sent at a time


@dataclass(frozen=True)
class Repository:
    """The files of `folder` as `name` at `commit`; `kind` is "models" or "datasets"."""

    kind: str
    name: str
    commit: str
    folder: Path

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


@dataclass
class Fault:
    """What goes wrong, with requests whose path holds `where`, the next `times` times.

    `what`: "500"; "404" (no such revision); "portal" (a login page in place of the answer); "slow" (`seconds` before
    an answer); for a file's bytes also "cut" (connection closed half-way) and "short" (half of it, announced as all).
    """

    what: str
    where: str
    times: float = float("inf")
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """One line of the log."""

    method: str
    path: str  # unquoted, without the query
    status: int
    bytes: int = 0  # of the body sent


@dataclass
class HubServer:
    """`with HubServer([...]) as hub`: serves until the block ends. `hub.log`, `hub.faults` and the repositories may be
    read and changed meanwhile."""

    repositories: list[Repository]
    faults: list[Fault] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        self._lock, self._closing = Lock(), Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """Where large files lie: the same server under another name, as the Hub's storage is another host."""
        return f"http://localhost:{self.port}/storage"

    def find(self, kind: str, name: str) -> Repository | None:
        return next((r for r in self.repositories if (r.kind, r.name) == (kind, name)), None)

    def record(self, *entry) -> None:
        with self._lock:
            self.log.append(Request(*entry))

    def take_fault(self, path: str, kinds: tuple[str, ...]) -> str | None:
        """The fault of one of `kinds` that is due for `path`; a "slow" one is over when this returns."""
        with self._lock:
            due = next((f for f in self.faults if f.where in path and f.what in kinds and f.times > 0), None)
            if due:
                due.times -= 1
        if due and due.what == "slow":
            self._closing.wait(due.seconds)
        return due.what if due else None


class _Handler(BaseHTTPRequestHandler):
    """One request: listing, metadata, or a file by redirect to its storage, as huggingface.co answers."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.target = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        length = int(self.headers.get("Content-Length") or 0)
        self.query |= parse_qs(self.rfile.read(length).decode())  # paths-info posts a form
        fault = self.hub.take_fault(self.target, ("500", "404", "portal", "slow"))
        if fault == "500":
            return self.answer(500, b"fault")
        if fault == "404":
            return self.refuse("RevisionNotFound")
        if fault == "portal":
            return self.answer(200, b"<html>Please log in to this network</html>", {"Content-Type": "text/html"})
        if match := API.match(self.target):
            return self.describe(*match.groups())
        if match := RESOLVE.match(self.target):
            return self.resolve("datasets" if match[1] else "models", *match.groups()[1:])
        if self.target.startswith("/storage/"):
            for repository in self.hub.repositories:
                for name in repository.files():
                    if self.target.endswith(_sha256(repository.folder / name)):
                        return self.send_file(repository.folder / name)
        self.refuse("RepoNotFound")

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        """Silence: the log is `hub.log`."""

    def answer(self, status: int, body: bytes = b"", headers: dict | None = None) -> None:
        self.hub.record(self.command, self.target, status, len(body))
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str, commit: str | None = None) -> None:
        self.answer(404, b"", {"X-Error-Code": code} | ({"X-Repo-Commit": commit} if commit else {}))

    def describe(self, kind: str, name: str, what: str | None, revision: str | None, path: str | None) -> None:
        """`/api/…`: what a repository is, or which files it holds."""
        repository = self.hub.find(kind, name)
        if repository is None or revision != repository.commit:
            return self.refuse("RevisionNotFound" if repository else "RepoNotFound")
        names = repository.files()
        if what == "revision":
            files = [{"rfilename": n, "size": (repository.folder / n).stat().st_size} for n in names]
            found = {"id": name, "sha": revision, "private": False, "gated": False, "tags": [], "siblings": files}
        else:
            folders = sorted({str(parent) for n in names for parent in Path(n).parents if str(parent) != "."})
            entries = [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
            entries += [_file_entry(repository.folder, n) for n in names]
            if what == "paths-info":
                found = [e for e in entries if e["path"] in self.query["paths"]]
            elif path and path not in folders:
                return self.refuse("EntryNotFound", revision)
            elif self.query.get("recursive") in (["true"], ["True"]):
                found = [e for e in entries if not path or e["path"].startswith(path + "/")]
            else:
                found = [e for e in entries if str(Path(e["path"]).parent) == (path or ".")]
        self.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        """A file: small ones here, large ones by redirect to their storage."""
        repository = self.hub.find(kind, name)
        if repository is None or revision != repository.commit:
            return self.refuse("RevisionNotFound" if repository else "RepoNotFound")
        if path not in repository.files():
            return self.refuse("EntryNotFound", revision)
        file = repository.folder / path
        if not path.endswith(LARGE):
            return self.send_file(file, {"ETag": f'"{_git_oid(file)}"', "X-Repo-Commit": revision})
        linked = {"X-Linked-Size": file.stat().st_size, "X-Linked-Etag": f'"{_sha256(file)}"'}
        location = f"{self.hub.storage}/{quote(path)}/{_sha256(file)}"
        self.answer(302, b"", linked | {"X-Repo-Commit": revision, "Location": location})

    def send_file(self, file: Path, headers: dict | None = None) -> None:
        """The bytes of `file`, or those that Range asks for, or what a fault leaves of them."""
        size = file.stat().st_size
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
        fault = self.hub.take_fault(self.target, ("cut", "short")) if self.command == "GET" else None
        end = max(start, size // 2) if fault else size
        headers = {"Content-Length": (end if fault == "short" else size) - start, **(headers or {})}
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.hub.record(self.command, self.target, 206 if start else 200, end - start if self.command == "GET" else 0)
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as stream:
                stream.seek(start)
                for position in range(start, end, BLOCK):
                    self.wfile.write(stream.read(min(BLOCK, end - position)))
        if fault == "cut":
            self.close_connection = True
            self.connection.shutdown(SHUT_WR)
            self.rfile.read(1)  # the client hangs up once it has read what was sent; a reset could have lost some of it


def _file_entry(folder: Path, name: str) -> dict:
    file = folder / name
    entry = {"type": "file", "path": name, "size": file.stat().st_size, "oid": _git_oid(file)}
    return entry | (
        {"lfs": {"oid": _sha256(file), "size": entry["size"], "pointerSize": 134}} if name.endswith(LARGE) else {}
    )


def _sha256(file: Path) -> str:
    return _digest(file, file.stat().st_mtime_ns, "")


def _git_oid(file: Path) -> str:
    return _digest(file, file.stat().st_mtime_ns, f"blob {file.stat().st_size}\0")


@lru_cache
def _digest(file: Path, changed: int, header: str) -> str:
    digest = hashlib.sha1(header.encode()) if header else hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
