"""Requests built, event streams read: no socket."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.wire import (
    ApiError,
    BadAnswer,
    ChunkReader,
    SSEReader,
    Unreachable,
    chat_request,
    http_settings,
    key_from_environment,
    read_body,
    root_url,
)


def events_of(*chunks: bytes) -> list[str]:
    reader = SSEReader()
    return [event for chunk in chunks for event in reader.feed(chunk)] + reader.flush()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        (b"data: a\r\rdata: b\r\r", ["a", "b"]),
        (b"data: one\ndata: two\n\n", ["one\ntwo"]),
        (b"data: one\r\ndata: two\r\n\r\n", ["one\ntwo"]),
        (b": ping\n\ndata: a\n: ping\n\n", ["a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", ["a"]),
        (b"event: x\n\n", []),
        (b"data:a\n\ndata:  a\n\ndata\n\n", ["a", " a", ""]),
        (b"data: \xe2\x82\xac\n\n", ["€"]),
        (b"data: a\x0bb\x0c\xc2\x85c\xe2\x80\xa8d\n\n", ["a\x0bb\x0c\x85c\u2028d"]),  # not line ends here
        (b"data: [DONE]", ["[DONE]"]),
        (b"data: a\n\n\n\n", ["a"]),
        (b"", []),
    ],
)
def test_events_of_a_stream(stream: bytes, events: list[str]) -> None:
    assert events_of(stream) == events
    assert events_of(*(stream[i : i + 1] for i in range(len(stream)))) == events


def test_an_event_is_there_as_soon_as_its_blank_line_is() -> None:
    reader = SSEReader()
    assert reader.feed(b"data: a\r\n\r") == ["a"]
    assert reader.feed(b"\ndata: b\n") == []
    assert reader.feed(b"\n") == ["b"]


LINES = st.sampled_from(
    [b"data: ", b"data: a", b"data: \xc3\xa9\xe2\x82\xac", b": ping", b"event: x", b"", b""]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.data())
def test_any_chunking_gives_the_same_events(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    single_bytes = [stream[i : i + 1] for i in range(len(stream))]
    assert events_of(*pieces) == events_of(*single_bytes) == events_of(stream)


def test_an_error_frame_raises_after_the_chunks_before_it() -> None:
    error = {
        "error": {
            "message": "the step failed",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }
    frames = f'data: {{"n": 1}}\n\ndata: {json.dumps(error)}\n\ndata: [DONE]\n\n'.encode()
    seen = []
    with pytest.raises(ApiError, match="the step failed") as caught:
        seen.extend(ChunkReader().feed(frames))  # extend keeps what came before the error
    assert seen == [{"n": 1}]
    assert (caught.value.status, caught.value.code, caught.value.param) == (200, "internal_error", None)


def test_nothing_counts_after_done() -> None:
    reader = ChunkReader()
    assert list(reader.feed(b'data: {"n": 1}\n\ndata: [DONE]\n\ndata: {"n": 2}\n\n')) == [{"n": 1}]
    assert reader.done
    assert list(reader.feed(b'data: {"n": 3}\n\n')) == list(reader.flush()) == []


@pytest.mark.parametrize("stream", [b"", b'data: {"n": 1}\n\n', b"data: [DON"])
def test_a_stream_without_done_is_no_whole_answer(stream: bytes) -> None:
    reader = ChunkReader()
    with pytest.raises(BadAnswer):
        [*reader.feed(stream), *reader.flush()]


@pytest.mark.parametrize("data", [b"data: {", b"data: []", b"data: hello"])
def test_a_frame_that_is_not_an_object_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer, match="not a JSON object"):
        list(ChunkReader().feed(data + b"\n\n"))


def test_a_request_carries_what_is_set_and_zero_is_set() -> None:
    request = chat_request([{"role": "user", "content": "hi"}], {"temperature": 0, "seed": None}, stream=True)
    assert request["json"] == {
        "temperature": 0,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error": {"message": "no", "code": "bad", "param": "n"}}', "bad", "no"),
        (b'{"error": "no"}', None, "no"),
        (b"<html>gone</html>", None, "<html>gone</html>"),
        (b"[1]", None, "[1]"),
        (b"", None, "HTTP 404 without a message"),
        (b'{"error": {}}', None, "HTTP 404 without a message"),
    ],
)
def test_an_error_status_is_an_api_error_whatever_its_body(
    body: bytes, code: str | None, message: str
) -> None:
    with pytest.raises(ApiError) as caught:
        read_body(httpx.Response(404, content=body))
    assert (caught.value.status, caught.value.code, caught.value.message) == (404, code, message)


def test_urls_with_and_without_v1_name_the_same_server() -> None:
    assert root_url("http://h:1/v1/") == root_url("http://h:1/v1") == root_url("http://h:1/") == "http://h:1"


def test_a_proxy_is_not_asked_about_this_machine() -> None:
    assert not http_settings("http://127.0.0.1:8000", None, 1.0)["trust_env"]
    assert http_settings("http://example.org", None, 1.0)["trust_env"]
    with pytest.raises(Unreachable, match="not a URL"):
        http_settings("http://h:x", None, 1.0)


@pytest.mark.parametrize(("value", "key"), [(None, None), ("", None), ("a", "a"), ("a,b", "a")])
def test_the_key_is_the_first_of_the_servers(
    value: str | None, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAUSERIE_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("CAUSERIE_API_KEY", value)
    assert key_from_environment() == key
