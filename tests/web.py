"""A small file server on 127.0.0.1 that can play a hub or a package index, and misbehave on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

COMMIT = "c0ffee" + "0" * 34


class Web:
    """Files by path, every request noted.

    Attributes:
        files: what is served, by path.
        seen: path and headers of every request so far.
        cuts: by path, after how many body bytes the next answers break off.
        stalls: paths whose next answer stops half-way until `go_on` is set.
        status: by path, the HTTP status that is all there is.
        moved: by path, where it redirects to.
        keys: by path, the Authorization it wants.
        ranges: whether Range is understood.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.cuts: dict[str, list[int]] = {}
        self.stalls: set[str] = set()
        self.go_on = threading.Event()
        self.status: dict[str, int] = {}
        self.moved: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self.ranges = True
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(ConnectionError):  # the other side was killed
                    web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.seen.append((path, {name.lower(): value for name, value in request.headers.items()}))
        if path in self.moved:
            self._start(request, 302, {"Location": self.moved[path], "Content-Length": "0"})
        elif path in self.keys and request.headers.get("Authorization") != self.keys[path]:
            self._start(request, 401, {"WWW-Authenticate": "Basic", "Content-Length": "0"})
        elif path in self.status or path not in self.files:
            self._start(request, self.status.get(path, 404), {"Content-Length": "0"} | self.headers)
        else:
            self._send(request, path)

    def _send(self, request: BaseHTTPRequestHandler, path: str) -> None:
        data = self.files[path]
        span = request.headers.get("Range") if self.ranges else None
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        if start >= len(data) > 0:
            self._start(request, 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
            return
        headers = {"Content-Length": str(len(data) - start)}
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._start(request, 206 if span else 200, headers | self.headers)
        cuts = self.cuts.get(path, [])
        end = start + cuts.pop(0) if cuts else len(data)
        if path in self.stalls:
            self.stalls.remove(path)
            request.wfile.write(data[start : len(data) // 2])
            start = len(data) // 2
            self.go_on.wait(60)
        request.wfile.write(data[start:end])
        if end < len(data):
            request.close_connection = True

    def _start(self, request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def ranges_of(self, path: str) -> list[str | None]:
        """The Range of every request for a path."""
        return [headers.get("range") for seen, headers in self.seen if seen == path]

    def host(
        self, repo: str, files: Mapping[str, bytes], *, revision: str | None = None, **info: Any
    ) -> None:
        """Be the hub for a repository; a name that ends in a weights format is kept in LFS."""
        siblings = [self.sibling(name, data) for name, data in files.items()]
        listing = {"id": repo, "sha": COMMIT, "siblings": siblings} | info
        api = f"/api/models/{repo}" + (f"/revision/{revision}" if revision else "")
        self.files[api] = json.dumps(listing).encode()
        for name, data in files.items():
            self.files[f"/{repo}/resolve/{COMMIT}/{name}"] = data

    @staticmethod
    def sibling(name: str, data: bytes) -> dict[str, object]:
        """One entry of the hub's list of files."""
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith((".safetensors", ".bin", ".gguf")):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return entry
