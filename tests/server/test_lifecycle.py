"""The server's life: when it is ready, when it is closed, how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI

from llm.errors import CheckpointError, EngineError
from server import app as app_module
from server.lifecycle import ALWAYS_OPEN, Phase
from server.settings import Settings
from tests.fakes import Gate, ScriptedModel
from tests.server.wire import CHAT, HELLO, app_of, ask, num_taken


class SlowToWarm(ScriptedModel):
    """Its first token comes when told."""

    def __init__(self) -> None:
        super().__init__()
        self.warm = Gate()

    async def warm_up(self) -> None:
        await self.warm.wait()


async def status(app: FastAPI, path: str) -> tuple[int, str]:
    answer = await ask(app, path)
    return answer.status, answer.json["status"]


def test_ready_after_the_first_token_and_not_before() -> None:
    async def live() -> None:
        model = SlowToWarm()
        app = app_of(model)
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)
            assert await status(app, "/ready") == (503, "warming")
            assert (await ask(app, "/ready")).headers["retry-after"]
            assert await status(app, "/live") == (200, "ok")
            assert (await ask(app, CHAT, HELLO)).status == 200, "who asks already is served"
            model.warm.open()
            assert await app.state.lifecycle.until_ready()
            assert await status(app, "/ready") == (200, "ready")
        assert (model.num_started, model.num_closed) == (1, 1)

    asyncio.run(live())


def test_what_is_asked_to_stop_before_it_was_ready_never_says_it_is() -> None:
    async def live() -> None:
        model = SlowToWarm()
        app = app_of(model)
        life = app.state.lifecycle
        async with app.router.lifespan_context(app):
            life.ask_to_stop()
            model.warm.open()
            assert not await life.until_ready()
            assert life.phase is Phase.DRAINING and life.failure is None
            assert await life.until_over(60, lambda: 0)

    asyncio.run(live())


def test_while_loading_it_lives_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        gate, loop = Gate(), asyncio.get_running_loop()

        def load(settings: Settings) -> list[Any]:
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(60)
            return [ScriptedModel()]

        monkeypatch.setattr(app_module, "load_models", load)
        app = app_module.create_app(Settings())
        async with app.router.lifespan_context(app):
            assert await status(app, "/live") == (200, "ok")
            assert await status(app, "/ready") == (503, "loading")
            assert await status(app, "/health") == (503, "loading")
            for path in ("/v1/models", "/tokenize", CHAT, "/nowhere"):
                answer = await ask(app, path, HELLO)
                assert (answer.status, answer.error["code"]) == (503, "model_loading")
                assert int(answer.headers["retry-after"]) >= 1
            for path in ALWAYS_OPEN:
                assert (await ask(app, path)).status in (200, 503)
            gate.open()
            assert await app.state.lifecycle.until_ready()
            assert await status(app, "/ready") == (200, "ready")
            assert (await ask(app, CHAT, HELLO)).status == 200

    asyncio.run(live())


def test_what_cannot_be_loaded_ends_it_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(settings: Settings) -> list[Any]:
        raise CheckpointError("model.pt: not a checkpoint")

    async def live() -> None:
        monkeypatch.setattr(app_module, "load_models", load)
        app = app_module.create_app(Settings())
        life = app.state.lifecycle
        async with app.router.lifespan_context(app):
            assert not await life.until_ready()
            assert await life.until_over(60, lambda: 0)
            assert await status(app, "/live") == (503, "dead")
            assert await status(app, "/ready") == (503, "dead")
            assert isinstance(life.failure, CheckpointError)

    asyncio.run(live())


def test_draining_refuses_new_work_lets_the_old_end_and_closes_connections() -> None:
    async def live() -> None:
        gate = Gate()
        app = app_of(ScriptedModel("first", gate, "last"))
        life, limits = app.state.lifecycle, app.state.limits
        async with app.router.lifespan_context(app):
            await life.until_ready()
            open_reply = asyncio.create_task(ask(app, CHAT, HELLO | {"stream": True}))
            while not num_taken(app):
                await asyncio.sleep(0)
            over = asyncio.create_task(life.until_over(60, lambda: limits.num_inside))
            life.ask_to_stop()
            assert await status(app, "/ready") == (503, "draining")
            assert await status(app, "/live") == (200, "ok")
            refused = await ask(app, CHAT, HELLO)
            assert (refused.status, refused.error["code"]) == (503, "server_draining")
            assert refused.headers["retry-after"] and refused.headers["connection"] == "close"
            models = await ask(app, "/v1/models")
            assert models.status == 200 and models.headers["connection"] == "close"
            assert not over.done()
            gate.open()
            assert await over
            assert (await open_reply).frames[-1] == "data: [DONE]"
            assert "error" not in (await open_reply).body.decode()

    asyncio.run(live())


def test_what_is_still_open_at_the_end_is_told() -> None:
    async def live() -> None:
        app = app_of(ScriptedModel("first", Gate(), "never"))
        life, limits = app.state.lifecycle, app.state.limits
        async with app.router.lifespan_context(app):
            open_reply = asyncio.create_task(ask(app, CHAT, HELLO | {"stream": True}))
            while not num_taken(app):
                await asyncio.sleep(0)
            life.ask_to_stop()
            assert await life.until_over(0.01, lambda: limits.num_inside)
            assert limits.num_inside == 0
            assert (await open_reply).frames[-1] == "data: [DONE]"
            assert '"engine_stopped"' in (await open_reply).frames[-2]

    asyncio.run(live())


def test_an_engine_that_dies_takes_the_server_along_after_every_reply_was_told() -> None:
    async def live() -> None:
        sick, well = ScriptedModel("a", Gate(), "b"), ScriptedModel("c", Gate(), "d", name="well")
        app = app_of(sick, well)
        life, limits = app.state.lifecycle, app.state.limits
        async with app.router.lifespan_context(app):
            await life.until_ready()
            asks = [ask(app, CHAT, HELLO | {"stream": True, "model": name}) for name in ("scripted", "well")]
            replies = [asyncio.create_task(one) for one in asks]
            while num_taken(app) < 2:
                await asyncio.sleep(0)
            sick.engine = replace(sick.engine, alive=False)
            assert await status(app, "/live") == (503, "dead"), "at once, before anybody has noticed"
            await asyncio.wait_for(life.until_over(60, lambda: limits.num_inside), 60)
            assert life.phase is Phase.DEAD and isinstance(life.failure, EngineError)
            for reply in replies:
                assert '"engine_stopped"' in (await reply).frames[-2]
            refused = await ask(app, CHAT, HELLO)
            assert (refused.status, refused.error["code"]) == (503, "engine_stopped")

    asyncio.run(live())


class Stuck(ScriptedModel):
    """Its engine's step never returns."""

    async def close(self, timeout: float | None = None) -> bool:
        await super().close(timeout)
        assert timeout is not None, "nobody may wait for it without end"
        return False


def test_what_was_left_behind_is_not_waited_for_again() -> None:
    async def live() -> None:
        app = app_of(Stuck())
        life = app.state.lifecycle
        async with app.router.lifespan_context(app):
            life.ask_to_stop()
            assert not await life.until_over(60, lambda: 0)
        assert not await life.close(), "whoever asks later is told the same"

    asyncio.run(live())


def test_an_engine_that_dies_ends_the_drain_and_a_late_signal_does_not_hide_it() -> None:
    async def live() -> None:
        model = ScriptedModel("a", Gate(), "b")
        app = app_of(model)
        life, limits = app.state.lifecycle, app.state.limits
        async with app.router.lifespan_context(app):
            await life.until_ready()
            reply = asyncio.create_task(ask(app, CHAT, HELLO | {"stream": True}))
            while not num_taken(app):
                await asyncio.sleep(0)
            life.ask_to_stop()
            over = asyncio.create_task(life.until_over(3600, lambda: limits.num_inside))
            await asyncio.sleep(0)
            model.engine = replace(model.engine, alive=False)
            await asyncio.wait_for(over, 60)
            life.ask_to_stop()
            assert life.phase is Phase.DEAD
            assert '"engine_stopped"' in (await reply).frames[-2]

    asyncio.run(live())


def test_stalled_is_work_without_a_step_for_longer_than_allowed() -> None:
    async def live() -> None:
        model = ScriptedModel()
        app = app_of(model, stall_timeout=2)
        for seconds, running, waiting, word in (
            (1.9, 1, 0, "ok"),
            (2.1, 1, 0, "stalled"),
            (2.1, 0, 1, "stalled"),
            (9e9, 0, 0, "ok"),
        ):
            model.engine = replace(
                model.engine, num_running=running, num_waiting=waiting, seconds_since_step=seconds
            )
            assert (await status(app, "/live"))[1] == word
            assert (await status(app, "/health"))[1] == word

    asyncio.run(live())
