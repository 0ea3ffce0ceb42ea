"""HTTP by hand: requests as bytes, many sockets at once, and clients that leave without a word.

Blocking or selected sockets and nothing else: the client costs little beside the server it judges, and can be
cut off at any byte. Every request says `connection: close`; an answer ends with its
connection. Refuses to know what the server counts and what its process holds.

    >>> replies = burst(server.url, [post("/v1/chat/completions", {"messages": [...]})] * 800)
    >>> Counter(reply.status for reply in replies)
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SECONDS = 300.0
"""How long an answer may take before a test gives up."""
READ_BYTES = 1 << 16
SENDS_PER_LOOK = 16
"""While a burst is being sent, the answers that are there already are noticed this often."""


@dataclass(frozen=True)
class Reply:
    """A whole answer. `seconds` from the request's last byte sent to the answer's first byte read, and
    `in_all` to its end. A connection that ended before any byte has status 0.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    in_all: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON of a stream's data frames; the last one must have been [DONE]."""
        frames = [f for f in self.body.decode().split("\n\n") if f.startswith("data: ")]
        data = [frame.removeprefix("data: ") for frame in frames]
        assert data and data[-1] == "[DONE]", self.body[-200:]
        return [json.loads(item) for item in data[:-1]]

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object of the answer or of its stream, if there is one."""
        objects = self.chunks if self.is_stream else [self.json]
        return next((o["error"] for o in objects if o.get("error")), None)

    @property
    def usage(self) -> dict[str, Any]:
        """What the server says the request cost; a stream must have been asked for it."""
        used = [o["usage"] for o in (self.chunks if self.is_stream else [self.json]) if o.get("usage")]
        assert used, self.body[-200:]
        return dict(used[-1])


def post(path: str, body: dict[str, Any] | bytes, **headers: str) -> bytes:
    """A request with a body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _head("POST", path, {"content-type": "application/json"} | headers, len(data)) + data


def get(path: str, **headers: str) -> bytes:
    """A request without one."""
    return _head("GET", path, headers, None)


def _head(method: str, path: str, headers: dict[str, str], length: int | None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"content-length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def connect(url: str) -> socket.socket:
    """A connection to the server, with TCP_NODELAY."""
    parts = urlsplit(url)
    client = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=SECONDS)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def reset(client: socket.socket) -> None:
    """Cut a connection as a killed machine does: no end of stream, an RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def ask(url: str, request: bytes) -> Reply:
    """One request on a connection of its own."""
    with connect(url) as client:
        client.sendall(request)
        sent = time.perf_counter()
        return _read(client, sent)


def _read(client: socket.socket, sent: float) -> Reply:
    """Everything until the connection ends. One that is reset has ended too."""
    data, first = bytearray(), None
    try:
        while piece := client.recv(READ_BYTES):
            first = first or time.perf_counter()
            data += piece
    except ConnectionResetError:
        pass
    end = time.perf_counter()
    return parse(bytes(data), (first or end) - sent, end - sent)


class Pending:
    """A request under way, read by a thread of its own.

    `begun` is set with the third frame of a stream: a role, and two pieces of text.
    """

    def __init__(self, url: str, request: bytes) -> None:
        self.begun = threading.Event()
        self._client = connect(url)
        self._client.sendall(request)
        self._sent = self._first = self._end = time.perf_counter()
        self._data = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def reply(self, seconds: float = SECONDS) -> Reply:
        """The whole answer, waited for that long."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"no end within {seconds:g} s: ...{bytes(self._data[-300:])!r}"
        return parse(bytes(self._data), self._first - self._sent, self._end - self._sent)

    def _read(self) -> None:
        with self._client:
            try:
                while piece := self._client.recv(READ_BYTES):
                    self._first = self._first if self._data else time.perf_counter()
                    self._data += piece
                    if self._data.count(b"data: ") >= 3:
                        self.begun.set()
            except OSError:
                pass
            self._end = time.perf_counter()


def burst(url: str, requests: Sequence[bytes], *, pause: float = 0.0) -> list[Reply]:
    """Send requests at once, each on a connection that is open before the first is sent.

    Args:
        pause: seconds between two sends; the answers are read meanwhile.
    """
    clients = [connect(url) for _ in requests]
    assert ask(url, get("/version")).status == 200  # accepted in order: the server has taken the others too
    talks = [_Talk(client) for client in clients]
    try:
        with selectors.DefaultSelector() as selector:
            for i, (talk, request) in enumerate(zip(talks, requests, strict=True)):
                talk.client.sendall(request)
                talk.sent = time.perf_counter()
                talk.client.setblocking(False)
                selector.register(talk.client, selectors.EVENT_READ, talk)
                if pause or i % SENDS_PER_LOOK == 0:
                    _look_for(selector, pause)
            while selector.get_map():
                assert _look(selector, SECONDS), f"nothing came for {SECONDS} s"
    finally:
        for client in clients:
            client.close()
    return [parse(bytes(talk.data), talk.first - talk.sent, talk.end - talk.sent) for talk in talks]


class _Talk:
    """One connection of a burst: when its request had left, when its answer began and ended."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.data = bytearray()
        self.sent = self.first = self.end = 0.0

    def read(self) -> bool:
        """Take what is there; False at the end."""
        try:
            piece = self.client.recv(READ_BYTES)
        except ConnectionResetError:
            piece = b""
        self.end = time.perf_counter()
        self.first = self.first or self.end
        self.data += piece
        return bool(piece)


def _look(selector: selectors.BaseSelector, seconds: float) -> bool:
    """Wait that long for something and read what has come; whether something came."""
    ready = selector.select(seconds)
    for key, _ in ready:
        if not key.data.read():
            selector.unregister(key.fileobj)
    return bool(ready)


def _look_for(selector: selectors.BaseSelector, seconds: float) -> None:
    """Read what comes for that long, and what is there already in any case."""
    deadline = time.perf_counter() + seconds
    _look(selector, 0)
    while (left := deadline - time.perf_counter()) > 0:
        _look(selector, left)


def parse(data: bytes, seconds: float, in_all: float) -> Reply:
    """Bytes of a whole answer, chunked or not."""
    if not data:
        return Reply(0, {}, b"", seconds, in_all)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return Reply(int(first.split()[1]), headers, body, seconds, in_all)


def _unchunked(data: bytes) -> bytes:
    """The body that the chunks carry; a last one that was cut is left out."""
    body, at = bytearray(), 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end], 16)
        if not size or len(data) < end + 2 + size:
            break
        body += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return bytes(body)


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
    """Ask again and again until it is so; the seconds that took.

    Raises:
        AssertionError: it was not so in time.
    """
    start = time.perf_counter()
    while not true():
        assert time.perf_counter() - start < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)
    return time.perf_counter() - start
