"""Keys at the door: who is let in, and as whom. What stays closed: tests/test_every_route_is_closed.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from server.auth import KeyAuth, bearer
from server.keys import Key, Keyring, digest_of, key_of
from tests.server.wire import CHAT, HELLO, app_of, call

KEYS = {"api_key": ("first-key", "second-key")}
RING = Keyring([Key("alice", digest_of(b"first-key")), Key("bob", digest_of(b"second-key"))])


def came_in_as(headers: Sequence[tuple[bytes, bytes]], ring: Keyring = RING, path: str = "/x") -> str | None:
    """The name the application behind the door reads; None when nobody got there."""
    seen: list[str] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        key = key_of(scope)
        seen.append("" if key is None else key.name)

    async def nothing() -> Message:
        raise AssertionError("the door does not read")

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": path, "headers": list(headers)}
    asyncio.run(KeyAuth(inside, ring)(scope, nothing, send))
    return seen[0] if seen else None


@pytest.mark.parametrize("sent", ["Bearer first-key", "bearer second-key", "BEARER  first-key "])
def test_any_of_the_keys_opens(sent: str) -> None:
    assert call(app_of(**KEYS), CHAT, HELLO, authorization=sent).status == 200


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "an API key is needed: send 'Authorization: Bearer KEY'"),
        ({"authorization": "Bearer first"}, "this API key is not known"),
        ({"authorization": "Basic first-key"}, "this API key is not known"),
        ({"x_api_key": "Bearer first-key"}, "this API key is not known"),
        (
            {"authorization": "Bearer first-key", "x_api_key": "second-key"},
            "several API keys were sent: send one",
        ),
    ],
)
def test_a_refusal_says_why_and_repeats_no_key(headers: dict[str, str], said: str) -> None:
    answer = call(app_of(**KEYS), CHAT, HELLO, **headers)
    assert answer.status == 401
    assert answer.error == {
        "message": said,
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-request-id"]


def test_whose_key_it_was_is_noted() -> None:
    assert came_in_as([(b"authorization", b"Bearer first-key")]) == "alice"
    assert came_in_as([(b"x-api-key", b"second-key")]) == "bob"
    assert came_in_as([(b"x-api-key", b" second-key ")]) == "bob"
    assert came_in_as([(b"x-api-key", b"first-key"), (b"authorization", b"Bearer first-key")]) == "alice"
    assert came_in_as([(b"x-api-key", b"first-key"), (b"authorization", b"Bearer second-key")]) is None
    assert came_in_as([(b"x-api-key", b"first-key"), (b"authorization", b"Basic first-key")]) is None


def test_the_health_checks_are_open_and_know_who_asks() -> None:
    assert came_in_as([], path="/health") == ""
    assert came_in_as([(b"authorization", b"Bearer wrong")], path="/live") == ""
    assert came_in_as([(b"authorization", b"Bearer first-key")], path="/ready") == "alice"


def test_without_keys_all_come_in_unnamed() -> None:
    assert came_in_as([], Keyring()) == ""
    assert came_in_as([(b"authorization", b"Bearer whatever")], Keyring()) == ""


def test_an_options_request_that_is_no_preflight_needs_a_key() -> None:
    assert call(app_of(**KEYS), CHAT, method="OPTIONS").status == 401
    assert call(app_of(**KEYS), CHAT, method="OPTIONS", authorization="Bearer first-key").status == 405
    assert call(app_of(), CHAT, method="OPTIONS").status == 405


def test_bearer_takes_the_token_only() -> None:
    assert bearer(b"Bearer a b") == b"a b"
    assert bearer(b"Basic a") is None
    assert bearer(b"Bearer") == b"" == bearer(b" bearer ")


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"x"]), st.binary(max_size=40))))
def test_no_bytes_open_the_door_but_a_key(headers: list[tuple[bytes, bytes]]) -> None:
    assert came_in_as(headers) is None
