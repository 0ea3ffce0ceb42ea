"""The load test's sockets read what the general client reads, and keep connections that can be kept."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from clients.bench.answer import chunks, read
from clients.bench.pool import Note, Pool
from clients.client import AsyncClient
from clients.wire import ClientError, Unreachable
from tests.clients.fake_server import FakeServer, chunk, frame, reply_frames

HELLO = [{"role": "user", "content": "hello"}]
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ERROR = {"error": {"message": "the step failed", "code": "internal_error", "param": None}}


def chunked(*frames: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in frames)


HEL, LO = frame(chunk({"content": "Hel"})), frame(chunk({"content": "lo €"}))
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"
STREAMS = {
    "whole": [CHUNKED, chunked(*reply_frames(("Hel", "lo €"))), LAST],
    "comments": [CHUNKED, chunked(b": ping\n\n", HEL, b": ping\n\n", LO, DONE), LAST],
    "line ends": [CHUNKED, chunked(HEL.replace(b"\n", b"\r\n"), DONE.replace(b"\n", b"\r\n")), LAST],
    "frames cut by chunks": [CHUNKED, *(chunked(bytes([byte])) for byte in HEL + LO + DONE), LAST],
    "bytes one by one": [bytes([byte]) for byte in CHUNKED + chunked(HEL, LO, DONE) + LAST],
    "no chunks": [b"HTTP/1.0 200 OK\r\n\r\n", HEL, LO, DONE],
    "length": [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(HEL + DONE), HEL, DONE],
    "error frame": [CHUNKED, chunked(HEL, frame(ERROR), DONE), LAST],
    "no JSON": [CHUNKED, chunked(HEL, b"data: {\n\n"), LAST],
    "no [DONE]": [CHUNKED, chunked(HEL, LO), LAST],
    "closed in a chunk": [CHUNKED, chunked(HEL)[:-5]],
    "closed after [DONE]": [CHUNKED, chunked(HEL, DONE)],
    "nothing": [],
    "refused": [b"HTTP/1.1 400 Bad Request\r\ncontent-length: 52\r\n\r\n", json.dumps(ERROR)[:52].encode()],
    "refused in chunks": [CHUNKED.replace(b"200 OK", b"503 x"), chunked(json.dumps(ERROR).encode()), LAST],
}
Outcome = tuple[list[dict[str, Any]], type[ClientError] | None]


async def by_client(url: str) -> Outcome:
    found: list[dict[str, Any]] = []
    async with AsyncClient(url) as client:
        try:
            async for part in client.stream(HELLO):
                found.append(part)
        except ClientError as error:
            return found, type(error)
    return found, None


async def ask(url: str, count: int = 1, timeout: float = 10, pool: Pool | None = None) -> list[Note]:
    pool = pool or Pool(url, None, timeout)
    request = pool.request("/v1/chat/completions", {"messages": HELLO, "stream": True})
    notes = [await pool.exchange(request) for _ in range(count)]
    await pool.close()
    return notes


async def by_pool(url: str) -> Outcome:
    found: list[dict[str, Any]] = []
    (note,) = await ask(url)
    try:
        for _, part in chunks(note):
            found.append(part)
    except ClientError as error:
        return found, type(error)
    return found, None


@pytest.mark.parametrize("name", STREAMS)
def test_both_clients_read_the_same(name: str, fake: FakeServer) -> None:
    for _ in range(2):
        fake.send_raw(*STREAMS[name])
    expected = asyncio.run(by_client(fake.url))
    assert asyncio.run(by_pool(fake.url)) == expected
    assert (expected[1] is None) == (name in list(STREAMS)[:7] or name == "closed after [DONE]")


def test_the_request_is_the_general_clients(fake: FakeServer) -> None:
    async def both() -> None:
        pool = Pool(fake.url, "k", 10)
        body = {"messages": HELLO, "temperature": 0, "stream": True}
        await pool.exchange(pool.request("/v1/chat/completions", body))
        async with AsyncClient(fake.url, "k") as client:
            [_ async for _ in client.stream(HELLO, temperature=0)]

    asyncio.run(both())
    assert fake.requests[0] == fake.requests[1]
    for name in ("authorization", "accept-encoding", "content-type", "host"):
        assert fake.headers[0][name] == fake.headers[1][name], name


def test_every_piece_has_its_time(fake: FakeServer) -> None:
    fake.send_raw(CHUNKED, chunked(HEL), chunked(LO), chunked(DONE), LAST)
    (note,) = asyncio.run(ask(fake.url))
    assert len(note.times) == len(note.pieces) and sorted(note.times) == note.times
    assert note.times[0] > note.sent
    assert b"".join(note.pieces) == HEL + LO + DONE
    assert read(note).texts == sorted(read(note).texts) and len(read(note).texts) == 2


@contextmanager
def connections(*answers: bytes) -> Iterator[tuple[str, list[int]]]:
    """A server that gives each of its connections these answers, one a request, and closes it."""
    requests: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            requests.append(0)
            with connection:
                for data in answers:
                    if not connection.recv(1 << 16):
                        break
                    requests[-1] += 1
                    connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


WHOLE = CHUNKED + chunked(HEL, DONE) + LAST


def test_a_connection_is_kept_and_one_closed_meanwhile_is_replaced() -> None:
    """Three requests fit on one connection; the fourth finds it closed, and goes again on another."""
    with connections(WHOLE, WHOLE, WHOLE) as (url, requests):
        notes = asyncio.run(ask(url, count=5))
    assert [note.error for note in notes] == [None] * 5
    assert requests == [3, 2]


def test_one_that_closes_every_connection_is_asked_anew_each_time() -> None:
    with connections(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n") as (url, requests):
        notes = asyncio.run(ask(url, count=2))
    assert [note.error for note in notes] == [None, None] and requests == [1, 1]


def test_one_that_closes_fresh_connections_is_not_asked_for_ever() -> None:
    with connections(b"") as (url, requests):
        (note,) = asyncio.run(ask(url))
    assert isinstance(note.error, Unreachable) and requests == [1]


def test_nobody_there_is_an_error_of_the_request() -> None:
    with socket.socket() as taken:  # bound and not listening: refused for sure
        taken.bind(("127.0.0.1", 0))
        (note,) = asyncio.run(ask(f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert "no server answers" in str(note.error)


def test_an_answer_that_does_not_end_is_given_up(fake: FakeServer) -> None:
    fake.hold("one ")
    (note,) = asyncio.run(ask(fake.url, timeout=0.05))
    assert "no whole answer after 0.05 s" in str(note.error)
    assert fake.hung_up.wait(10)


@pytest.mark.parametrize("url", ["127.0.0.1", "ftp://x", "http://", "http://h:x", "http://h:99999"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(Unreachable, match="is not a URL"):
        Pool(url, None, 1)
