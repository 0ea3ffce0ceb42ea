"""Frames, comments, errors and goodbyes, over a raw ASGI connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from llm.errors import EngineStopped, StepFailed
from server.sse import PING
from tests.fakes import Gate, ScriptedModel
from tests.server.wire import CHAT, HELLO, Connection, app_of, call

STREAM = {**HELLO, "stream": True}


def connect(model: ScriptedModel, *, stream: bool = True, **settings: float) -> Connection:
    return Connection(app_of(model, **settings), CHAT, json.dumps({**HELLO, "stream": stream}).encode())


def wired(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test in an event loop of its own."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def test_headers_that_keep_proxies_from_buffering() -> None:
    answer = call(app_of(), CHAT, STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-seed"] and answer.headers["x-request-id"]
    assert answer.frames[-1] == "data: [DONE]"
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in answer.frames)


@wired
async def test_the_first_chunk_leaves_before_the_second_exists() -> None:
    gate = Gate()
    async with connect(ScriptedModel("first", gate, "second")).running() as connection:
        assert (await connection.next())["type"] == "http.response.start"  # type: ignore[index]
        body = (await connection.next())["body"]  # type: ignore[index]
        assert body.index(b'"role"') < body.index(b'"first"'), "in one write"
        gate.open()
        assert b'"second"' in (await connection.next())["body"]  # type: ignore[index]


@wired
async def test_silence_is_filled_with_comments_before_the_first_token_too() -> None:
    gate = Gate()
    async with connect(ScriptedModel(gate, "late"), keep_alive_interval=0.01).running() as connection:
        assert (await connection.next())["status"] == 200  # type: ignore[index]
        for _ in range(3):
            assert (await connection.next())["body"] == PING  # type: ignore[index]
        gate.open()
        while (body := (await connection.next())["body"]) == PING:  # type: ignore[index]
            pass
        assert b'"role"' in body


@wired
async def test_headers_wait_for_the_first_token() -> None:
    gate = Gate()
    connection = connect(ScriptedModel(gate, "x"))
    async with connection.running():
        for _ in range(50):
            await asyncio.sleep(0)
        assert connection.outgoing.empty()
        gate.open()
        assert (await connection.next())["status"] == 200  # type: ignore[index]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StepFailed("x"), 500, "step_failed"),
        (EngineStopped("x"), 503, "engine_stopped"),
        (ValueError(), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_token_is_an_http_error(
    error: Exception, status: int, code: str, stream: bool
) -> None:
    answer = call(app_of(ScriptedModel(error, "never")), CHAT, {**HELLO, "stream": stream})
    assert (answer.status, answer.error["code"]) == (status, code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StepFailed("x"), "step_failed"),
        (EngineStopped("x"), "engine_stopped"),
        (ValueError("/etc"), "internal_error"),
    ],
)
def test_an_error_after_it_is_a_frame_and_then_done(error: Exception, code: str) -> None:
    answer = call(app_of(ScriptedModel("some", error, "never")), CHAT, STREAM)
    assert answer.status == 200
    *text, last = answer.chunks
    assert set(last) == {"error"} and last["error"]["code"] == code and "/etc" not in last["error"]["message"]
    assert text[-1]["choices"][0]["delta"] == {"content": "some"}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in text), "a cut-off never says stop"


@wired
async def test_an_error_while_only_comments_were_sent_is_a_frame() -> None:
    gate = Gate()
    async with connect(
        ScriptedModel(gate, StepFailed("x"), "never"), keep_alive_interval=0.01
    ).running() as c:
        assert (await c.next())["status"] == 200  # type: ignore[index]
        gate.open()
        frames = b""
        while (message := await c.next()) is not None:
            frames += message["body"]
        assert b'"code": "step_failed"' in frames and frames.endswith(b"data: [DONE]\n\n")


@wired
async def test_a_client_that_leaves_midway_ends_its_reply() -> None:
    model = ScriptedModel("first", Gate(), "never")
    async with connect(model).running() as connection:
        for _ in range(2):
            await connection.next()
        assert model.num_open == 1
        connection.close()
    assert (model.num_open, model.num_aborted) == (0, 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("interval", [15.0, 0.01])
def test_a_client_that_leaves_before_the_first_token_ends_its_reply(stream: bool, interval: float) -> None:
    async def leave() -> ScriptedModel:
        model = ScriptedModel(Gate(), "never")
        connection = connect(model, stream=stream, keep_alive_interval=interval)
        async with connection.running():
            if stream and interval < 1:
                assert (await connection.next())["status"] == 200  # type: ignore[index]
            while model.num_open == 0:
                await asyncio.sleep(0)
            connection.close()
        return model

    model = asyncio.run(asyncio.wait_for(leave(), 60))
    assert (model.num_open, model.num_aborted) == (0, 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_request_ends_its_reply(stream: bool) -> None:
    """What the HTTP server does to requests that outlive its shutdown."""

    async def cancel() -> ScriptedModel:
        model = ScriptedModel(Gate(), "never")
        task = asyncio.create_task(connect(model, stream=stream).run())
        while model.num_open == 0:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return model

    model = asyncio.run(asyncio.wait_for(cancel(), 60))
    assert (model.num_open, model.num_aborted) == (0, 1)


@wired
async def test_a_client_that_stops_reading_is_cut_off() -> None:
    model = ScriptedModel("first", "second", Gate(), "never")
    connection = connect(model, send_timeout=0.05)
    forever = asyncio.Event()

    async def stalled(message: object) -> None:
        if b"first" in message.get("body", b""):  # type: ignore[attr-defined]
            await forever.wait()

    await connection.app(connection.scope, connection.incoming.get, stalled)  # type: ignore[arg-type]
    assert (model.num_open, model.num_aborted) == (0, 1)


@wired
async def test_a_client_whose_socket_breaks_on_the_headers_ends_its_reply() -> None:
    model = ScriptedModel("first", Gate(), "never")
    connection = connect(model)

    async def broken(message: object) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await connection.app(connection.scope, connection.incoming.get, broken)
    assert (model.num_open, model.num_aborted) == (0, 1)


def test_a_reply_that_ends_is_no_abort() -> None:
    for stream in (True, False):
        model = ScriptedModel()
        call(app_of(model), CHAT, {**HELLO, "stream": stream})
        assert (model.num_open, model.num_aborted) == (0, 0)


@wired
async def test_a_silence_between_tokens_is_filled_and_one_clock_ends_with_its_stream() -> None:
    gate = Gate()
    async with connect(ScriptedModel("first", gate, "late"), keep_alive_interval=0.01).running() as c:
        assert (await c.next())["status"] == 200  # type: ignore[index]
        assert b'"first"' in (await c.next())["body"]  # type: ignore[index]
        for _ in range(2):
            assert (await c.next())["body"] == PING  # type: ignore[index]
        gate.open()
        frames = b""
        while (message := await c.next()) is not None:
            frames += message["body"]
    assert frames.replace(PING, b"").startswith(b"data: {") and frames.endswith(b"data: [DONE]\n\n")
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert not [timer for timer in timers if not timer.cancelled() and "_watch" in repr(timer)]


@wired
async def test_a_comment_that_does_not_get_through_tells_of_a_client_that_stopped_reading() -> None:
    model = ScriptedModel("first", Gate(), "never")
    connection = connect(model, send_timeout=0.05, keep_alive_interval=0.01)
    forever = asyncio.Event()

    async def stalled(message: object) -> None:
        if message.get("body") == PING:  # type: ignore[attr-defined]
            await forever.wait()

    await connection.app(connection.scope, connection.incoming.get, stalled)  # type: ignore[arg-type]
    assert (model.num_open, model.num_aborted) == (0, 1)


@pytest.mark.parametrize("lead", range(-12, 13))
def test_a_goodbye_at_the_very_end_is_no_error(lead: int) -> None:
    """However the two meet: as many turns of the loop before or after the last token came."""

    async def meet() -> list[object]:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        gate = Gate()
        async with connect(ScriptedModel("first", gate, "last")).running() as connection:
            for _ in range(2):
                await connection.next()
            for act in (gate.open, connection.close) if lead < 0 else (connection.close, gate.open):
                act()
                for _ in range(abs(lead)):
                    await asyncio.sleep(0)
        return complaints

    assert asyncio.run(asyncio.wait_for(meet(), 60)) == []
