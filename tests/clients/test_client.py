"""The two clients over real sockets: whatever one does, the other does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from clients.client import AsyncClient, Client
from clients.wire import ApiError, BadAnswer, Unreachable
from tests.clients.fake_server import FakeServer, frame

HELLO = [{"role": "user", "content": "hello"}]
Call = Callable[..., Any]


def call_sync(url: str, name: str, *args: Any, api_key: str | None = None, **params: Any) -> Any:
    with Client(url, api_key) as client:
        result = getattr(client, name)(*args, **params)
        return list(result) if name == "stream" else result


def call_async(url: str, name: str, *args: Any, api_key: str | None = None, **params: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, api_key) as client:
            result = getattr(client, name)(*args, **params)
            return [chunk async for chunk in result] if name == "stream" else await result

    return asyncio.run(run())


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param  # type: ignore[no-any-return]


def texts(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def test_chat_returns_the_whole_answer(call: Call, fake: FakeServer) -> None:
    answer = call(fake.url + "/v1", "chat", HELLO, temperature=0, api_key="k")
    assert answer["choices"][0]["message"]["content"] == "You said: hello"
    assert fake.requests == [{"messages": HELLO, "temperature": 0}]
    assert fake.headers[0]["authorization"] == "Bearer k"


def test_stream_yields_every_chunk(call: Call, fake: FakeServer) -> None:
    fake.say("Hel", "lo €", headers={"x-truncated-messages": "2"})
    chunks = call(fake.url, "stream", HELLO)
    assert texts(chunks) == "Hello €"
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert fake.requests[0]["stream"] is True
    assert "authorization" not in fake.headers[0]


def test_models_and_health(call: Call, fake: FakeServer) -> None:
    assert [model["id"] for model in call(fake.url, "models")] == ["fake"]
    assert call(fake.url, "health") == {"status": "ok"}


def test_tokenize_counts_a_conversation(call: Call, fake: FakeServer) -> None:
    with pytest.raises(ApiError) as caught:
        call(fake.url, "tokenize", HELLO)
    assert caught.value.status == 404
    fake.tokens = {"count": 5, "max_model_len": 64}
    assert call(fake.url, "tokenize", HELLO, model=None) == fake.tokens


@pytest.mark.parametrize("name", ["chat", "stream"])
def test_a_full_server_says_when_to_come_back(call: Call, fake: FakeServer, name: str) -> None:
    fake.fail(429, {"error": {"message": "full"}}, headers={"retry-after": "3"})
    with pytest.raises(ApiError) as caught:
        call(fake.url, name, HELLO)
    assert (caught.value.status, caught.value.retry_after) == (429, "3")


def test_a_refusal_in_another_servers_words_is_not_lost(call: Call, fake: FakeServer) -> None:
    fake.fail(422, {"detail": "x is not permitted"})
    with pytest.raises(ApiError, match="^x is not permitted$"):
        call(fake.url, "chat", HELLO)


@pytest.mark.parametrize("name", ["chat", "stream"])
def test_a_refusal_is_an_api_error(call: Call, fake: FakeServer, name: str) -> None:
    fake.fail(400, {"error": {"message": "n is 9, the limit is 8", "param": "n", "code": "invalid_value"}})
    with pytest.raises(ApiError) as caught:
        call(fake.url, name, HELLO, n=9)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_value", "n")
    assert str(caught.value) == "n is 9, the limit is 8"


def test_an_error_frame_is_an_api_error(call: Call, fake: FakeServer) -> None:
    fake.send(frame({"error": {"message": "the step failed", "code": "internal_error"}}), b"data: [DONE]\n\n")
    with pytest.raises(ApiError, match="the step failed"):
        call(fake.url, "stream", HELLO)


def test_a_stream_cut_short_is_not_taken_for_an_answer(call: Call, fake: FakeServer) -> None:
    fake.send(frame({"choices": []}))
    with pytest.raises(BadAnswer, match="without"):
        call(fake.url, "stream", HELLO)


def test_a_page_instead_of_an_answer(call: Call, fake: FakeServer) -> None:
    fake.fail(200, b"<html>")
    with pytest.raises(BadAnswer, match="html"):
        call(fake.url, "chat", HELLO)


@pytest.mark.parametrize("name", ["chat", "stream", "health"])
def test_nobody_there(call: Call, name: str) -> None:
    with socket.socket() as taken:  # bound and not listening: refused for sure
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="no server answers"):
            call(f"http://127.0.0.1:{taken.getsockname()[1]}", name, *([] if name == "health" else [HELLO]))


def test_a_url_without_a_scheme(call: Call) -> None:
    with pytest.raises(Unreachable, match="http"):
        call("127.0.0.1", "health")


def test_leaving_a_stream_early_hangs_up(fake: FakeServer) -> None:
    fake.hold("one ")
    with Client(fake.url) as client, client.open_stream(HELLO) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        assert texts([next(reply.chunks)]) == "one "
    assert fake.hung_up.wait(10)


def test_leaving_an_async_stream_early_hangs_up(fake: FakeServer) -> None:
    async def run() -> None:
        async with AsyncClient(fake.url) as client, client.open_stream(HELLO) as reply:
            assert texts([await anext(reply.chunks)]) == "one "

    fake.hold("one ")
    asyncio.run(run())
    assert fake.hung_up.wait(10)
