"""Sockets for a load test: a request's bytes out, the answer's bytes noted with the time of their coming.

    >>> pool = Pool("http://127.0.0.1:8000", api_key=None, timeout=60)
    >>> note = await pool.exchange(pool.request("/v1/chat/completions", body))
    >>> note.response.status, note.times, note.pieces

While a run goes on nothing is decoded: client and server often share the cores, and what the client computes
the server cannot. A connection is kept for the next request when the server keeps it. Refuses to know JSON,
proxies and redirects.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from clients.bench.framing import Response
from clients.wire import CONNECT_SECONDS, JSON, BadAnswer, ClientError, Unreachable

PORTS = {"http": 80, "https": 443}


@dataclass(eq=False, slots=True)
class Note:
    """What came of one request; times in seconds of time.perf_counter.

    Attributes:
        times: when bytes came.
        pieces: what of the body they were, in the same order.
        error: why there is no whole answer.
    """

    sent: float
    response: Response = field(default_factory=Response)
    times: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    error: ClientError | None = None


class Connection(asyncio.BufferedProtocol):
    """One socket with one request at a time.

    It reads into one buffer: asyncio's plain Protocol takes 256 KB from the allocator for every frame, which
    costs more than all the rest.
    """

    _buffer = memoryview(bytearray(1 << 16))  # of all connections: what is in it is taken out at once

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._note: Note | None = None
        self._done: asyncio.Future[None] | None = None
        self.is_open = False
        self.is_fresh = True  # has carried no request yet

    async def exchange(self, request: bytes, note: Note) -> None:
        """Send, and return when the answer is whole or will never be."""
        assert self._transport is not None and self._note is None, "one request at a time"
        self._note = note
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._note = None
            self.is_fresh = False

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        now, note = time.perf_counter(), self._note
        if note is None:
            return self.close()  # nothing was asked
        try:
            note.pieces.append(note.response.feed(bytes(self._buffer[:nbytes])))
        except BadAnswer as error:
            return self._end(error)
        note.times.append(now)
        if note.response.is_over:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._note is None:
            return
        try:
            self._note.response.close()
        except Unreachable as cut:
            return self._end(Unreachable(f"{cut}: {error}") if error is not None else cut)
        self._end(None)

    def _end(self, error: ClientError | None) -> None:
        assert self._note is not None and self._done is not None
        if not self._done.done():
            self._note.error = error
            self._done.set_result(None)


class Pool:
    """Connections to one server, as many as requests are open at a time.

    Args:
        url: the server's root.
        api_key: sent as a bearer token when given.
        timeout: seconds that a request may take in all.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        self.url = url
        self._address = _split(url)
        self._api_key = api_key
        self._timeout = timeout
        self._idle: list[Connection] = []

    def request(self, path: str, body: JSON) -> bytes:
        """A POST of `body`, ready to be written."""
        data = json.dumps(body).encode()
        lines = [
            f"POST {self._address.path.rstrip('/')}{path} HTTP/1.1".encode(),
            b"host: " + self._address.netloc.rpartition("@")[2].encode(),
            b"accept-encoding: identity",
            b"content-type: application/json",
            f"content-length: {len(data)}".encode(),
        ]
        if self._api_key is not None:
            lines.append(b"authorization: Bearer " + self._api_key.encode())
        return b"\r\n".join([*lines, b"", data])

    async def exchange(self, request: bytes, due: float | None = None) -> Note:
        """Send `request`; what came of it, whatever that is. Times count from `due`, if not from now."""
        sent = time.perf_counter() if due is None else due
        note, is_stale = await self._try(request, sent)
        if is_stale:
            await self.close()
            note, _ = await self._try(request, sent)
        return note

    async def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().close()

    async def _try(self, request: bytes, sent: float) -> tuple[Note, bool]:
        """What came, and whether nothing did because the server had closed a kept connection meanwhile."""
        note = Note(sent)
        try:
            connection = self._take() or await self._connect()
        except ClientError as error:
            note.error = error
            return note, False
        is_kept = not connection.is_fresh
        try:
            async with asyncio.timeout(self._timeout):
                await connection.exchange(request, note)
        except TimeoutError:
            note.error = Unreachable(f"{self.url}: no whole answer after {self._timeout:g} s")
        finally:
            is_stale = is_kept and not connection.is_open and not note.times
            if connection.is_open and note.error is None and note.response.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()
        return note, is_stale

    def _take(self) -> Connection | None:
        """A kept connection that the server has not closed."""
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop, address = asyncio.get_running_loop(), self._address
        host, port = address.hostname or "", address.port or PORTS[address.scheme]
        encrypted = True if address.scheme == "https" else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(Connection, host, port, ssl=encrypted)
        except (OSError, TimeoutError):
            raise Unreachable(f"no server answers at {self.url}") from None
        return connection


def _split(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        is_usable = address.scheme in PORTS and address.hostname and (address.port or 1)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise Unreachable(f"{url!r} is not a URL of the form http://host:port")
    return address
