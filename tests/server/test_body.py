"""Bytes → a JSON object, or one clear refusal."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from server.body import MAX_DEPTH, parse_object, read_object
from server.errors import ApiError, ClientGone

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> bytes:
    """An object of that many levels, itself included."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@given(st.dictionaries(st.text(), VALUES))
def test_json_objects_come_through_unchanged(value: dict[str, Any]) -> None:
    assert parse_object(json.dumps(value).encode()) == value
    assert parse_object(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_a_400(body: bytes) -> None:
    try:
        assert isinstance(parse_object(body), dict)
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b"null",
        b"{",
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e309}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":"\xff"}',
        '{"a":1}'.encode("utf-16"),
        nested(MAX_DEPTH + 1),
        nested(100_000),
    ],
)
def test_malformed_bodies_are_named_so(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    assert len(caught.value.message) < 200


def test_depth_is_counted_in_levels() -> None:
    parse_object(nested(MAX_DEPTH))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (rb'{"a":[{"b":"\ud800"}]}', "a[0].b"),
        (rb'{"a":"\udc00\ud800"}', "a"),
        (rb'{"\ud800":1}', None),
    ],
)
def test_half_a_surrogate_pair_is_located(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)


def test_a_whole_pair_is_text() -> None:
    assert parse_object(rb'{"a":"\ud83d\ude00"}') == {"a": "\U0001f600"}


def read(messages: list[dict[str, Any]], headers: dict[str, str], limit: int = 16) -> dict[str, Any]:
    queue = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(queue)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return asyncio.run(read_object(Request({"type": "http", "headers": raw}, receive), limit))


def test_a_body_in_pieces_is_one_body() -> None:
    pieces = [
        {"type": "http.request", "body": b'{"a"', "more_body": True},
        {"type": "http.request", "body": b":1}", "more_body": False},
    ]
    assert read(pieces, {}) == {"a": 1}


@pytest.mark.parametrize("claimed", [{}, {"content-length": "1"}, {"content-length": "-5"}])
def test_bytes_are_counted_whatever_was_claimed(claimed: dict[str, str]) -> None:
    endless = [{"type": "http.request", "body": b"x" * 10, "more_body": True}] * 2
    with pytest.raises(ApiError) as caught:
        read(endless, claimed)
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")


@pytest.mark.parametrize("length", ["17", "9" * 100])
def test_an_honest_claim_is_refused_before_reading(length: str) -> None:
    with pytest.raises(ApiError) as caught:
        read([], {"content-length": length})
    assert caught.value.status == 413


def test_a_client_that_leaves_midway_is_noticed() -> None:
    with pytest.raises(ClientGone):
        read([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}], {})
