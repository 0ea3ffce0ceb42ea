"""Adapters come to running engines and leave them: to all or none, in bounds, held by who needs them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from llm.adapt.adapter import Adapter
from llm.config import AdapterRoom, EngineConfig, SamplingParams
from llm.engine import Engine
from llm.errors import EngineStopped, OutOfMemory, RequestError
from llm.runner.eager import EagerRunner
from llm.sequence import Sequence
from llm.shelves import PlacedAdapter, Shelves
from tests.adapters import random_adapter
from tests.fakes import TINY, tiny_model

CONFIG = EngineConfig(max_model_len=64, max_num_seqs=4, block_size=4)
PIRATE = random_adapter(TINY, 1)


def engines(num: int = 2) -> list[Engine]:
    """On one model each."""
    made = [Engine(EagerRunner(tiny_model(), CONFIG), CONFIG, 257, lambda events: None) for _ in range(num)]
    for engine in made:
        engine.start()
    return made


def names(engine: Engine) -> set[str]:
    """What its runner computes with, once all that was posted is done."""
    engine.call(lambda: None).result(60)
    parts: dict[Any, dict[str, Any]] = engine.runner.shelf._parts  # type: ignore[attr-defined]
    return {name for by_name in parts.values() for name in by_name}


def run(work: Callable[[list[Engine]], Coroutine[Any, Any, None]]) -> None:
    made = engines()
    try:
        asyncio.run(asyncio.wait_for(work(made), 60))
    finally:
        for engine in made:
            engine.stop()


def test_every_engine_gets_a_copy_and_loses_it() -> None:
    async def work(made: list[Engine]) -> None:
        shelves = Shelves(made, AdapterRoom(2, 8))
        placed = await shelves.load("pirate", lambda: replace(PIRATE, digest="d"))
        assert shelves.on == {"pirate": placed} and placed.digest == "d"
        assert [names(engine) for engine in made] == [{placed.key}] * 2
        shelves.retire("pirate")
        assert not shelves.on and [names(engine) for engine in made] == [set()] * 2

    run(work)


def test_a_key_is_never_used_again() -> None:
    async def work(made: list[Engine]) -> None:
        shelves = Shelves(made, AdapterRoom(1, 8))
        keys = []
        for _ in range(3):
            keys.append((await shelves.load("a", lambda: PIRATE)).key)
            shelves.retire("a")
        assert len(set(keys)) == 3

    run(work)


def test_who_holds_one_keeps_it_and_its_place() -> None:
    async def work(made: list[Engine]) -> None:
        shelves = Shelves(made, AdapterRoom(1, 8))
        placed = await shelves.load("a", lambda: PIRATE)
        for _ in range(2):
            placed.hold()
        shelves.retire("a")
        placed.hold()  # a request's next prompt
        for _ in range(2):
            placed.let_go()
        assert names(made[0]) == {placed.key}
        with pytest.raises(RequestError, match=r"all 1 places \(--max-loras\) are taken; 1 are free when"):
            await shelves.load("b", lambda: PIRATE)
        placed.let_go()
        assert names(made[0]) == set()
        with pytest.raises(EngineStopped, match="no longer loaded"):
            placed.hold()
        await shelves.load("b", lambda: PIRATE)

    run(work)


def test_one_that_cannot_be_had_leaves_nothing() -> None:
    def fail() -> Adapter:
        raise MemoryError

    async def work(made: list[Engine]) -> None:
        shelves = Shelves(made, AdapterRoom(1, 8))
        with pytest.raises(MemoryError):
            await shelves.load("a", fail)
        prepare = made[1].runner.shelf.prepare
        made[1].runner.shelf.prepare = lambda name, adapter: fail  # type: ignore[assignment, method-assign]
        with pytest.raises(OutOfMemory, match="no memory for the adapter a"):
            await shelves.load("a", lambda: PIRATE)
        made[1].runner.shelf.prepare = prepare  # type: ignore[method-assign]
        assert not shelves.on and [names(engine) for engine in made] == [set()] * 2
        await shelves.load("a", lambda: PIRATE)

    run(work)


def test_a_load_that_is_given_up_leaves_nothing() -> None:
    async def work(made: list[Engine]) -> None:
        shelves = Shelves(made, AdapterRoom(1, 8))
        go_on = threading.Event()
        made[1].call(lambda: go_on.wait(60) and None)
        loading = asyncio.create_task(shelves.load("a", lambda: PIRATE))
        while made[1]._inbox.empty():
            await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        go_on.set()
        assert [names(engine) for engine in made] == [set()] * 2
        await shelves.load("a", lambda: PIRATE)

    run(work)


def test_a_stopped_engine_takes_none() -> None:
    async def work(made: list[Engine]) -> None:
        shelves = Shelves(made, AdapterRoom(1, 8))
        made[1].stop()
        with pytest.raises(EngineStopped):
            await shelves.load("a", lambda: PIRATE)
        assert not shelves.on and names(made[0]) == set()

    run(work)


def test_without_a_name_there_is_nothing_to_keep() -> None:
    base = PlacedAdapter()
    base.hold()
    base.let_go()
    assert (base.key, base.num_holders, base.is_retired) == ("", 0, False)


def test_what_is_called_on_an_engine_happens_between_steps_and_its_errors_stay_outside() -> None:
    (engine,) = engines(1)
    engine.submit(Sequence([1, 2, 3], SamplingParams(max_tokens=4)))
    on: list[str] = []
    engine.call(lambda: on.append(threading.current_thread().name)).result(60)
    failed = engine.call(lambda: [][0])
    assert isinstance(failed.exception(60), IndexError)
    assert on == ["engine-cpu"] and engine.stats().alive
    engine.stop()
    with pytest.raises(EngineStopped):
        engine.call(lambda: None)
