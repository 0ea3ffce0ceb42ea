"""Bytes of answers: whatever goes past h11's state machine is what that would have written."""

from __future__ import annotations

import h11
import pytest

from server.parser import Parser

LENGTH = (b"Content-Length", b"3")


def written(
    conn: h11.Connection, request: bytes, headers: list[tuple[bytes, bytes]], parts: list[bytes]
) -> list[bytes | type[Exception]]:
    """All that is sent in answer to a request, or what it raises."""
    sent: list[bytes | type[Exception]] = []
    conn.receive_data(request)
    assert [type(conn.next_event()) for _ in range(2)] == [h11.Request, h11.EndOfMessage]
    events = [h11.Response(status_code=200, headers=headers), *(h11.Data(data=part) for part in parts)]
    for event in (*events, h11.EndOfMessage()):
        try:
            sent.append(conn.send(event))  # type: ignore[arg-type]
        except h11.LocalProtocolError as error:
            sent.append(type(error))
    return sent


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("headers", [[], [LENGTH], [(b"x-note", b"Transfer-Encoding: chunked")]])
@pytest.mark.parametrize("parts", [[], [b""], [b"abc"], [b"a", b"", b"bc"], [b"a" * 70_000, b"b"]])
def test_answers_are_h11s_for_any_framing(
    method: bytes, version: bytes, headers: list[tuple[bytes, bytes]], parts: list[bytes]
) -> None:
    request = method + b" / HTTP/" + version + b"\r\nhost: x\r\n\r\n"
    slow, fast = h11.Connection(h11.SERVER), Parser()
    for _ in range(2 if version == b"1.1" else 1):  # a kept connection chooses anew for every answer
        got = written(fast, request, headers, parts)
        assert got == written(slow, request, headers, parts)
        if h11.LocalProtocolError in got or slow.our_state is not h11.DONE:
            return
        slow.start_next_cycle()
        fast.start_next_cycle()
        headers = [] if headers else [LENGTH]


def test_only_chunks_go_past_the_state_machine() -> None:
    conn = Parser()
    with pytest.raises(h11.LocalProtocolError):
        conn.send(h11.Data(data=b"before any request"))
