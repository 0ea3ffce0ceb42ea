"""Where a response ends, wherever its bytes are cut."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.bench.framing import MAX_HEAD_BYTES, MAX_LINE_BYTES, Response
from clients.wire import BadAnswer, Unreachable

CHUNKED = b"HTTP/1.1 200 OK\r\nX-A: 1\r\ntransfer-encoding: chunked\r\n\r\n"
RESPONSES = {
    "chunked": CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "extension": CHUNKED + b"3;x=y\r\nabc\r\n0;z\r\n\r\n",
    "trailers": CHUNKED + b"3\r\nabc\r\n0\r\nx: 1\r\ny: 2\r\n\r\n",
    "like the end": CHUNKED + b"9\r\na0\r\n\r\n\r\n0\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n",
    "length": b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"1\r\na\r\n0\r\n\r\n",
}


def read(*pieces: bytes) -> tuple[Response, bytes]:
    response = Response()
    return response, b"".join(map(response.feed, pieces))


def body_by_h11(data: bytes) -> tuple[int, bytes]:
    """The same by another reader of HTTP."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body = 0, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            status = event.status_code
        if isinstance(event, h11.Data):
            body += bytes(event.data)
    return status, body


@pytest.mark.parametrize("name", RESPONSES)
def test_it_reads_what_another_reader_of_http_reads_cut_at_every_byte(name: str) -> None:
    data = RESPONSES[name]
    status, body = body_by_h11(data)
    cuts = [[data[:i], data[i:]] for i in range(len(data) + 1)] + [
        [data[i : i + 1] for i in range(len(data))]
    ]
    for pieces in cuts:
        response, found = read(*pieces)
        assert (response.status, found, response.is_over) == (status, body, True), pieces
        assert response.is_reusable


@pytest.mark.parametrize("name", RESPONSES)
def test_it_is_over_with_its_last_byte_and_not_before(name: str) -> None:
    data = RESPONSES[name]
    response = Response()
    for i in range(len(data)):
        assert not response.is_over and not response.is_reusable, f"before byte {i} of {len(data)}"
        response.feed(data[i : i + 1])
    assert response.is_over


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8), st.data())
def test_any_chunks_cut_anywhere(chunks: list[bytes], data: st.DataObject) -> None:
    stream = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    response, body = read(*(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    assert (body, response.is_over) == (b"".join(chunks), True)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    response, body = read(b"HTTP/1.0 200 OK\r\n\r\nab", b"c")
    assert (body, response.is_over, response.is_reusable) == (b"abc", False, False)
    response.close()
    assert response.is_over


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200", CHUNKED, CHUNKED + b"3\r\nab", CHUNKED + b"0\r\n"])
def test_a_connection_closed_too_early_is_said(part: bytes) -> None:
    response, _ = read(part)
    with pytest.raises(Unreachable, match="before the answer was whole"):
        response.close()


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nmore", False),
    ],
)
def test_whether_the_connection_carries_another_request(head: bytes, reusable: bool) -> None:
    response, _ = read(head)
    assert (response.is_over, response.is_reusable) == (True, reusable)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"SSH-2.0-x\r\n\r\n", "not HTTP/1.1: 'SSH-2.0-x'"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", "content-length is not a number"),
        (CHUNKED + b"xyz\r\n", "size of a chunk is not a number: b'xyz'"),
        (CHUNKED + b"-1\r\n", "size of a chunk"),
        (CHUNKED + b"+1\r\n", "size of a chunk"),
        (CHUNKED + b"0x1\r\n", "size of a chunk"),
        (CHUNKED + b"1" * 16 + b"\r\n", "size of a chunk"),
        (CHUNKED + b"1\r\nab\r\n", "longer than it says"),
        (b"x" * MAX_HEAD_BYTES, f"longer than {MAX_HEAD_BYTES} bytes"),
        (CHUNKED + b"1" * MAX_LINE_BYTES, f"longer than {MAX_LINE_BYTES} bytes"),
    ],
)
def test_what_is_no_response_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadAnswer, match=said):
        read(data)
