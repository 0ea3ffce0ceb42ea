"""Chromium's DevTools protocol over two pipes: calls and their answers, events to whoever listens.

Messages are JSON, each ended by a NUL (`--remote-debugging-pipe`): no port that others could reach, no
websocket, no package. Refuses to know what any message means.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

CALL_SECONDS = 60.0
"""Far more than a call needs: what hangs must end as a failure."""

Listener = Callable[[str, dict[str, Any]], None]


class DevToolsError(Exception):
    """The browser refused a call, or is gone."""


class DevTools:
    """One browser's protocol. Sessions are tabs; None is the browser itself.

    Args:
        reading: a file descriptor that the browser writes to; closed with this.
        writing: one that it reads from.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._listeners: dict[str | None, list[Listener]] = {}
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The answer to a call.

        Raises:
            DevToolsError: it was refused, or the browser is gone.
            TimeoutError: no answer in CALL_SECONDS.
        """
        return self.start(method, session, **params).result(CALL_SECONDS)

    def start(self, method: str, session: str | None = None, **params: Any) -> Future[dict[str, Any]]:
        """A call whose answer may be waited for later; all that a listener may do."""
        answer: Future[dict[str, Any]] = Future()
        message: dict[str, Any] = {"id": next(self._ids), "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        with self._lock:
            if self._is_over:
                raise DevToolsError(f"{method}: the browser is gone")
            data = memoryview(json.dumps(message).encode() + b"\0")
            try:
                while data:
                    data = data[os.write(self._writing, data) :]
            except BrokenPipeError:
                raise DevToolsError(f"{method}: the browser is gone") from None
            self._waiting[message["id"]] = answer
        return answer

    @contextmanager
    def listening(self, session: str | None, listener: Listener) -> Iterator[None]:
        """Meanwhile tell a listener every event of a session, in the reading thread."""
        listeners = self._listeners.setdefault(session, [])
        listeners.append(listener)
        try:
            yield
        finally:
            listeners.remove(listener)

    def close(self) -> None:
        """Once the browser has ended: its end of the pipes is closed, so the reader comes to its end."""
        self._reader.join(CALL_SECONDS)
        os.close(self._reading)
        os.close(self._writing)

    def _read(self) -> None:
        for data in self._messages():
            message = json.loads(data)
            if "id" in message:
                self._answer(message)
            else:
                for listener in tuple(self._listeners.get(message.get("sessionId"), ())):
                    listener(message["method"], message["params"])
        with self._lock:
            self._is_over = True
            for answer in self._waiting.values():
                answer.set_exception(DevToolsError("the browser is gone"))

    def _messages(self) -> Iterator[bytes]:
        rest = b""
        while data := os.read(self._reading, 1 << 20):
            *whole, rest = (rest + data).split(b"\0")
            yield from whole

    def _answer(self, message: dict[str, Any]) -> None:
        with self._lock:
            answer = self._waiting.pop(message["id"])
        if "error" in message:
            answer.set_exception(DevToolsError(message["error"]["message"]))
        else:
            answer.set_result(message["result"])
