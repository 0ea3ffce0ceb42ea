"""Clients that keep a connection without using it: too slow, too much, gone, or not speaking HTTP at all.

Real sockets against a real server. What takes a time limit to happen waits for it, and nothing else is timed.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http import h11_impl
from uvicorn.server import ServerState

from server.connection import Connection, _Door, connection_class, make_room
from server.parser import MAX_HEAD_FIELDS
from server.settings import Settings
from tests.fakes import Gate, ScriptedModel
from tests.server.wire import CHAT, HELLO, Answer, app_of, live

LONG_TOKEN = "x" * 50_000
"""A few of these fill what the kernel holds for a client that does not read."""


class Talk:
    """One client's socket: bytes out by hand, whole answers in."""

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.socket.connect((urlsplit(url).hostname, urlsplit(url).port))
        self.reader = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        """The next answer with a content-length."""
        status = int(self.reader.readline().split()[1])
        lines = iter(lambda: self.reader.readline().strip().decode(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(status, headers, self.reader.read(int(headers["content-length"])))

    def until(self, text: bytes) -> None:
        """Read up to the line that holds it."""
        while text not in (line := self.reader.readline()):
            assert line, "the stream ended first"

    def is_over(self) -> bool:
        """Read on; True once the server has closed, whether kindly or with a reset."""
        try:
            while self.reader.read(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True

    def at_end(self) -> bool:
        """Whether nothing came before a kind end; a reset raises."""
        return self.reader.read() == b""

    def reset(self) -> None:
        """Die."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.reader.close()
        self.socket.close()


@contextmanager
def talk(url: str, receive_buffer: int | None = None) -> Iterator[Talk]:
    one = Talk(url, receive_buffer)
    try:
        yield one
    finally:
        one.close()


def post(body: Any, path: str = CHAT, *headers: str, length: int | None = None) -> bytes:
    """A request; with a length that is not its body's, the body is not whole."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {length or len(data)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


def get(path: str, *headers: str) -> bytes:
    return ("\r\n".join([f"GET {path} HTTP/1.1", "host: x", *headers]) + "\r\n\r\n").encode()


def until(true: Callable[[], bool]) -> None:
    """Wait for another thread."""
    pause = threading.Event()
    for _ in range(6000):
        if true():
            return
        pause.wait(0.01)
    raise AssertionError("never so")


def refused(one: Talk, status: int, code: str) -> None:
    """The answer is this error, in OpenAI's shape, and the last one."""
    answer = one.answer()
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["connection"] == "close" and answer.headers["x-request-id"].startswith("req_")
    assert one.at_end()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with usual limits."""
    with live(app_of()) as address:
        yield address


@pytest.fixture(scope="module")
def impatient_url() -> Iterator[str]:
    """A server that gives little time."""
    with live(app_of(header_timeout=0.2, body_timeout=0.2)) as address:
        yield address


# too slow


@pytest.mark.parametrize("sent", [b"", b"G", get("/health")[:-2]])
def test_headers_that_do_not_come_are_answered_408(impatient_url: str, sent: bytes) -> None:
    with talk(impatient_url) as one:
        one.send(sent)
        refused(one, 408, "request_timeout")


def test_headers_that_trickle_get_no_more_time(impatient_url: str) -> None:
    with talk(impatient_url) as one, talk(impatient_url) as other:
        one.send(b"GET /health HTTP/1.1\r\n")
        one.socket.settimeout(0.01)
        for i in count():  # a header every 10 ms, for ever
            try:
                one.send(b"a%d: b\r\n" % i)
                if one.socket.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                pass
        one.socket.settimeout(60)
        refused(one, 408, "request_timeout")
        refused(other, 408, "request_timeout")


def test_the_headers_of_a_later_request_have_their_time_from_their_first_byte(impatient_url: str) -> None:
    with talk(impatient_url) as one, talk(impatient_url) as other:
        one.send(get("/version"))
        assert one.answer().status == 200
        refused(other, 408, "request_timeout")  # so long was the first one idle
        one.send(get("/version") + b"GET /ver")
        assert one.answer().status == 200
        refused(one, 408, "request_timeout")


def test_a_body_that_trickles_is_answered_408_and_never_reaches_the_model() -> None:
    model = ScriptedModel()
    with live(app_of(model, body_timeout=0.2)) as url, talk(url) as one:
        one.send(post(b'{"a": "', length=1 << 20))
        one.socket.settimeout(0.01)
        while True:
            try:
                one.send(b"x")
                if one.socket.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                pass
        one.socket.settimeout(60)
        refused(one, 408, "request_timeout")
        with talk(url) as chunked:
            chunked.send(get(CHAT, "transfer-encoding: chunked").replace(b"GET", b"POST") + b"5\r\n{")
            refused(chunked, 408, "request_timeout")
    assert not model.prompts


def test_a_reply_may_take_longer_than_its_request() -> None:
    gate = Gate()
    model = ScriptedModel("first", gate, "second")
    with live(app_of(model, header_timeout=0.1, body_timeout=0.1)) as url, talk(url) as one:
        one.send(post({**HELLO, "stream": True}, CHAT, "connection: close"))
        one.until(b'"first"')
        for _ in range(2):  # so long does it take
            with talk(url) as other:
                refused(other, 408, "request_timeout")
        gate.open()
        one.until(b"[DONE]")


def test_an_idle_connection_is_closed_without_a_word() -> None:
    with live(app_of(), timeout_keep_alive=0.1) as url, talk(url) as one, talk(url) as early:
        one.send(get("/version"))
        assert one.answer().status == 200 and one.at_end()
        early.send(post(b"1234", "/nowhere", length=8))
        assert early.answer().status == 404
        early.send(b"5678")  # the rest comes after the answer
        assert early.at_end()


# too much, or not HTTP

GOOD = get("/health")
PADDED = get("/health", "a: " + "b" * 9000, "c: " + "d" * 9000)
BAD_BYTES = {
    "garbage": (b"garbage\r\n\r\n", 400, "invalid_http"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32, 400, "invalid_http"),
    "zeros": (b"\0" * 64, 400, "invalid_http"),
    "no host": (GOOD.replace(b"host", b"hast"), 400, "invalid_http"),
    "folded name": (GOOD.replace(b"host: x", b"host: x\r\nbad name: y"), 400, "invalid_http"),
    "negative length": (GOOD.replace(b"host: x", b"host: x\r\ncontent-length: -1"), 400, "invalid_http"),
    "two lengths": (
        GOOD.replace(b"host: x", b"host: x\r\ncontent-length: 1\r\ncontent-length: 2"),
        400,
        "invalid_http",
    ),
    "length and chunks": (
        GOOD.replace(b"host: x", b"host: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked")
        + b"0\r\n\r\n",
        400,
        "invalid_http",
    ),
    "coding": (GOOD.replace(b"host: x", b"host: x\r\ntransfer-encoding: gzip"), 400, "invalid_http"),
    "endless": (b"GET /" + b"a" * 40_000, 431, "headers_too_large"),
    "large": (PADDED, 431, "headers_too_large"),
    "many": (
        get("/health", *(f"a{i}: b" for i in range(MAX_HEAD_FIELDS))),
        431,
        "headers_too_large",
    ),
    "bad chunk": (
        get(CHAT, "transfer-encoding: chunked").replace(b"GET", b"POST") + b"zz\r\n",
        400,
        "invalid_http",
    ),
}


@pytest.mark.parametrize("first", [b"", get("/version")])
@pytest.mark.parametrize("name", BAD_BYTES)
def test_what_is_no_request_is_refused_in_the_usual_shape(url: str, name: str, first: bytes) -> None:
    sent, status, code = BAD_BYTES[name]
    with talk(url) as one:
        one.send(first + sent)
        if first:
            assert one.answer().status == 200
        refused(one, status, code)


def test_a_head_request_with_too_many_headers_gets_no_body(url: str) -> None:
    with talk(url) as one:
        one.send(PADDED.replace(b"GET", b"HEAD"))
        head = one.reader.read()
        assert head.startswith(b"HTTP/1.1 431 ") and head.endswith(b"\r\n\r\n")


def test_as_many_headers_as_are_allowed_are_read(url: str) -> None:
    with talk(url) as one:
        one.send(get("/version", *(f"a{i}: {'b' * 100}" for i in range(MAX_HEAD_FIELDS - 1))))
        assert one.answer().status == 200


def test_a_bad_chunk_lets_go_of_the_app() -> None:
    """At once, though the client stays and has all the time it wants to leave."""
    app, begun, gone = app_of(body_timeout=3600), threading.Event(), threading.Event()

    @app.post("/wait")
    async def wait(request: Request) -> None:
        with pytest.raises(ClientDisconnect):
            async for _ in request.stream():
                begun.set()
        gone.set()

    with live(app) as url, talk(url) as one:
        one.send(get("/wait", "transfer-encoding: chunked").replace(b"GET", b"POST") + b"1\r\n{\r\n")
        until(begun.is_set)
        one.send(b"zz\r\n")
        refused(one, 400, "invalid_http")
        until(gone.is_set)


def chunked(*chunks: bytes) -> bytes:
    head = get(CHAT, "transfer-encoding: chunked").replace(b"GET", b"POST")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


@pytest.mark.parametrize(("size", "is_read"), [(1, True), (300, True), (1, False), (200, False)])
def test_a_body_in_chunks_is_read_and_one_in_thousands_of_crumbs_is_not(
    url: str, size: int, is_read: bool
) -> None:
    """A chunk costs the event loop as much as a page, so a body of crumbs would stop every stream."""
    number = 1024 - 10 if size == 1 and is_read else 2000
    body = json.dumps(HELLO).encode().ljust(number * size)
    with talk(url) as one:
        request = chunked(*(body[i : i + size] for i in range(0, len(body), size)))
        one.send(request)
        if is_read:
            assert one.answer().status == 200
            one.send(request)
            assert one.answer().status == 200, "each request has its own thousand"
        else:
            refused(one, 400, "invalid_http")


REQUESTS = [get("/version"), post(HELLO), post(b"{"), get("/nowhere"), b"POST", b"\r\n\r\n", b"x: y\r\n"]


@given(parts=st.lists(st.one_of(st.sampled_from(REQUESTS), st.binary(max_size=20)), max_size=5))
def test_any_bytes_are_answered_without_a_5xx_and_the_server_goes_on(url: str, parts: list[bytes]) -> None:
    with talk(url) as one:
        one.send(b"".join(parts) + b"\r\n\r\n\0\r\n\r\n")  # the end is no request, whatever was before
        answers = re.findall(rb"HTTP/1.1 (\d+)", one.reader.read())
        assert answers and all(status < b"500" for status in answers)
        assert answers[-1] in (b"400", b"431")
    with talk(url) as next_one:
        next_one.send(get("/version"))
        assert next_one.answer().status == 200


# answered before it was asked


@pytest.fixture(scope="module")
def keyed_url() -> Iterator[str]:
    """A server that wants a key."""
    with live(app_of(api_key=("key",))) as address:
        yield address


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/health", 405), (CHAT, 401)])
def test_an_answer_before_the_body_can_be_read_after_it(
    url: str, keyed_url: str, path: str, status: int, keep: bool
) -> None:
    """Megabytes sent after the answer left: a server that closed on them would reset the connection."""
    body = b"x" * (4 << 20)
    with talk(keyed_url if status == 401 else url) as one:
        one.send(post(b"", path, *([] if keep else ["connection: close"]), length=len(body)))
        assert one.socket.recv(1, socket.MSG_PEEK) == b"H"
        one.send(body)
        assert one.answer().status == status
        if keep:
            one.send(get("/health"))
            assert one.answer().status == 200, "the rest was dropped, and the connection is still good"
        else:
            assert one.at_end()


@pytest.mark.parametrize("keep", [True, False])
def test_a_body_that_is_too_large_is_answered_413_which_can_be_read(keep: bool) -> None:
    with live(app_of(max_body_bytes=1 << 20)) as url, talk(url) as one:
        one.send(post(b"", CHAT, *([] if keep else ["connection: close"]), length=6 << 20))
        one.send(b"x" * (6 << 20))
        assert one.answer().error["code"] == "request_too_large"
        if keep:
            one.send(get("/version"))
            assert one.answer().status == 200


def test_bodies_after_their_answers_are_dropped_as_often_as_they_come() -> None:
    with live(app_of(max_body_bytes=1024)) as url, talk(url) as one:
        for _ in range(5):
            one.send(post(b"", "/nowhere", length=4000))
            assert one.answer().status == 404
            one.send(b"x" * 4000)


@pytest.mark.parametrize("keep", [True, False])
def test_a_client_that_sends_for_ever_after_its_answer_is_cut(keep: bool) -> None:
    with live(app_of(max_body_bytes=1024)) as url, talk(url) as one:
        one.send(post(b"", CHAT, *([] if keep else ["connection: close"]), length=1 << 40))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                one.send(b"x" * 1024)


@pytest.mark.parametrize("keep", [True, False])
def test_a_client_that_stops_sending_after_its_answer_is_cut(impatient_url: str, keep: bool) -> None:
    with talk(impatient_url) as one, talk(impatient_url) as other:
        one.send(post(b"x", "/nowhere", *([] if keep else ["connection: close"]), length=100))
        assert one.answer().status == 404
        other.send(b"garbage\r\n\r\n")
        refused(other, 400, "invalid_http")
        for client in (one, other):  # after a refusal too: nobody may go on for ever
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                while True:
                    client.send(b"x")


def test_a_reset_that_is_not_read_yet_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel knows of it when we say that nothing more comes, and refuses."""

    def refuse(transport: Any) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", refuse)
    head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\nconnection: close\r\n\r\n"
    with live(app_of()) as url:
        host, port = urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(head)
            with suppress(ConnectionResetError):
                while client.recv(1 << 16):
                    pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_server_that_stops_does_not_wait_for_those_it_said_goodbye_to() -> None:
    with live(app_of(body_timeout=3600), timeout_graceful_shutdown=None) as url:
        lingering, sending = Talk(url), Talk(url)
        lingering.send(b"garbage\r\n\r\n")
        refused(lingering, 400, "invalid_http")
        sending.send(post(b"x", "/nowhere", length=100))
        assert sending.answer().status == 404
    assert lingering.is_over() and sending.is_over()
    lingering.close()
    sending.close()


def test_a_server_that_stops_tells_those_whose_body_has_not_come() -> None:
    with ExitStack() as server, ExitStack() as client:
        sending = client.enter_context(talk(server.enter_context(live(app_of(body_timeout=3600)))))
        sending.send(post(b"{", CHAT, "expect: 100-continue", length=100))
        sending.until(b"100 Continue")  # the app waits for the body
        assert sending.reader.readline() == b"\r\n"
        server.close()
        refused(sending, 503, "server_draining")


def test_a_client_that_waits_to_be_told_to_continue(url: str) -> None:
    body = json.dumps(HELLO).encode()
    with talk(url) as one:
        one.send(post(b"", CHAT, "expect: 100-continue", length=len(body)))
        assert one.reader.readline().startswith(b"HTTP/1.1 100") and one.reader.readline() == b"\r\n"
        one.send(body)
        assert one.answer().status == 200


# several at once


def test_requests_sent_together_are_answered_in_turn(url: str) -> None:
    with talk(url) as one:
        one.send(get("/version") + post(HELLO) + get("/nowhere") + post(HELLO))
        assert [one.answer().status for _ in range(4)] == [200, 200, 404, 200]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_with_a_request_in_line_has_left(stream: bool) -> None:
    gate = Gate()
    model = ScriptedModel("first", gate, "never")
    with live(app_of(model)) as url:
        with talk(url) as one:
            one.send(post({**HELLO, "stream": stream}))
            until(lambda: model.num_open == 1)
            one.send(get("/version"))
            one.send(get("/version"))
        until(lambda: model.num_open == 0)
        gate.open()
    assert model.num_aborted == 1


# gone


@pytest.mark.parametrize("when", ["streaming", "streaming nothing yet", "whole"])
def test_a_client_that_has_gone_or_half_gone_ends_its_reply(when: str) -> None:
    gate = Gate()
    model = ScriptedModel(*(["first"] if when == "streaming" else []), gate, "never")
    with live(app_of(model)) as url:
        for number, leave in enumerate((half_close, Talk.reset, Talk.close), 1):
            with talk(url) as one:
                one.send(post({**HELLO, "stream": when != "whole"}))
                if when == "streaming":
                    one.until(b'"first"')
                until(lambda: model.num_open == 1)
                leave(one)
                until(lambda: model.num_open == 0)
                assert leave is not half_close or one.is_over()
            assert model.num_aborted == number
        gate.open()


def half_close(one: Talk) -> None:
    one.socket.shutdown(socket.SHUT_WR)


def test_a_client_that_stopped_reading_before_it_half_closed_is_gone_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its answer cannot be flushed, which must not keep the app waiting: there is no time limit here."""
    model, gate = endless()
    with live(app_of(model, send_timeout=3600)) as url, talk(url, receive_buffer=4096) as one:
        one.send(post({**HELLO, "stream": True}))
        one.until(LONG_TOKEN.encode())
        half_close(one)
        until(lambda: model.num_open == 0)
        gate.open()
    assert model.num_aborted == 1
    assert "socket.send() raised" not in caplog.text, "nothing was written to a connection that was gone"


# the reader


def endless() -> tuple[ScriptedModel, Gate]:
    """A model that says more than any buffer holds, and then waits at the gate."""
    gate = Gate()
    return ScriptedModel(*[LONG_TOKEN] * 100, gate, "never"), gate


@pytest.mark.parametrize("bytes_per_second", [0, 100])
def test_a_stream_nobody_reads_is_cut(bytes_per_second: int) -> None:
    model, gate = endless()
    with live(app_of(model, send_timeout=0.3)) as url, talk(url, receive_buffer=4096) as one:
        one.send(post({**HELLO, "stream": True}))
        until(lambda: model.num_open == 1)
        pause = threading.Event()
        while model.num_open:
            if bytes_per_second:
                one.socket.recv(bytes_per_second // 10)
            pause.wait(0.1)
        assert one.is_over()
        gate.open()
    assert model.num_aborted == 1


@pytest.mark.parametrize("header", ["connection: close", "connection: keep-alive"])
def test_a_long_answer_nobody_reads_is_cut(header: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "causerie.server")
    model = ScriptedModel(*[LONG_TOKEN] * 100)
    with live(app_of(model, send_timeout=0.2)) as url, talk(url, receive_buffer=4096) as one:
        one.send(post(HELLO, CHAT, header))
        until(lambda: model.num_open == 0 and bool(model.prompts))
        until(lambda: "it stopped reading for 0.2 s" in caplog.text)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                one.send(b"x")
    assert model.num_aborted == 0, "the reply itself was whole"


def test_a_long_answer_that_is_read_slowly_but_steadily_is_not_cut() -> None:
    """Longer than several send timeouts, and all of it arrives."""
    model = ScriptedModel(*[LONG_TOKEN] * 100)
    pause, taken = threading.Event(), 0
    with live(app_of(model, send_timeout=0.8)) as url, talk(url) as one:
        one.send(post(HELLO, CHAT, "connection: close"))
        while data := one.socket.recv(1 << 18):
            taken += len(data)
            pause.wait(0.1)
    assert taken > 100 * len(LONG_TOKEN)


class Counting(ScriptedModel):
    """Knows how many tokens were taken from it."""

    num_taken = 0

    async def stream(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        async for delta in super().stream(*args, **kwargs):
            self.num_taken += 1
            yield delta


def test_little_is_kept_for_a_client_that_does_not_read() -> None:
    """The kernel's two buffers and a message or two, not the 40 MB that are there to be said."""
    model = Counting(*["y" * 10_000] * 4000)
    with live(app_of(model, send_timeout=0.5)) as url, talk(url, receive_buffer=4096) as one:
        one.send(post({**HELLO, "stream": True}))
        until(lambda: model.num_open == 1)
        before = -1
        pause = threading.Event()
        while before < model.num_taken or not model.num_taken:
            before = model.num_taken
            pause.wait(0.05)
        assert model.num_taken < 100
        until(lambda: model.num_open == 0)


def test_nothing_waits_unwatched_and_the_kernel_watches_too() -> None:
    """On a connection of one's own: when it pauses the app, what the kernel may hold, when it asks."""

    async def connect() -> None:
        config = uvicorn.Config(app_of(), log_config=None)
        loop, make = asyncio.get_running_loop(), connection_class(Settings(send_timeout=30))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()):
                taken = listener.accept()[0]
                made = lambda: make(config, ServerState(), {})  # noqa: E731
                transport, _ = await loop.connect_accepted_socket(made, taken)
        one = transport.get_extra_info("socket")
        assert transport.get_write_buffer_limits() == (0, 0), (
            "its clock starts with the first byte that waits"
        )
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 128 << 10
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        transport.abort()
        await asyncio.sleep(0)

    asyncio.run(connect())


# too many


def test_a_crowd_of_half_open_connections_pushes_out_itself() -> None:
    with live(app_of(max_connections=8, header_timeout=3600)) as url:
        crowd = [Talk(url) for _ in range(40)]
        for one in crowd:
            one.send(b"GET / HTTP/1.1\r\n")
        with talk(url) as honest:
            honest.send(get("/version"))
            assert honest.answer().status == 200
        assert all(one.is_over() for one in crowd[:32])
        for one in crowd:
            one.close()


def test_who_has_used_most_of_its_time_goes_first() -> None:
    """Two are idle: one for ages, of a long time; the other, half-open, has used more of its own."""
    with live(app_of(max_connections=2, header_timeout=3), timeout_keep_alive=3600) as url:
        with talk(url) as idle, talk(url) as half:
            idle.send(get("/version"))
            assert idle.answer().status == 200
            half.send(b"GET /ver")
            idle.send(get("/version"))
            assert idle.answer().status == 200
            with talk(url) as third:
                assert half.is_over()
                third.send(get("/version"))
                assert third.answer().status == 200
                idle.send(get("/version"))
                assert idle.answer().status == 200


def test_when_everyone_gets_a_reply_a_newcomer_is_told_to_come_back() -> None:
    gate = Gate()
    model = ScriptedModel("first", gate, "second")
    with live(app_of(model, max_connections=2)) as url, talk(url) as one, talk(url) as two:
        for client in (one, two):
            client.send(post({**HELLO, "stream": True}, CHAT, "connection: close"))
            client.until(b'"first"')
        with talk(url) as late:
            late.send(get("/version"))
            answer = late.answer()
            assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
            assert int(answer.headers["retry-after"]) > 0
            assert late.at_end()
        gate.open()
        for client in (one, two):
            client.until(b"[DONE]")


def test_room_is_made_for_the_connections(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        make_room(64)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, before[1])
        make_room(1024)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1100
        assert not caplog.records
        make_room(1 << 40)  # more than any system has
        assert "files may be open" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# uvicorn


def test_an_offer_of_another_protocol_is_declined_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    try:
        with live(app_of(), log_level="info", log_config=None) as url, talk(url) as one:
            for offer in ("h2c", "websocket"):
                one.send(get("/live", f"upgrade: {offer}", "connection: upgrade"))
                assert one.answer().status == 200
            one.send(b"garbage\r\n\r\n")
            refused(one, 400, "invalid_http")
    finally:
        log.removeHandler(caplog.handler)
    warnings = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
    assert warnings == {"Invalid HTTP request received."}


def test_uvicorn_still_closes_through_the_transport_it_was_given() -> None:
    used = set(re.findall(r"transport\.(\w+)\(", inspect.getsource(h11_impl)))
    assert used == {"write", "close", "is_closing", "resume_reading", "set_protocol"}
    assert used - vars(_Door).keys() == {"set_protocol"}, "only websockets change the protocol"


def test_uvicorn_still_has_what_is_overridden() -> None:
    ours = {name for name, value in vars(Connection).items() if callable(value) and name[0] != "_"}
    assert ours - {"close", "phase"} <= set(dir(h11_impl.H11Protocol))
