"""The server at the other end: OpenAI's API as many speak it, and what each of them refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from clients.chat.peer import Count, Peer
from clients.client import Client
from clients.wire import ApiError
from tests.clients.fake_server import FakeServer

HELLO = [{"role": "user", "content": "hello"}]
NOTES: list[str] = []


@pytest.fixture
def peer(fake: FakeServer) -> Iterator[Peer]:
    NOTES.clear()
    with Client(fake.url) as client:
        yield Peer(client, {"temperature": 0.0, "seed": None, "max_tokens": None}, NOTES.append)


def said(peer: Peer) -> str:
    with peer.ask(HELLO) as answer:
        return "".join(piece.said for piece in answer.pieces())


def test_what_is_set_is_sent_and_what_is_not_is_not(peer: Peer, fake: FakeServer) -> None:
    peer.greet()
    assert said(peer) == "You said: hello"
    assert fake.requests == [
        {
            "model": "fake",
            "messages": HELLO,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "truncation": "drop_oldest",
        }
    ]


def test_a_field_of_ours_that_is_refused_is_left_off_once_and_said(peer: Peer, fake: FakeServer) -> None:
    fake.unknown = {"truncation", "stream_options"}
    assert [said(peer), said(peer)] == ["You said: hello"] * 2
    assert len(fake.requests) == 4, "two refusals, and never again"
    assert not fake.unknown & fake.requests[-1].keys()
    assert NOTES == [
        f"(the server refuses the field {name}: left off from now on)"
        for name in ("stream_options", "truncation")
    ]


REFUSALS: list[tuple[int, dict[str, Any]]] = [
    (400, {"error": {"message": "bad field", "param": "truncation"}}),
    (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "truncation"], "msg": "Extra inputs"}]}),
    (422, {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "truncation"]}]}}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS, ids=["param", "FastAPI", "nested"])
def test_every_way_to_name_a_field_is_understood(
    peer: Peer, fake: FakeServer, status: int, body: dict[str, Any]
) -> None:
    fake.fail(status, body)
    assert said(peer) == "You said: hello"
    assert [request.get("truncation") for request in fake.requests] == ["drop_oldest", None]


def test_what_the_user_set_is_never_left_off(peer: Peer, fake: FakeServer) -> None:
    peer.params["seed"] = 7
    fake.unknown = {"seed"}
    with pytest.raises(ApiError, match="seed"):
        said(peer)
    assert len(fake.requests) == 1


def test_a_conversation_too_long_is_no_refused_field(peer: Peer, fake: FakeServer) -> None:
    error = {"message": "too long, send truncation: drop_oldest", "code": "context_length_exceeded"}
    fake.fail(400, {"error": error})
    with pytest.raises(ApiError, match="too long"):
        said(peer)
    assert said(peer) == "You said: hello"
    assert fake.requests[-1]["truncation"] == "drop_oldest" and NOTES == []


def test_the_newer_name_of_the_limit_is_taken_where_the_old_one_is_refused(
    peer: Peer, fake: FakeServer
) -> None:
    peer.params["max_tokens"] = 5
    fake.fail(400, {"error": {"message": "use 'max_completion_tokens'", "param": "max_tokens"}})
    assert said(peer) == "You said: hello"
    assert "max_tokens" not in fake.requests[1] and fake.requests[1]["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    "models", [None, {"data": "x"}, {"data": []}, {"data": [None, {"name": "x"}]}], ids=repr
)
def test_a_server_need_not_list_its_models(peer: Peer, fake: FakeServer, models: object) -> None:
    fake.models = models
    peer.greet()
    assert (peer.model_ids, peer.model) == ([], None)
    assert said(peer) == "You said: hello" and "model" not in fake.requests[0]
    peer.params["model"] = "mine"
    assert said(peer) == "You said: hello" and fake.requests[1]["model"] == "mine"


def test_tokens_are_counted_where_the_server_can(peer: Peer, fake: FakeServer) -> None:
    peer.greet()
    for answer in (None, {"tokens": []}, {"count": "x"}, [], {"count": True}):
        fake.tokens = answer
        assert peer.count(HELLO) is None, answer
    fake.tokens = {"count": 12, "max_model_len": 64}
    assert peer.count(HELLO) == Count(12, 64)
    fake.tokens = {"count": 12}
    assert peer.count(HELLO) == Count(12, None)
    peer.models = [{"id": "other", "max_model_len": 1}, {"id": "fake", "max_model_len": 128}]
    peer.params["model"] = "fake"
    assert peer.count(HELLO) == Count(12, 128)
