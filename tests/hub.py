"""A server on this machine that answers as the Hub does, for models and data sets in folders; counts what it sends."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")


class Hub:
    """The models and data sets of a folder, as models/OWNER/NAME and datasets/OWNER/NAME, all at one commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = ""
        self.sent: Counter[str] = Counter()  # bytes, by file name
        self.failing: dict[str, int] = {}  # status codes, by file name

    def answer(self, path: str, paths: list[str] | None, recursive: bool) -> tuple[int, Any] | None:
        """The status and answer to a request of the API; None if it is none."""
        if not (found := _API.fullmatch(path)):
            return None
        folder = self.folder / found[1] / found[2]
        if not folder.is_dir():
            return 404, {"error": "Repository not found"}
        every = sorted(path for path in folder.rglob("*"))
        if found[3] == "tree":
            top = folder / unquote(found[5] or "")
            if not top.is_dir():
                return 404, {"error": "Entry not found"}
            return 200, [_entry(folder, one) for one in every if _is_in(top, one, recursive)]
        if found[3] == "paths-info":
            return 200, [_entry(folder, folder / one) for one in paths or () if (folder / one).exists()]
        siblings = [{"rfilename": one.relative_to(folder).as_posix()} for one in every if one.is_file()]
        return 200, {"id": found[2], "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "gated": False}

    def file(self, path: str) -> Path | None:
        """The file that a request is for, whether it is there or not; None if it is for none."""
        found = _FILE.fullmatch(path)
        return self.folder / (found[1] or "models") / found[2] / unquote(found[3]) if found else None


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub of the models and data sets of a folder."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer([])

        def do_HEAD(self) -> None:
            self._answer([])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = json.loads(body) if body.startswith("{") else parse_qs(body)
            self._answer(form["paths"])

        def _answer(self, paths: list[str]) -> None:
            url = urlsplit(self.path)
            recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            if said := hub.answer(url.path, paths, recursive):
                self._send(said[0], json.dumps(said[1]).encode(), {"X-Error-Code": _MISSING} if said[0] == 404 else {})
                return
            file = hub.file(url.path)
            name = file.name if file else ""
            there = file is not None and file.is_file()
            if status := hub.failing.get(name, 0 if there else 404):
                self._send(status, b"", {"X-Error-Code": "EntryNotFound"} if status == 404 else {})
                return
            assert file is not None
            body, wanted = file.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted:
                body = body[int(wanted[1]) : int(wanted[2] or len(body)) + 1]
            if self.command == "GET":
                hub.sent[name] += len(body)
            self._send(206 if wanted else 200, body, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


_MISSING = "RepoNotFound"


def _is_in(folder: Path, path: Path, recursive: bool) -> bool:
    return path.parent == folder or (recursive and folder in path.parents)


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    return {"type": "file", "path": name, "oid": _etag(path), "size": path.stat().st_size}


@cache
def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
