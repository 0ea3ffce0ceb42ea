"""The text level: choices, room, errors, and what happens when a reader leaves."""

from __future__ import annotations

import asyncio

import pytest

from llm.config import SamplingParams
from llm.errors import ContextLengthExceeded, EngineStopped, StepFailed
from llm.sequence import FinishReason
from llm.text import TextModel
from tests.fakes import tiny_model, tiny_text_model

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


async def whole(model: TextModel, params: SamplingParams, n: int = 1) -> dict[int, str]:
    texts = dict.fromkeys(range(n), "")
    async for delta in model.stream([65, 66], params, n):
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
        return [engine.num_tokens for engine in model.engines]

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
        stream = model.stream([65, 66], params, strip=False)
        said = ""
        while not said:
            said = (await anext(stream)).text
        await stream.aclose()
        stopping = SamplingParams(max_tokens=8000, temperature=0.0, stop=(said[0],))
        last = [delta async for delta in model.stream([65, 66], stopping, strip=False)][-1]
        assert (last.text, last.finish) == ("", FinishReason.STOP)
        while model.stats()[0].num_running:
            await asyncio.sleep(0)
        num_tokens = model.stats()[0].num_tokens
        await model.close()
        return num_tokens

    assert asyncio.run(ask()) < 8000
