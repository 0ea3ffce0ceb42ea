"""A server that says what it is told, so that protocol tests judge the client: real sockets, no model.

    >>> with FakeServer() as server:
    ...     server.say("Hel", "lo")
    ...     Client(server.url).chat([{"role": "user", "content": "hi"}])

With nothing told, it repeats the last user message, word by word. As a process of its own:
`python -m tests.clients.fake_server --port N`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Handler", dict[str, Any]], None]


def frame(data: object) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def reply_frames(texts: tuple[str, ...], finish: str = "stop", num_prompt: int = 3) -> list[bytes]:
    """Role, texts, finish, usage, [DONE]."""
    usage = {"prompt_tokens": num_prompt, "completion_tokens": len(texts)}
    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": text}) for text in texts)]
    return [
        *map(frame, [*chunks, chunk({}, finish), {"choices": [], "usage": usage}]),
        b"data: [DONE]\n\n",
    ]


class FakeServer(ThreadingHTTPServer):
    """Scripts are used up in order, one per chat request."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[dict[str, Any]] = []  # bodies of chat requests
        self.headers: list[dict[str, str]] = []
        self.hung_up = threading.Event()  # a held stream was left by its client
        self.health: dict[str, Any] = {"status": "ok"}
        self.unknown: set[str] = set()  # fields that are refused, as OpenAI's own API refuses ignore_eos
        self.has_usage = True
        self.models: object = {"object": "list", "data": [{"id": "fake", "object": "model"}]}
        self.tokens: object = None  # what /tokenize answers; None: there is none, as with OpenAI's own API
        self.num_open = self.most_open = 0  # chat requests at a time
        self._scripts: queue.SimpleQueue[Script] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def say(self, *texts: str, finish: str = "stop", headers: dict[str, str] | None = None) -> None:
        self.send(*reply_frames(texts, finish), headers=headers)

    def send(self, *parts: bytes, headers: dict[str, str] | None = None) -> None:
        """Stream these bytes and close."""
        self._scripts.put(lambda handler, _: handler.stream(list(parts), headers or {}))

    def send_raw(self, *parts: bytes) -> None:
        """Write these bytes, status line and all, and close."""
        self._scripts.put(lambda handler, _: handler.write(list(parts)))

    def fail(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self._scripts.put(lambda handler, _: handler.answer(status, body, headers))

    def hold(self, *texts: str) -> None:
        """Stream these texts and then nothing, until the client hangs up."""

        def script(handler: Handler, _: dict[str, Any]) -> None:
            handler.stream([frame(chunk({"content": text})) for text in texts], {})
            with suppress(ConnectionError):
                handler.connection.recv(1)
            self.hung_up.set()

        self._scripts.put(script)

    def say_in_two(self, first: str, second: str) -> threading.Event:
        """Stream the first text, and the rest once the event is set."""
        go_on = threading.Event()

        def script(handler: Handler, _: dict[str, Any]) -> None:
            handler.stream([frame(chunk({"content": first}))], {})
            go_on.wait(30)
            handler.write(reply_frames((second,))[1:])

        self._scripts.put(script)
        return go_on

    @contextmanager
    def counting(self) -> Iterator[None]:
        with self._lock:
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
        try:
            yield
        finally:
            with self._lock:
                self.num_open -= 1

    def next_script(self) -> Script:
        try:
            return self._scripts.get_nowait()
        except queue.Empty:
            return Handler.repeat

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is nobody's error here."""


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, self.server.health)
        elif self.path == "/v1/models" and self.server.models is not None:
            self.answer(200, self.server.models)
        else:
            self.answer_absent()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            tokens = self.server.tokens
            return self.answer_absent() if tokens is None else self.answer(200, tokens)
        self.server.requests.append(body)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if unknown := sorted(self.server.unknown & body.keys()):
            error = {"message": f"Unrecognized request argument supplied: {unknown[0]}", "param": None}
            return self.answer(400, {"error": error})
        with self.server.counting():
            self.server.next_script()(self, body)

    def repeat(self, body: dict[str, Any]) -> None:
        text = "You said: " + body["messages"][-1]["content"]
        if body.get("stream"):
            words = tuple(re.findall(r"\S+\s*", text))
            frames = reply_frames(words, num_prompt=len(words))
            return self.stream(frames if self.server.has_usage else [*frames[:-2], frames[-1]], {})
        message = {"role": "assistant", "content": text}
        self.answer(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def stream(self, parts: list[bytes], headers: dict[str, str]) -> None:
        self.send_response(200)  # HTTP/1.0: the body ends when the connection does
        for name, value in {"content-type": "text/event-stream", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.write(parts)

    def write(self, parts: list[bytes]) -> None:
        for part in parts:
            self.wfile.write(part)

    def answer_absent(self) -> None:
        self.answer(404, {"error": {"message": "no such path", "type": "x", "param": None, "code": "nope"}})

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    options, _ = parser.parse_known_args()
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    fake = FakeServer(options.port)
    fake.health = {"status": "ok", "pid": os.getpid()}
    print("fake server, key", os.environ.get("CAUSERIE_API_KEY"), file=sys.stderr, flush=True)
    fake.serve_forever()
