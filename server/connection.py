"""One client's connection: uvicorn's h11 protocol with an end to everything a client can leave undone.

    >>> uvicorn.Config(app, http=connection_class(settings))

A connection is always in one phase, and each has its time, except a reply under way:

    HEAD ──► BODY ──► REPLY ──► IDLE ──► HEAD      LINGER: told goodbye, what it still sends is dropped
     408      408                close             until it closes too

- HEAD: `header_timeout` from the accept, or from the first byte of a later request; 16 KB and 100 fields.
- BODY: `body_timeout` from the end of the head, for all of it, however it trickles; not in thousands of
  crumbs, each of which costs as much to read as a page. A body that comes after its answer (401, 413, 429) is
  read and dropped, up to eight times what a body may have: closing on it would make the kernel send a reset,
  which destroys the answer on its way.
- Taking the answer: what the kernel's buffer has no room for waits here, one message of it. A client must
  take that, or 16 KB of a long answer, every `send_timeout`; so a frozen reader and one of a byte per second
  are cut alike. The kernel watches for clients that vanished without a word.
- A client that closes its sending half has gone: a reply under way is aborted.
- More than `max_connections`: the one that has used the largest part of its time goes, so a crowd of
  half-open connections pushes out itself and not a client that sends its request at once. When all have
  replies under way, the new one is answered 503.

What is wrong is said in OpenAI's error shape. Refuses to know what a request asks for.

It leans on uvicorn's protocol: its methods overridden here, `conn`, `cycle`, `flow`, `scope`, `transport` and
`connections`, and that whatever it closes it closes through `transport`. Its tests fail when that changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import resource
import socket
import struct
import sys
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import RETRY_SECONDS, ApiError
from server.parser import Parser
from server.settings import Settings

log = logging.getLogger("causerie.server")

MAX_PIPELINED_BYTES = 64 << 10
"""What may wait behind a reply while we go on listening for the client's goodbye."""
SEND_BUFFER_BYTES = 64 << 10
"""The kernel doubles it, for its own bookkeeping, and would let it grow to megabytes if not told."""
NO_LINGER = struct.pack("ii", 1, 0)
"""Closed like this the kernel forgets what it holds for a client, instead of offering it for minutes."""
MIN_TAKEN_BYTES = 16 << 10
DROPPED_BODIES = 8
BUSY_SECONDS = 5
ENDLESS = "its request did not end after the answer"
OTHER_FILES = 256
"""Descriptors for all but connections, with room to spare."""


class Phase(enum.Enum):
    """What a connection waits for."""

    HEAD = enum.auto()
    BODY = enum.auto()
    REPLY = enum.auto()
    IDLE = enum.auto()
    LINGER = enum.auto()


def connection_class(settings: Settings) -> type[H11Protocol]:
    """The protocol with an operator's limits, for `uvicorn.Config(http=...)`."""

    class Limited(Connection):
        limits = settings

    return Limited


def make_room(max_connections: int) -> None:
    """Let this process have that many connections: shells and services often allow 1,024 open files."""
    wanted = max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(ValueError, OSError):  # a system has limits that it does not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft < wanted:
        log.warning("--max-connections %d, but only %d files may be open", max_connections, soft)


class Connection(H11Protocol):
    """See the module. `limits` is bound by `connection_class`."""

    limits: ClassVar[Settings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: Parser = Parser()
        self.phase = Phase.HEAD
        self._since = 0.0
        self._clock: asyncio.TimerHandle | None = None
        self._reader_clock: asyncio.TimerHandle | None = None
        self._num_dropped = 0

    # what the socket tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause_writing as soon as the kernel takes no more
        _tune(transport.get_extra_info("socket"), self.limits.send_timeout)
        self._socket = transport
        self.transport = _Door(transport, self)
        self._enter(Phase.HEAD)
        if len(self.connections) > self.limits.max_connections and not self._push_out():
            retry = {"retry-after": str(BUSY_SECONDS)}
            message = f"all {self.limits.max_connections} connections of this server are in use"
            self._refuse(ApiError(503, message, code="too_many_connections", headers=retry))

    def data_received(self, data: bytes) -> None:
        answered = self.phase is Phase.BODY and self.cycle.response_complete
        if answered or self.phase is Phase.LINGER:
            self._num_dropped += len(data)
            if self._num_dropped > DROPPED_BODIES * self.limits.max_body_bytes:
                self._cut(ENDLESS)
                return
        if self.phase is not Phase.LINGER:
            super().data_received(data)

    def eof_received(self) -> None:
        if self.phase in (Phase.BODY, Phase.REPLY) and not self.cycle.response_complete:
            self._socket.abort()  # otherwise what was sent must be flushed before the app learns of it

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._clock, self._reader_clock):
            if clock is not None:
                clock.cancel()
        super().connection_lost(exc)

    # what uvicorn does with it

    def handle_events(self) -> None:
        super().handle_events()
        if self.transport.is_closing():
            return
        theirs = self.conn.their_state
        if theirs is h11.IDLE:
            self._enter(Phase.HEAD if self.cycle is None or self.conn.trailing_data[0] else Phase.IDLE)
        elif theirs is h11.SEND_BODY:
            self._enter(Phase.BODY)
        else:
            self._enter(Phase.REPLY)
            if self.flow.read_paused and len(self.conn.trailing_data[0]) < MAX_PIPELINED_BYTES:
                self.flow.resume_reading()  # uvicorn pauses on the first pipelined byte, and misses a goodbye

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing is wrong: curl's and Java's clients offer h2c, and are answered in HTTP/1.1."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(self.conn.complaint())

    def shutdown(self) -> None:
        if self.phase is Phase.BODY and not self.cycle.response_started:
            retry = {"retry-after": str(RETRY_SECONDS)}
            message = "the server is stopping, and the request's body had not come"
            self._refuse(ApiError(503, message, code="server_draining", headers=retry))
            self._socket.close()  # with the answer, which `abort` would drop
            return
        if self.phase is not Phase.LINGER:
            super().shutdown()
        if self.phase is Phase.LINGER:
            self._socket.abort()

    def close(self) -> None:
        """uvicorn wants to close: now, or once the client has stopped sending."""
        if self.conn.their_state is h11.SEND_BODY:
            self._linger()
        elif self.phase is not Phase.LINGER:
            self._socket.close()

    # time

    def _enter(self, phase: Phase) -> None:
        """Start a phase's clock; staying in one does not start it again."""
        if phase is self.phase and self._clock is not None:
            return
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        self.phase, self._since, self._num_dropped = phase, self.loop.time(), 0
        if phase is not Phase.REPLY:
            self._clock = self.loop.call_later(self._allowance, self._time_out)

    @property
    def _allowance(self) -> float:
        if self.phase is Phase.HEAD:
            return self.limits.header_timeout
        return self.timeout_keep_alive if self.phase is Phase.IDLE else self.limits.body_timeout

    def _time_out(self) -> None:
        if self.phase is Phase.IDLE:
            self.timeout_keep_alive_handler()
        elif self.phase is Phase.HEAD:
            self._refuse(_too_slow("headers", self.limits.header_timeout))
        elif self.phase is Phase.BODY and not self.cycle.response_complete:
            self._refuse(_too_slow("body", self.limits.body_timeout))
        else:
            self._cut(ENDLESS)

    # the reader

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_clock is not None:
            self._reader_clock.cancel()

    def _watch_reader(self) -> None:
        left = self._socket.get_write_buffer_size()
        self._reader_clock = self.loop.call_later(self.limits.send_timeout, self._judge_reader, left)

    def _judge_reader(self, before: int) -> None:
        if before - self._socket.get_write_buffer_size() >= MIN_TAKEN_BYTES:
            self._watch_reader()
        else:
            self._socket.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self._cut(f"it stopped reading for {self.limits.send_timeout:g} s")

    # goodbyes

    def _push_out(self) -> bool:
        """Cut the connection that has used the largest part of its time; False when every one has a reply."""
        now = self.loop.time()
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        waiting = [one for one in others if one.phase is not Phase.REPLY]
        if waiting:
            max(waiting, key=lambda one: (now - one._since) / one._allowance)._cut(
                "others wait for its place"
            )
        return bool(waiting)

    def _cut(self, why: str) -> None:
        log.info("%s was cut: %s", self._who, why)
        self.connections.discard(self)
        self._socket.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the app unless it has begun to, and say goodbye."""
        log.info("%s was refused: %d %s", self._who, error.status, error.code)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._socket.write(self.conn.answer(error, self.server_state.default_headers))
        if self.cycle is not None:  # the app waits for a body that will not come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()

    def _linger(self) -> None:
        """Say that nothing more comes, and drop what comes until the client has closed too."""
        if self._socket.is_closing() or self.phase is Phase.LINGER:
            return
        self._enter(Phase.LINGER)
        try:
            self._socket.write_eof()
        except OSError:  # the client was faster, and its reset has not been read yet
            self._socket.abort()
        self.flow.resume_reading()

    @property
    def _who(self) -> str:
        return "{} port {}".format(*self.client) if self.client else "a client"


class _Door(asyncio.Transport):
    """The transport uvicorn sees: closing it is the connection's to do."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__()
        self._transport = transport
        self._connection = connection

    def write(self, data: Any) -> None:
        if self._connection.phase is not Phase.LINGER and not self._transport.is_closing():
            self._transport.write(data)  # an app may have much to say before it learns that nobody listens

    def close(self) -> None:
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection.phase is Phase.LINGER or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


def _too_slow(what: str, seconds: float) -> ApiError:
    return ApiError(408, f"the request's {what} did not arrive within {seconds:g} s", code="request_timeout")


def _tune(sock: socket.socket, stall: float) -> None:
    """Bound what the kernel holds for a client, and have it notice one that vanished without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        seconds = 2 * math.ceil(stall)  # a reader that stalls is cut by us, who know what it is
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 3))
