"""Adapters that come and go while the server answers: whom they serve, whom they disturb, who may do it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request

from llm.adapt.peft import CONFIG, WEIGHTS, save_adapter
from llm.config import SamplingParams
from llm.engine import Engine
from llm.errors import EngineStopped
from llm.sequence import TokenEvent
from server.app import create_app
from server.settings import load_settings
from tests.adapters import random_adapter
from tests.fakes import TINY, one_by_one
from tests.hostile import NASTY
from tests.llm.native_models import isas
from tests.server.wire import CHAT, Answer, Connection, app_of, ask, call

LOAD, UNLOAD, MODELS = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/models"
RUNNERS = ["eager", pytest.param("native", marks=pytest.mark.skipif(not isas(), reason="no compiler"))]
SAID = {"messages": [{"role": "user", "content": "tell me"}], "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two that fit, one of too high a rank; outside, one that nobody may name."""
    root = tmp_path_factory.mktemp("house") / "adapters"
    for seed, name in enumerate(("pirate", "poet"), start=1):
        save_adapter(root / name, random_adapter(TINY, seed), TINY)
    save_adapter(root / "wide", random_adapter(TINY, rank=9), TINY)
    save_adapter(root.parent / "outside", random_adapter(TINY), TINY)
    return root


def app_with(folder: Path, root: Path, *argv: str, runner: str = "eager") -> FastAPI:
    options = ["--checkpoint", str(folder), "--device", "cpu", "--runner", runner, "--threads", "1"]
    options += ["--adapter-dir", str(root), "--max-loras", "2", "--max-lora-rank", "8"]
    return create_app(load_settings([*options, *argv]))


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[FastAPI]:
    async with app.router.lifespan_context(app):
        assert await app.state.lifecycle.until_ready(), app.state.lifecycle.failure
        yield app


class Hold:
    """The engine stops between two steps once the first token of a reply is out, until it may go on."""

    def __init__(self, app: FastAPI) -> None:
        self._engine = engine_of(app)
        self._go_on = threading.Event()
        self._reached: Future[None] = Future()
        self._emit, self._engine.emit = self._engine.emit, self._tell

    def _tell(self, events: list[TokenEvent]) -> None:
        self._emit(events)
        if any(event.token_id is not None for event in events):
            self._engine.emit = self._emit
            self._engine.call(self._wait)

    def _wait(self) -> None:
        self._reached.set_result(None)
        self._go_on.wait(60)

    async def __aenter__(self) -> None:
        await asyncio.wrap_future(self._reached)
        assert self._engine.scheduler.running, "the reply is under way"

    async def __aexit__(self, *_: object) -> None:
        self._go_on.set()


def engine_of(app: FastAPI) -> Engine:
    (engine,) = app.state.registry.models[0].engines
    assert isinstance(engine, Engine)
    return engine


async def num_on_the_shelf(app: FastAPI) -> int:
    """How many adapters the runner computes with, once all that was posted is done."""
    engine = engine_of(app)
    await asyncio.wrap_future(engine.call(lambda: None))
    shelf: Any = engine.runner.shelf
    return (
        len(shelf.index) if hasattr(shelf, "index") else len({n for by in shelf._parts.values() for n in by})
    )


async def load(app: FastAPI, name: str, path: str | None = None) -> Answer:
    return await ask(app, LOAD, {"lora_name": name, "lora_path": path or name})


async def say(app: FastAPI, model: str, num: int = 24) -> Answer:
    return await ask(app, CHAT, SAID | {"model": model, "max_tokens": num})


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json["choices"][0]["message"]["content"])


async def read_stream(connection: Connection) -> str:
    """What is left of a stream."""
    body = b""
    while (message := await connection.next()) is not None:
        body += message.get("body", b"")
    chunks = [json.loads(f.removeprefix("data: ")) for f in body.decode().split("\n\n") if "{" in f]
    assert not any("error" in chunk for chunk in chunks), chunks
    return "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])


def stream(app: FastAPI, model: str, num: int = 60) -> Connection:
    body = SAID | {"model": model, "max_tokens": num, "stream": True}
    return Connection(app, CHAT, json.dumps(body).encode())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_loaded_adapter_is_the_one_given_at_start(
    tiny_folder: Path, adapter_dir: Path, runner: str
) -> None:
    async def talk() -> None:
        at_start = app_with(tiny_folder, adapter_dir, "--adapter", f"p={adapter_dir}/pirate", runner=runner)
        async with serving(at_start) as app:
            expected = await say(app, "tiny:p")
        async with serving(app_with(tiny_folder, adapter_dir, runner=runner)) as app:
            assert (await say(app, "tiny:p")).status == 404
            base = text_of(await say(app, "tiny"))
            loaded = await load(app, "p", "pirate")
            assert (loaded.status, loaded.json["id"]) == (200, "tiny:p")
            listed = (await ask(app, MODELS)).json["data"]
            assert [card["id"] for card in listed] == ["tiny", "tiny:p"] and listed[1] == loaded.json
            reply = await say(app, "tiny:p")
            assert text_of(reply) == text_of(expected) != base
            assert reply.json["system_fingerprint"] == expected.json["system_fingerprint"]
            assert text_of(await say(app, "tiny")) == base
            gone = await ask(app, UNLOAD, {"lora_name": "p"})
            assert gone.json == {"id": "tiny:p", "object": "model", "deleted": True}
            assert (await say(app, "tiny:p")).error["code"] == "model_not_found"
            assert len((await ask(app, MODELS)).json["data"]) == 1 and await num_on_the_shelf(app) == 0

    run(talk())


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stream_notices_nothing_of_a_load(tiny_folder: Path, adapter_dir: Path, runner: str) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir, runner=runner)) as app:
            alone = text_of(await say(app, "tiny", 60))
            hold = Hold(app)
            async with stream(app, "tiny").running() as connection:
                async with hold:
                    loading = asyncio.create_task(load(app, "pirate"))
                    while engine_of(app)._inbox.empty():
                        await asyncio.sleep(0)  # until it waits for the step's end
                    assert not loading.done()
                assert await read_stream(connection) == alone
                assert (await loading).status == 200

    run(talk())


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_unloaded_adapter_stays_for_the_stream_that_has_it(
    tiny_folder: Path, adapter_dir: Path, runner: str
) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir, "--max-loras", "1", runner=runner)) as app:
            await load(app, "pirate")
            alone = text_of(await say(app, "tiny:pirate", 60))
            hold = Hold(app)
            async with stream(app, "tiny:pirate").running() as connection:
                async with hold:
                    assert (await ask(app, UNLOAD, {"lora_name": "pirate"})).status == 200
                    assert (await say(app, "tiny:pirate")).status == 404
                    assert len((await ask(app, MODELS)).json["data"]) == 1
                    full = await load(app, "poet")
                    assert "--max-loras" in full.error["message"] and full.error["param"] == "lora_name"
                assert await read_stream(connection) == alone
            assert await num_on_the_shelf(app) == 0
            assert (await load(app, "poet")).status == 200, "its place is free"

    run(talk())


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_reload_under_the_same_name_answers_with_the_new_weights(
    tiny_folder: Path, adapter_dir: Path, runner: str
) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir, runner=runner)) as app:
            await load(app, "poet")
            await load(app, "x", "pirate")
            expected, before = await say(app, "tiny:poet"), await say(app, "tiny:x")
            again = await say(app, "tiny:x")
            assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, (
                "there is something to confuse"
            )
            await ask(app, UNLOAD, {"lora_name": "x"})
            assert (await load(app, "x", "poet")).status == 200
            after = await say(app, "tiny:x")
            assert after.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            assert text_of(after) == text_of(expected) != text_of(before)
            assert len({one.json["system_fingerprint"] for one in (expected, before, after)}) == 2

    run(talk())


def test_a_request_that_was_read_before_and_admitted_after_an_unload_is_a_404(
    tiny_folder: Path, adapter_dir: Path
) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir)) as app:
            await load(app, "pirate")
            adapted = app.state.registry.get("tiny:pirate")
            await ask(app, UNLOAD, {"lora_name": "pirate"})
            app.state.registry.models[0].served.append(adapted)
            assert (await say(app, "tiny:pirate")).error["code"] == "model_not_found"

    run(talk())


def test_what_is_admitted_keeps_its_adapter_before_and_between_its_prompts(
    tiny_folder: Path, adapter_dir: Path
) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir)) as app:
            await load(app, "pirate")
            adapted = app.state.registry.get("tiny:pirate")
            params = SamplingParams(max_tokens=8, temperature=0.0)
            before = [delta.text async for delta in one_by_one(adapted.stream([1, 2, 3], params))]
            request = Request({"type": "http", "state": {}})
            ticket = app.state.limits.admit(request, adapted, 2)
            await ask(app, UNLOAD, {"lora_name": "pirate"})
            for _ in range(2):
                assert await num_on_the_shelf(app) == 1
                after = [delta.text async for delta in one_by_one(adapted.stream([1, 2, 3], params))]
                assert after == before
            ticket.close()
            assert await num_on_the_shelf(app) == 0
            with pytest.raises(EngineStopped):
                await anext(adapted.stream([1, 2, 3], params))

    run(talk())


def test_what_is_logged_of_a_request_does_not_need_its_adapter_any_more(
    tiny_folder: Path, adapter_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir, "--log-requests", "--log-prompts")) as app:
            await load(app, "pirate")
            async with stream(app, "tiny:pirate").running() as connection:
                await connection.next()
                await ask(app, UNLOAD, {"lora_name": "pirate"})
                await read_stream(connection)

    with caplog.at_level("INFO"):
        run(talk())
    assert "tell me" in caplog.text and "model=tiny:pirate" in caplog.text


ESCAPES = [
    *("/etc", "..", "../outside", "pirate/../../outside", "pirate/..", ".", "", "./", "/", "//", "a\0b"),
    *("linked", "linked_file", "circle", "x" * 1024, "nowhere/../../outside", "pipe", "~", "~root"),
]


def test_no_path_leads_out_of_the_folder(tiny_folder: Path, tmp_path: Path) -> None:
    root, outside = tmp_path / "adapters", tmp_path / "outside"
    save_adapter(outside, random_adapter(TINY), TINY)
    save_adapter(root / "pirate", random_adapter(TINY), TINY)
    (root / "linked").symlink_to(outside)
    (root / "linked_file").mkdir()
    (root / "linked_file" / CONFIG).symlink_to(outside / CONFIG)
    (root / "linked_file" / WEIGHTS).symlink_to(outside / WEIGHTS)
    (root / "circle").symlink_to(root / "circle")
    (root / "inside").symlink_to(root / "pirate")
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / CONFIG)

    async def talk() -> None:
        async with serving(app_with(tiny_folder, root)) as app:
            for path in ESCAPES:
                answer = await ask(app, LOAD, {"lora_name": "a", "lora_path": path})
                assert (answer.status, answer.error["param"]) == (400, "lora_path"), path
                assert str(tmp_path) not in answer.body.decode()
            assert (await load(app, "a", "inside")).status == 200, (
                "a link that stays below is a folder like others"
            )

    run(talk())


BODIES: list[tuple[dict[str, Any], int, str, str]] = [
    ({}, 400, "missing_required_parameter", "lora_name"),
    ({"lora_name": "a"}, 400, "missing_required_parameter", "lora_path"),
    ({"lora_name": 1}, 400, "invalid_type", "lora_name"),
    ({"lora_name": "a", "lora_path": ["pirate"]}, 400, "invalid_type", "lora_path"),
    ({"lora_name": "a b", "lora_path": "pirate"}, 400, "invalid_value", "lora_name"),
    ({"lora_name": "a:b", "lora_path": "pirate"}, 400, "invalid_value", "lora_name"),
    ({"lora_name": "é", "lora_path": "pirate"}, 400, "invalid_value", "lora_name"),
    ({"lora_name": "a\n", "lora_path": "pirate"}, 400, "invalid_value", "lora_name"),
    ({"lora_name": "a" * 65, "lora_path": "pirate"}, 400, "invalid_value", "lora_name"),
    ({"lora_name": "a", "lora_path": "x" * 1025}, 400, "invalid_value", "lora_path"),
    ({"lora_name": "a", "lora_path": "nowhere"}, 400, "invalid_value", "lora_path"),
    ({"lora_name": "a", "lora_path": "wide"}, 400, "invalid_value", "lora_path"),
    ({"lora_name": "p", "lora_path": "pirate"}, 400, "invalid_value", "lora_name"),
    ({"lora_name": "a", "lora_path": "pirate", "base_model": "other"}, 404, "model_not_found", "base_model"),
    ({"lora_name": "a", "lora_path": "pirate", "base_model": "tiny:p"}, 400, "invalid_value", "base_model"),
    ({"lora_name": "a", "lora_path": "pirate", "base_model": {}}, 400, "invalid_type", "base_model"),
    (
        {"lora_name": "p", "lora_path": "poet", "load_inplace": True},
        400,
        "unsupported_parameter",
        "load_inplace",
    ),
]


def test_every_wrong_body_has_its_answer_and_changes_nothing(tiny_folder: Path, adapter_dir: Path) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir)) as app:
            await load(app, "p", "pirate")
            listed = (await ask(app, MODELS)).body
            for body, status, code, param in BODIES:
                answer = await ask(app, LOAD, body)
                told = (answer.status, answer.error["code"], answer.error["param"])
                assert told == (status, code, param), (body, answer.body)
                assert str(adapter_dir.parent) not in answer.body.decode() and len(answer.body) < 900
            for raw in (b"", b"[]", b"\xff", b'{"lora_name": NaN}', b'{"a":' * 99):
                assert (await ask(app, LOAD, raw)).error["code"] == "invalid_json"
                assert (await ask(app, UNLOAD, raw)).error["code"] == "invalid_json"
            missing = await ask(app, UNLOAD, {"lora_name": "q"})
            assert (missing.status, missing.error["code"], missing.error["param"]) == (
                404,
                "model_not_found",
                "lora_name",
            )
            assert (await ask(app, MODELS)).body == listed
            extra = await ask(app, UNLOAD, {"lora_name": "p", "lora_int_id": 3})
            assert extra.headers["x-ignored-params"] == "lora_int_id"

    run(talk())


def test_no_value_is_our_fault(tiny_folder: Path, adapter_dir: Path) -> None:
    good = {"lora_name": "a", "lora_path": "nowhere"}

    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir)) as app:
            for field in ("lora_name", "lora_path", "base_model", "load_inplace", "more"):
                for value in NASTY:
                    for path in (LOAD, UNLOAD):
                        answer = await ask(app, path, json.dumps(good | {field: value}).encode())
                        assert answer.status in (400, 404), (path, field, value, answer.body)
                        assert answer.error["message"].isprintable()
            assert await num_on_the_shelf(app) == 0

    run(talk())


def test_bounds_and_names_hold_while_several_come_at_once(tiny_folder: Path, adapter_dir: Path) -> None:
    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir)) as app:
            same = await asyncio.gather(*(load(app, "p", "pirate") for _ in range(4)))
            assert sorted(answer.status for answer in same) == [200, 400, 400, 400]
            many = await asyncio.gather(*(load(app, f"q{i}", "poet") for i in range(4)))
            assert sorted(answer.status for answer in many) == [200, 400, 400, 400]
            assert len((await ask(app, MODELS)).json["data"]) == 3 and await num_on_the_shelf(app) == 2
            for answer in (*same, *many):
                if answer.status == 400:
                    assert answer.error["param"] == "lora_name" and answer.error["code"] == "invalid_value"

    run(talk())


def test_a_broken_adapter_leaves_no_trace(tiny_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    save_adapter(root / "cut", random_adapter(TINY), TINY)
    weights = root / "cut" / WEIGHTS
    whole = weights.read_bytes()

    async def talk() -> None:
        async with serving(app_with(tiny_folder, root)) as app:
            for data in (whole[: len(whole) // 2], b"", b"\xff" * 64, whole + b"x", b"\0" * (9 << 20)):
                weights.write_bytes(data)
                answer = await load(app, "cut")
                assert (answer.status, answer.error["param"]) == (400, "lora_path"), answer.body
                assert answer.error["message"].startswith("lora_path: cut/"), answer.body
            weights.write_bytes(whole)
            assert (await load(app, "cut")).status == 200 and await num_on_the_shelf(app) == 1

    run(talk())


def test_only_administering_keys_may(tiny_folder: Path, adapter_dir: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("user: aaaa\nboss: {key: bbbb, admin: true}\n")
    keys.chmod(0o600)
    options = ("--api-key-file", str(keys), "--api-key", "cccc")

    async def talk() -> None:
        async with serving(app_with(tiny_folder, adapter_dir, *options)) as app:
            for key, status in (("", 401), ("aaaa", 403), ("bbbb", 200), ("cccc", 200)):
                bearer = {"authorization": f"Bearer {key}"}
                for path, body in (
                    (LOAD, {"lora_name": "p", "lora_path": "pirate"}),
                    (UNLOAD, {"lora_name": "p"}),
                ):
                    answer = await ask(app, path, body, headers=bearer)
                    assert answer.status == status, answer.body
                    if status == 403:
                        assert (
                            answer.error["code"] == "admin_key_required" and "user" in answer.error["message"]
                        )

    run(talk())


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_without_a_folder_nobody_may(path: str) -> None:
    answer = call(app_of(), path, b"not even JSON", "POST")
    assert (answer.status, answer.error["code"]) == (403, "adapter_loading_off")
    assert "--adapter-dir" in answer.error["message"]
