"""The text level: choices, room, errors, and what happens when a reader leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from llm.batch import Batch
from llm.choice import TextDelta
from llm.config import SamplingParams
from llm.errors import (
    ContextLengthExceeded,
    DeadlinePassed,
    EngineStopped,
    QueueTimeout,
    ReaderTooSlow,
    StepFailed,
)
from llm.mailbox import EVENTS_PER_SEQUENCE
from llm.runner import StepOutput
from llm.sequence import FinishReason, Status, TokenEvent
from llm.sequence import Sequence as TokenSequence
from llm.terms import Terms
from llm.text import TextModel
from tests.fakes import one_by_one, tiny_model, tiny_text_model

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


async def whole(model: TextModel, params: SamplingParams, n: int = 1) -> dict[int, str]:
    texts = dict.fromkeys(range(n), "")
    async for delta in one_by_one(model.stream([65, 66], params, n)):
        texts[delta.choice] += delta.text
    return texts


def test_choices_differ_and_repeat_with_the_seed() -> None:
    async def twice() -> tuple[dict[int, str], dict[int, str]]:
        model = tiny_text_model()
        model.start()
        params = SamplingParams(max_tokens=20, temperature=1.5, seed=4)
        answers = await whole(model, params, 3), await whole(model, params, 3)
        await model.close()
        return answers

    first, second = asyncio.run(twice())
    assert first == second
    assert len(set(first.values())) == 3


def test_leaving_early_frees_the_blocks_and_the_mailbox() -> None:
    async def leave() -> None:
        model = tiny_text_model()
        model.start()
        stream = model.stream([1, 2], SamplingParams(max_tokens=60, temperature=0.0), 2)
        for _ in range(3):
            await anext(stream)
        await stream.aclose()
        assert not model._mailboxes
        while model.stats()[0].num_running:
            await asyncio.sleep(0)
        assert model.stats()[0].num_free_blocks == model.stats()[0].num_blocks
        await model.close()

    asyncio.run(leave())


def test_a_failed_step_reaches_the_reader_and_the_next_request_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> str:
        model = tiny_text_model()
        run = model.engines[0].runner.run

        def explode(batch: object) -> object:
            raise RuntimeError("no luck")

        model.engines[0].runner.run = explode  # type: ignore[method-assign, assignment]
        model.start()
        with pytest.raises(StepFailed, match="the server log says why"):
            await whole(model, GREEDY)
        model.engines[0].runner.run = run  # type: ignore[method-assign]
        answer = (await whole(model, GREEDY))[0]
        await model.close()
        return answer

    assert asyncio.run(fail())
    assert "no luck" in caplog.text


def test_closing_ends_open_streams_with_an_error_and_refuses_new_ones() -> None:
    async def close() -> None:
        model = tiny_text_model(tiny_model(num_positions=8192), max_model_len=8192)
        model.start()
        stream = model.stream([1], SamplingParams(max_tokens=8000, temperature=0.0))  # cannot end by itself
        await anext(stream)
        closing = asyncio.create_task(model.close())
        with pytest.raises(EngineStopped, match="stopping"):
            async for _ in stream:
                pass
        await closing
        with pytest.raises(EngineStopped):
            await whole(model, GREEDY)
        assert not model._mailboxes

    asyncio.run(close())


def test_room() -> None:
    model = tiny_text_model()
    assert model.check_room(60, None) == 4, "the default is clamped to the room left"
    assert model.check_room(60, 3) == 3
    assert model.check_room(60, 300) == 4
    with pytest.raises(
        ContextLengthExceeded, match="too long: it has 64 tokens, .* 64 tokens, prompt and reply together"
    ) as error:
        model.check_room(64, 5)
    assert error.value.code == "context_length_exceeded"
    assert model.max_prompt_bytes == 64


def test_an_engine_whose_thread_ended_gets_no_requests_while_another_lives() -> None:
    async def ask() -> list[int]:
        model = tiny_text_model()
        model.engines += tiny_text_model().engines
        model.engines[1].emit = model._deliver
        model.start()
        model.engines[0].stop()
        await asyncio.gather(*(whole(model, GREEDY) for _ in range(3)))
        await model.close()
        return [engine.stats().num_tokens for engine in model.engines]

    assert asyncio.run(ask()) == [0, 36]


def test_a_prompt_that_was_not_checked_fails_alone() -> None:
    async def ask() -> str:
        model = tiny_text_model()
        model.start()
        for prompt in ([], [1] * 64):
            with pytest.raises(AssertionError):
                await anext(model.stream(prompt, GREEDY))
        text = (await whole(model, GREEDY))[0]
        await model.close()
        return text

    assert asyncio.run(ask())


def test_a_stream_that_is_never_read_or_closed_at_once_costs_nothing() -> None:
    async def ignore() -> None:
        model = tiny_text_model()
        model.start()
        unread, closed = model.stream([1], GREEDY), model.stream([1], GREEDY)
        await closed.aclose()
        assert not model._mailboxes
        del unread
        await model.close()
        assert model.stats()[0].num_steps == 0

    asyncio.run(ignore())


def test_a_stop_string_ends_the_sequence_in_the_engine_too() -> None:
    """The text level sees the stop, the engine does not: its blocks must come back all the same."""

    async def ask() -> int:
        model = tiny_text_model(tiny_model(num_positions=8192), max_model_len=8192)
        model.start()
        params = SamplingParams(max_tokens=8000, temperature=0.0)
        stream = one_by_one(model.stream([65, 66], params, strip=False))
        said = ""
        while not said:
            said = (await anext(stream)).text
        await stream.aclose()
        stopping = SamplingParams(max_tokens=8000, temperature=0.0, stop=(said[0],))
        last = [delta async for delta in one_by_one(model.stream([65, 66], stopping, strip=False))][-1]
        assert (last.text, last.finish) == ("", FinishReason.STOP)
        while model.stats()[0].num_running:
            await asyncio.sleep(0)
        num_tokens = model.stats()[0].num_tokens
        await model.close()
        return num_tokens

    assert asyncio.run(ask()) < 8000


class Diary:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def submitted(self, sequences: Sequence[TokenSequence]) -> None:
        self.notes.append(f"submitted {len(sequences)}")

    def received(self, delta: TextDelta) -> None:
        self.notes.append(f"{delta.choice}:{delta.finish}" if delta.finish else "token")

    def ended(self, error: BaseException | None) -> None:
        self.notes.append(f"ended {type(error).__name__}")


def test_an_observer_hears_of_every_delta_and_of_one_end() -> None:
    async def watched(leave: bool) -> tuple[list[str], int]:
        model, diary, num_read = tiny_text_model(), Diary(), 0
        model.start()
        stream = model.stream([65], replace(GREEDY, max_tokens=3), 2, terms=Terms(observer=diary))
        async with aclosing(stream):
            async for deltas in stream:
                num_read += len(deltas)
                if leave:
                    break
        vector = Diary()
        await model.embed([65], terms=Terms(observer=vector))
        assert vector.notes == ["submitted 1", "ended NoneType"]
        await model.close()
        return diary.notes, num_read

    whole, num_read = asyncio.run(watched(leave=False))
    assert whole[0] == "submitted 2" and whole[-1] == "ended NoneType" and num_read == 6
    assert sorted(whole[1:-1]) == ["0:length", "1:length", *["token"] * 4]
    left, num_read = asyncio.run(watched(leave=True))
    assert left[0] == "submitted 2" and left[-1] == "ended GeneratorExit" and len(left) == 2 + num_read


def test_an_observer_hears_of_a_request_that_came_too_late() -> None:
    async def late() -> list[str]:
        model, diary = tiny_text_model(), Diary()
        model.start()
        await model.close()
        with pytest.raises(EngineStopped):
            await anext(model.stream([65], GREEDY, 2, terms=Terms(observer=diary)))
        assert not model._mailboxes
        return diary.notes

    assert asyncio.run(late()) == ["submitted 2", "ended EngineStopped"]


def test_a_request_whose_turn_does_not_come_gives_up_and_one_that_runs_does_not() -> None:
    async def wait() -> None:
        model = tiny_text_model(tiny_model(num_positions=4096), max_model_len=4096, max_num_seqs=1)
        model.start()
        terms = Terms(queue_timeout=0.01)
        long = replace(GREEDY, max_tokens=4000)
        running, waiting = (model.stream([65 + i], long, terms=terms) for i in range(2))
        await anext(running)
        with pytest.raises(QueueTimeout, match=r"within 0\.01 s"):
            await anext(waiting)
        await anext(running)
        await running.aclose()
        assert not model._mailboxes
        await model.close()

    asyncio.run(wait())


def test_a_request_ends_at_its_deadline_wherever_it_is() -> None:
    async def wait() -> None:
        model = tiny_text_model(tiny_model(num_positions=4096), max_model_len=4096, max_num_seqs=1)
        model.start()
        long = replace(GREEDY, max_tokens=4000)
        terms = Terms(deadline=time.monotonic() + 0.1)
        running, waiting = (model.stream([65 + i], long, terms=terms) for i in range(2))
        await anext(running)
        with pytest.raises(DeadlinePassed):
            await anext(waiting)
        with pytest.raises(DeadlinePassed):
            async for _ in running:
                pass
        while model.stats()[0].num_running:
            await asyncio.sleep(0)
        await model.close()

    asyncio.run(wait())


def test_a_request_that_ended_leaves_no_alarm_behind() -> None:
    async def end() -> None:
        model = tiny_text_model()
        model.start()
        async for _ in model.stream(
            [65], GREEDY, terms=Terms(queue_timeout=60, deadline=time.monotonic() + 60)
        ):
            pass
        await model.close()
        loop: Any = asyncio.get_running_loop()
        assert all(timer.cancelled() for timer in loop._scheduled)

    asyncio.run(end())


def test_a_reply_that_nobody_takes_is_ended_and_the_engine_goes_on() -> None:
    async def neglect() -> None:
        model = tiny_text_model(tiny_model(num_positions=4096), max_model_len=4096)
        model.start()
        neglected = one_by_one(model.stream([65], replace(GREEDY, max_tokens=4000)))
        await anext(neglected)
        while model.stats()[0].num_tokens < EVENTS_PER_SEQUENCE + 10:
            await asyncio.sleep(0)
        assert await whole(model, GREEDY)
        num_read = 1
        with pytest.raises(ReaderTooSlow):
            async for _ in neglected:
                num_read += 1
        # What was there could still be read; the first delta may have had more than one token in it.
        assert EVENTS_PER_SEQUENCE < num_read <= EVENTS_PER_SEQUENCE + 10
        await model.close()

    asyncio.run(neglect())


def test_closing_tells_readers_also_when_the_engine_is_frozen() -> None:
    async def close() -> None:
        model = tiny_text_model()
        (engine,) = model.engines
        entered, go_on, run = threading.Event(), threading.Event(), engine.runner.run

        def frozen(batch: Batch) -> StepOutput:
            entered.set()
            assert go_on.wait(60)
            return run(batch)

        engine.runner.run = frozen  # type: ignore[method-assign]
        model.start()
        reading = asyncio.create_task(whole(model, GREEDY))
        while not entered.is_set():
            await asyncio.sleep(0)
        assert not await model.close(timeout=0.01)
        with pytest.raises(EngineStopped, match="stopping"):
            await reading
        go_on.set()
        assert await model.close(timeout=60)

    asyncio.run(close())


def test_warming_up_draws_a_token_on_every_engine_and_fails_where_one_cannot() -> None:
    async def warm() -> None:
        model = tiny_text_model()
        model.start()
        await model.warm_up()
        assert model.stats()[0].num_tokens == 1 and not model._mailboxes
        await model.close()
        with pytest.raises(EngineStopped):
            await model.warm_up()

    asyncio.run(warm())


def scripted(*steps: list[TokenEvent]) -> TextModel:
    """A text model whose engine says these steps of the next sequence, all before the loop looks."""
    model = tiny_text_model()
    (engine,) = model.engines

    def submit(sequence: TokenSequence) -> None:
        for events in steps:
            engine.emit([replace(event, sequence_id=sequence.id) for event in events])
        sequence.status = Status.FINISHED

    engine.submit = submit  # type: ignore[method-assign]
    return model


def test_steps_that_wait_are_handed_over_by_one_call_and_read_together() -> None:
    async def read() -> tuple[list[list[str]], int]:
        model = scripted(*[[TokenEvent(0, 65 + i)] for i in range(3)], [TokenEvent(0, 68, FinishReason.STOP)])
        model.start()
        calls = 0
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def count(callback: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += callback == model._dispatch
            return call(callback, *args, **kwargs)

        loop.call_soon_threadsafe = count  # type: ignore[method-assign, assignment]
        lists = [[delta.text for delta in deltas] async for deltas in model.stream([65], GREEDY)]
        loop.call_soon_threadsafe = call  # type: ignore[method-assign]
        await model.close()
        return lists, calls

    assert asyncio.run(read()) == ([["A", "B", "C", "D"]], 1)


def test_what_came_before_an_error_is_read_before_it() -> None:
    async def read() -> list[str]:
        failed = TokenEvent(0, None, FinishReason.ERROR, StepFailed("no luck"))
        model = scripted([TokenEvent(0, 65)], [TokenEvent(0, 66)], [failed])
        model.start()
        texts = []
        with pytest.raises(StepFailed, match="no luck"):
            async for deltas in model.stream([65], GREEDY):
                texts += [delta.text for delta in deltas]
        await model.close()
        return texts

    assert asyncio.run(read()) == ["A", "B"]
