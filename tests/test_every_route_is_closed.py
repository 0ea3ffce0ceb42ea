"""With keys set, every route there is, and every path that is none, answers 401 to whoever brings no key.

The routes are asked of the app itself, so that one that is added tomorrow is tried too. Only the health
checks and the page's own files, asked with GET or HEAD, are open.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from starlette.types import Message

from server.app import create_app
from server.page import FOLDER, read_page
from server.settings import load_settings
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, Connection, app_of, live

KEY = "sk-Right-0123456789"
HEALTH = {"/live", "/ready", "/health"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "get", "BREW"]
FILES = set(read_page(FOLDER))
OPEN = {(path, method) for path in HEALTH | FILES for method in ("GET", "HEAD")}

Headers = list[tuple[bytes, bytes]]

UNKNOWN_PATHS = [
    "",
    "//",
    "/web",
    "/web/",
    "/web/x",
    "/web/index.html",
    "/web/../server/keys.py",
    "/web/vendor",
    "/web/vendor/README.md",
    "/web//chat.js",
    "/web/./chat.js",
    "/web/chat.js/",
    "/web/chat.js/../../v1/models",
    "/web/CHAT.JS",
    "/web/chat.js\x00",
    "*",
    "/v1",
    "/v1/",
    "/docs",
    "/redoc",
    "/favicon.ico",
    "/nowhere",
    "/health/",
    "//health",
    "/health//",
    "/./health",
    "/Health",
    "/HEALTH",
    "/health ",
    " /health",
    "/health\x00",
    "/health\n",
    "/health;",
    "/health;/v1/models",
    "/health/../v1/models",
    "/v1/../health",
    "/v1/models/../../health",
    "/health?x",
    "/health%2f",
    "/health%2f..",
    "/%68ealth",
    "/health/x",
    "/live/metrics",
    "/ready/",
    "/healthz",
    "health",
    "http://h/health",
    "/v1/models//health",
    "/\uff48ealth",
    "\\health",
    "/x" * 3000,
]
"""As an application sees them: decoded once, so a % here was sent as %25."""

TOKENS = [
    b"",
    b" ",
    KEY[:-1].encode(),
    KEY.encode() + b"0",
    KEY.encode() * 2,
    KEY.lower().encode(),
    KEY.swapcase().encode(),
    KEY.encode() + b"\x00",
    KEY.encode() + b" x",
    b"x " + KEY.encode(),
    KEY.replace("t", "\u0442").encode(),
    KEY.encode("utf-16"),
    KEY.encode() + b"\xff",
    b"\xff\xfe\x00",
    b"schl\xfcssel",
    b'"' + KEY.encode() + b'"',
    b"x" * 8192,
    KEY.encode() + b"," + KEY.encode(),
]
BEARER = b"Bearer " + KEY.encode()
WRONG: list[Headers] = [
    [],
    *([(b"authorization", b"Bearer " + token)] for token in TOKENS),
    *([(b"x-api-key", token)] for token in TOKENS),
    [(b"authorization", b"")],
    [(b"authorization", b"Bearer")],
    [(b"authorization", KEY.encode())],
    [(b"authorization", b"Basic " + KEY.encode())],
    [(b"authorization", b"Token " + KEY.encode())],
    [(b"authorization", b"Bearer:" + KEY.encode())],
    [(b"authorization", b"Bearer\t" + KEY.encode())],
    [(b"authorization", b"Bearer\xa0" + KEY.encode())],
    [(b"authorization", b"Bearer Bearer " + KEY.encode())],
    [(b"authorization", BEARER), (b"authorization", BEARER)],
    [(b"authorization", BEARER), (b"authorization", b"Bearer wrong")],
    [(b"authorization", b"Bearer wrong"), (b"authorization", BEARER)],
    [(b"authorization", BEARER), (b"authorization", b"")],
    [(b"authorization", BEARER + b", " + BEARER)],
    [(b"x-api-key", KEY.encode()), (b"x-api-key", KEY.encode())],
    [(b"authorization", BEARER), (b"x-api-key", b"wrong")],
    [(b"authorization", b"Bearer wrong"), (b"x-api-key", KEY.encode())],
    [(b"authorization", BEARER), (b"x-api-key", b"other-key")],
    [(b"x-api-key", BEARER)],
    [(b"api-key", KEY.encode())],
    [(b"cookie", b"authorization=" + BEARER)],
    [(b"proxy-authorization", BEARER)],
    [(b"x-forwarded-for", b"127.0.0.1"), (b"x-original-url", b"/health"), (b"x-rewrite-url", b"/health")],
    [(b"x-http-method-override", b"OPTIONS"), (b"x-forwarded-prefix", b"/health")],
]
RIGHT: list[Headers] = [
    [(b"authorization", scheme + b" " + KEY.encode())]
    for scheme in (b"Bearer", b"bearer", b"BEARER", b"beArer")
]
RIGHT += [
    [(b"authorization", b"Bearer   " + KEY.encode() + b" ")],
    [(b"authorization", b"Bearer other-key")],
    [(b"x-api-key", KEY.encode())],
    [(b"authorization", BEARER), (b"x-api-key", KEY.encode())],
]  # fmt: skip


def closed_app() -> FastAPI:
    return app_of(ScriptedModel(), api_key=(KEY, "other-key"))


def paths_of(routes: Iterable[Any]) -> Iterator[str]:
    """Paths of an app's routes, and of its routers'; a kind we cannot look into is an error."""
    for route in routes:
        if hasattr(route, "path"):
            yield re.sub(r"\{[^}]*\}", "x", route.path)
            yield from paths_of(getattr(route, "routes", None) or ())
        else:
            yield from paths_of(route.original_router.routes)


PATHS = sorted(set(paths_of(closed_app().routes)))


class Unread(asyncio.Queue[Message]):
    """The body of a request that must be refused before it is read."""

    async def get(self) -> Message:
        raise AssertionError("the body of a request that is refused was read")


async def statuses(
    app: FastAPI, asked: Iterable[tuple[str, str, Headers]], *, may_read: bool = False
) -> list[int]:
    """What comes back for each (path, method, headers); a 401 is looked at closely."""
    answers: list[int] = []
    for path, method, headers in asked:
        connection = Connection(app, path, b"{}", method)
        connection.scope["headers"] = [(b"host", b"localhost"), *headers]
        if not may_read and (path, method) not in OPEN:
            connection.incoming = Unread()
        await connection.run()
        start, *body = [connection.outgoing.get_nowait() for _ in range(connection.outgoing.qsize())][:-1]
        assert start is not None
        if start["status"] == 401:
            told = dict(start["headers"])
            assert told[b"www-authenticate"] == b"Bearer" and told[b"x-request-id"]
            text = b"".join(message["body"] for message in body if message is not None)
            assert b"invalid_api_key" in text and b"Right" not in text and len(text) < 200
        answers.append(start["status"])
    return answers


def test_the_routes_are_found() -> None:
    app = closed_app()
    documented = {re.sub(r"\{[^}]*\}", "x", path) for path in app.openapi()["paths"]}
    assert documented | {"/openapi.json"} <= set(PATHS)
    assert {CHAT, "/metrics", "/version", "/v1/models/x"} <= set(PATHS)
    assert HEALTH <= set(PATHS)


@pytest.mark.parametrize("method", METHODS)
def test_every_route_is_closed_to_whoever_brings_no_key(method: str) -> None:
    asked = [
        (path, method, headers) for path in [*PATHS, *FILES, *UNKNOWN_PATHS] for headers in ([], WRONG[1])
    ]
    answers = asyncio.run(statuses(closed_app(), asked))
    for (path, _, headers), status in zip(asked, answers, strict=True):
        assert (status == 401) is ((path, method) not in OPEN), (method, path, headers, status)


@pytest.mark.parametrize("path", [path for path in PATHS if path not in HEALTH])
def test_every_route_is_closed_to_every_wrong_key(path: str) -> None:
    for method in ("GET", "POST"):
        answers = asyncio.run(statuses(closed_app(), [(path, method, headers) for headers in WRONG]))
        assert answers == [401] * len(WRONG), [
            h for h, status in zip(WRONG, answers, strict=True) if status != 401
        ]


def test_every_route_is_open_to_every_right_key() -> None:
    """So it was the key, and neither the method nor the path, that was refused above."""
    asked = [(path, method, headers) for path in PATHS for method in ("GET", "POST") for headers in RIGHT]
    assert 401 not in asyncio.run(statuses(closed_app(), asked, may_read=True))


def test_without_keys_no_route_asks_for_one() -> None:
    asked: list[tuple[str, str, Headers]] = [(path, "POST", []) for path in PATHS]
    assert 401 not in asyncio.run(statuses(app_of(), asked, may_read=True))


def test_who_has_no_key_does_not_learn_what_the_server_is_doing() -> None:
    loading = create_app(load_settings(["--api-key", KEY]), None)
    asked: list[tuple[str, str, Headers]] = [(path, "POST", []) for path in PATHS]
    assert set(asyncio.run(statuses(loading, asked))) == {401}
    assert asyncio.run(statuses(loading, [(CHAT, "POST", RIGHT[0])])) == [503]


def test_a_websocket_is_closed() -> None:
    connection = Connection(closed_app(), "/v1/realtime")
    connection.scope["type"] = "websocket"
    asyncio.run(connection.run())
    answer = connection.outgoing.get_nowait()
    assert answer is not None and answer["type"] == "websocket.close"


TARGETS = [
    "/%68ealth",
    "/health%2f..",
    "/health%2f..%2fv1%2fmodels",
    "/health/..;/v1/models",
    "/health/%2e%2e/v1/models",
    "/health%00",
    "/health%0a",
    "/health%20",
    "/health%3f",
    "/health%23/../v1/models",
    "/health#/v1/models",
    "/health?/../v1/models",
    "//health",
    "/v1/models?/health",
    "/%2e/health",
    "/%252e%252e/health",
    "/v1/models/%2e%2e/%2e%2e/health",
    "http://h/health",
    "http://h/v1/models",
    "/v1/models/..%2f..%2fhealth",
    "/v1/mod%65ls",
    "/%ff%fe",
    "/health%c0%af..",
    "*",
    "health",
]
"""As a client writes them."""


def test_no_spelling_of_a_path_opens_another_route() -> None:
    """Over a socket: undone by the HTTP server, then looked at by the door, then by the router."""
    with live(closed_app()) as url:
        host, port = urlsplit(url).netloc.split(":")
        for target in TARGETS:
            for method in ("GET", "POST", "OPTIONS"):
                with socket.create_connection((host, int(port)), 30) as client:
                    head = f"{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close"
                    client.sendall(head.encode() + b"\r\n\r\n")
                    answer = b"".join(iter(lambda: client.recv(65536), b""))
                is_health = b'"engines"' in answer or b'"status"' in answer
                refused = answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))
                assert refused or (is_health and method == "GET"), (method, target, answer[:300])
                assert b"scripted" not in answer or is_health


def test_a_refusal_does_not_wait_for_the_body() -> None:
    with live(closed_app()) as url:
        host, port = urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port)), 30) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000000"
            client.sendall(head.encode() + b"\r\n\r\n")  # and not a byte of it
            assert client.recv(65536).startswith(b"HTTP/1.1 401 "), "and no 100 before it"
