"""The chat page: the files of a folder, read once and answered from memory. GET / and /web/FILE.

A layer in front of the door, because the page holds no secret: whoever opens it types a key into it, and it
asks the public API like any other client. No part of a request ever becomes a path: what is not one of the
paths that were made at start goes on to the door, and there it is as closed as everything else. Refuses to
know what the page does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, error_response

FOLDER = Path(__file__).resolve().parent.parent / "clients/web"
"""Beside this package in a checkout, an installed wheel and the image. A path, not an import: what is in it
speaks HTTP to this server and nothing else."""
ROOT_PATH = "/"
FILES_PATH = "/web/"
TEMPLATES = (ROOT_PATH, f"{FILES_PATH}{{file:path}}")
"""What metrics and the log call these paths."""
INDEX = "index.html"
METHODS = frozenset({"GET", "HEAD"})
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Files of other kinds are not the page's: notes and licences."""

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text becomes markup in one place: the sanitizer
        "trusted-types dompurify",
    ]
)
HEADERS = {
    "cache-control": "no-cache",  # kept, and asked for again: a new version is seen at once
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is answered."""

    body: bytes
    media_type: str
    etag: str


@cache
def read_page(folder: Path) -> dict[str, PageFile]:
    """The page's files by the path they are asked for; none when there is no such folder."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in MEDIA_TYPES and path.is_file():
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            name = path.relative_to(folder).as_posix()
            url = ROOT_PATH if name == INDEX else FILES_PATH + name
            files[url] = PageFile(body, MEDIA_TYPES[path.suffix], etag)
    return files


class Page:
    """Answers for the page's own paths; passes everything else on.

    Args:
        folder: where its files are. Without an index there, / says so.
    """

    def __init__(self, app: ASGIApp, folder: Path = FOLDER) -> None:
        self.app = app
        self.files = read_page(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in METHODS:
            await self.app(scope, receive, send)
        elif file := self.files.get(scope["path"]):
            await _answer(file, Headers(scope=scope), scope["method"])(scope, receive, send)
        elif scope["path"] == ROOT_PATH:
            await error_response(_missing())(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _answer(file: PageFile, asked: Headers, method: str) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")]
    if file.etag in known:
        return Response(status_code=304, headers=headers)
    headers["content-length"] = str(len(file.body))
    return Response(b"" if method == "HEAD" else file.body, headers=headers, media_type=file.media_type)


def _missing() -> ApiError:
    return ApiError(
        404, "this installation has no chat page: clients/web is not there", code="route_not_found"
    )
