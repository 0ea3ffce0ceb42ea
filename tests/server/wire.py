"""Doors to the app: whole responses through raw ASGI, a connection closed midway, a live server.

The usual test clients buffer whole bodies and never disconnect; these do neither.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message

from server.app import create_app
from server.connection import connection_class
from server.settings import Settings
from tests.fakes import ScriptedModel

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def app_of(*models: Any, **settings: Any) -> FastAPI:
    """An app that answers with these models, or with one ScriptedModel."""
    return create_app(Settings(**settings), models or [ScriptedModel()])


def num_taken(app: FastAPI) -> int:
    """Places that requests have taken, of all models."""
    return sum(places.num_taken for places in app.state.limits._places.values())


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, its shape checked."""
        assert set(self.json) == {"error"}, self.json
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert all(isinstance(error[key], str) and error[key] for key in ("message", "type", "code"))
        assert error["param"] is None or isinstance(error["param"], str)
        assert "\n" not in error["message"]
        return dict(error)

    @property
    def frames(self) -> list[str]:
        """The stream's frames without their separators."""
        text = self.body.decode()
        assert text.endswith("\n\n") and "\r" not in text
        return text[:-2].split("\n\n")

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """JSON of every data frame; the stream must end with [DONE]."""
        data = [frame.removeprefix("data: ") for frame in self.frames if not frame.startswith(":")]
        assert data[-1] == "[DONE]" and "[DONE]" not in data[:-1]
        return [json.loads(item) for item in data[:-1]]


class Connection:
    """One request on a raw ASGI app: messages in and out by hand."""

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        body: bytes = b"",
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        self.app = app
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Message | None] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})

    def close(self) -> None:
        """The client goes away."""
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def run(self) -> None:
        """The app's whole answer."""
        try:
            await self.app(self.scope, self.incoming.get, self._send)
        finally:
            self.outgoing.put_nowait(None)

    async def _send(self, message: Message) -> None:
        self.outgoing.put_nowait(message)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Connection]:
        """The app at work in the background; waits for it to end."""
        task = asyncio.create_task(self.run())
        try:
            yield self
        finally:
            await asyncio.wait_for(task, 30)

    async def next(self) -> Message | None:
        """The next message the app sends; None when it has returned."""
        return await asyncio.wait_for(self.outgoing.get(), 30)


async def ask(
    app: ASGIApp,
    path: str,
    body: Any = None,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """A whole response. A dict is sent as JSON, bytes as they are."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    connection = Connection(app, path, raw, method or ("GET" if body is None else "POST"), headers)
    await asyncio.wait_for(connection.run(), 60)
    start = connection.outgoing.get_nowait()
    assert start is not None
    parts: list[bytes] = []
    while (message := connection.outgoing.get_nowait()) is not None:
        parts.append(message.get("body", b""))
    sent = {k.decode(): v.decode("latin-1") for k, v in start["headers"]}
    return Answer(start["status"], sent, b"".join(parts))


def call(app: ASGIApp, path: str, body: Any = None, method: str | None = None, **headers: str) -> Answer:
    """`ask`, in an event loop of its own."""
    return asyncio.run(ask(app, path, body, method, {k.replace("_", "-"): v for k, v in headers.items()}))


@contextmanager
def live(app: FastAPI, **config: Any) -> Iterator[str]:
    """A real server on a free port, in a thread, with these options of uvicorn's; yields its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # clients that come before the server is up wait in line
    options = {"ws": "none", "log_level": "error", "timeout_graceful_shutdown": 5, **config}
    server = uvicorn.Server(uvicorn.Config(app, http=connection_class(app.state.settings), **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
