"""What runs in Ray's proxies, without Ray: sessions from bodies, and answers in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.ray_proxy import (
    MAX_BODY_BYTES,
    REPLICA_HEADER,
    SESSION_HEADER,
    ErrorsInShape,
    SessionOfConversation,
    middlewares,
    session_of,
)

CHAT = "/v1/chat/completions"
JSON_HEADERS = [(b"content-type", b"text/plain"), (b"x-request-id", b"r1")]
OURS = (REPLICA_HEADER, b"abc")


@dataclass
class Seen:
    """What the application below was given, and what the client got."""

    scope: Scope
    body: bytes
    sent: list[Message]

    @property
    def session(self) -> bytes | None:
        return dict(self.scope["headers"]).get(SESSION_HEADER)

    @property
    def answer(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


def through(
    layer: Callable[[ASGIApp], ASGIApp],
    parts: Sequence[bytes] = (b"{}",),
    *,
    path: str = CHAT,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (),
    respond: Sequence[Message] = (),
    broken_off: bool = False,
) -> Seen:
    """A request through one layer, to an application that reads it all and then sends `respond`."""
    incoming: list[Message] = [
        {"type": "http.request", "body": part, "more_body": broken_off or part is not parts[-1]}
        for part in parts
    ]
    incoming.append({"type": "http.disconnect"})
    seen = Seen({}, b"", [])

    async def below(scope: Scope, receive: Receive, send: Send) -> None:
        seen.scope = scope
        while (message := await receive())["type"] == "http.request":
            seen.body += message["body"]
        for one in respond:
            await send(one)

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        seen.sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    work: Awaitable[None] = layer(below)(scope, receive, send)
    asyncio.run(asyncio.wait_for(work, 30))
    return seen


def start(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(text: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


def chat(*contents: str, **fields: Any) -> bytes:
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return json.dumps({"messages": messages, **fields}).encode()


def test_turns_of_a_conversation_share_a_session() -> None:
    first = session_of(chat("be kind", "hello"))
    assert first is not None
    assert session_of(chat("be kind", "hello", "hi", "more", temperature=0.5)) == first
    assert session_of(chat("be kind", "goodbye")) != first
    assert session_of(chat("be brief", "hello")) != first


def test_a_key_of_the_clients_own_decides() -> None:
    one, other = chat("a", "b", prompt_cache_key="k"), chat("c", "d", prompt_cache_key="k")
    assert session_of(one) == session_of(other) != session_of(chat("a", "b"))
    assert session_of(chat("a", "b", prompt_cache_key=7)) == session_of(chat("a", "b"))


def test_prompts_that_begin_alike_share_a_session() -> None:
    long = "once upon a time " * 100
    assert session_of(json.dumps({"prompt": long}).encode()) is not None
    assert session_of(json.dumps({"prompt": long}).encode()) == session_of(
        json.dumps({"prompt": long + "there was"}).encode()
    )


@pytest.mark.parametrize(
    "nothing",
    [b"", b"{", b"[]", b"7", b"{}", b'{"messages": []}', b'{"messages": 5}', b'{"prompt": [1, 2]}']
    + [b"\xff", b"[" * 100_000, b'{"prompt": ""}', b'{"messages": null, "prompt": null}'],
)
def test_where_nothing_can_be_told_there_is_no_session(nothing: bytes) -> None:
    assert session_of(nothing) is None
    assert through(SessionOfConversation, [nothing]).session is None


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda v: json.dumps(v).encode(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["messages", "prompt", "role", "content", "prompt_cache_key"])
                    | st.text(),
                    inner,
                )
            ),
            max_leaves=12,
        ),
    )
)
def test_any_body_passes_untouched(data: bytes) -> None:
    half = len(data) // 2
    seen = through(SessionOfConversation, [data[:half], data[half:]])
    assert seen.body == data
    assert seen.session is None or len(seen.session) == 16


def test_the_session_is_a_header_of_the_request() -> None:
    seen = through(SessionOfConversation, [chat("a", "b")])
    expected = session_of(chat("a", "b"))
    assert expected is not None and seen.session == expected.encode()


@pytest.mark.parametrize("name", [b"x-session-id", b"x_session_id"])
def test_a_clients_session_stays(name: bytes) -> None:
    seen = through(SessionOfConversation, [chat("a", "b")], headers=[(name, b"mine")])
    assert seen.scope["headers"] == [(name, b"mine")]


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("POST", "/v1/embeddings")])
def test_other_requests_are_not_read(method: str, path: str) -> None:
    seen = through(SessionOfConversation, [chat("a", "b")], method=method, path=path)
    assert seen.session is None and seen.body == chat("a", "b")


def test_a_long_body_is_not_held() -> None:
    parts = [chat("a", "b" * MAX_BODY_BYTES), b" " * 10, b" "]
    seen = through(SessionOfConversation, parts)
    assert seen.session is None and seen.body == b"".join(parts)


def test_a_body_that_breaks_off_reaches_the_replica_as_it_is() -> None:
    seen = through(SessionOfConversation, [b'{"prompt": "a'], broken_off=True)
    assert seen.session is None and seen.body == b'{"prompt": "a'


def test_a_replicas_own_answers_pass_as_they_are() -> None:
    for status in (200, 400, 500):
        sent = [start(status, OURS), body(b"its own", more=True), body(b" words")]
        assert through(ErrorsInShape, respond=sent).sent == sent


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(404, "not_deployed", "invalid_request_error"), (429, "queue_full", "rate_limit_error")]
    + [(503, "replica_unavailable", "server_error"), (500, "internal_error", "server_error")],
)
def test_rays_words_get_openais_shape(status: int, code: str, kind: str) -> None:
    seen = through(ErrorsInShape, respond=[start(status, *JSON_HEADERS), body(b"Ray says no")])
    headers = dict(seen.sent[0]["headers"])
    error = json.loads(seen.answer)["error"]
    assert seen.sent[0]["status"] == status
    assert (error["code"], error["type"], error["param"]) == (code, kind, None)
    assert headers[b"content-type"] == b"application/json" and headers[b"x-request-id"] == b"r1"
    assert int(headers[b"content-length"]) == len(seen.answer)
    assert (b"retry-after" in headers) == (status == 503)


def test_rays_own_retry_after_stays() -> None:
    seen = through(ErrorsInShape, respond=[start(503, (b"retry-after", b"9")), body(b"full")])
    assert [value for name, value in seen.sent[0]["headers"] if name == b"retry-after"] == [b"9"]


def test_what_ray_says_that_is_no_error_stays() -> None:
    sent = [start(307, (b"location", b"/v1/models")), body(b"")]
    assert through(ErrorsInShape, respond=sent).sent == sent


def test_a_request_nobody_answered_is_a_503() -> None:
    seen = through(ErrorsInShape)
    assert seen.sent[0]["status"] == 503
    assert json.loads(seen.answer)["error"]["code"] == "replica_unavailable"


def test_a_stream_that_broke_off_ends_with_an_error_and_done() -> None:
    stream = start(200, OURS, (b"content-type", b"text/event-stream; charset=utf-8"))
    seen = through(ErrorsInShape, respond=[stream, body(b"data: {}\n\n", more=True)])
    first, error, done, rest = seen.answer.split(b"\n\n")
    assert (first, done, rest) == (b"data: {}", b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "replica_unavailable"
    assert seen.sent[-1]["more_body"] is False


def test_a_whole_reply_that_broke_off_stays_so() -> None:
    sent = [start(200, OURS, (b"content-type", b"application/json")), body(b'{"id"', more=True)]
    assert through(ErrorsInShape, respond=sent).sent == sent


def test_a_stream_that_ended_gets_nothing_more() -> None:
    sent = [start(200, OURS, (b"content-type", b"text/event-stream")), body(b"data: [DONE]\n\n")]
    assert through(ErrorsInShape, respond=sent).sent == sent


def test_rays_own_paths_are_rays() -> None:
    sent = [start(503), body(b"unhealthy")]
    assert through(ErrorsInShape, path="/-/healthz", respond=sent).sent == sent


def test_errors_are_shaped_outside_of_sessions() -> None:
    classes: list[object] = [one.cls for one in middlewares()]
    assert classes == [SessionOfConversation, ErrorsInShape]
