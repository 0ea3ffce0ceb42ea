"""Chunks of completions: their order, what is constant, and text on a single line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm.choice import TextDelta, Timing
from llm.sequence import FinishReason
from llm.tokenizer import ByteTokenizer
from server.api.completion_pieces import Piece, Shown
from server.api.completion_stream import ChunkWriter, Completions, Report, chunks, complete
from server.api.reply import ReplyHead
from tests.fakes import one_by_one

HEAD = ReplyHead('model "x"', "fp", id="cmpl-1")
PROMPT = [104, 105]
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def completions(
    shown: Shown | None = None, report: Report | None = None, num_prompts: int = 1
) -> Completions:
    return Completions([PROMPT] * num_prompts, ByteTokenizer(), shown or Shown(), report or Report())


async def source(*deltas: TextDelta) -> AsyncGenerator[list[TextDelta], None]:
    for delta in deltas:
        yield [delta]


def streamed(of: Completions, *deltas: TextDelta) -> list[dict[str, Any]]:
    async def collect() -> list[bytes]:
        return [chunk async for chunk in one_by_one(chunks(source(*deltas), ChunkWriter(HEAD, of)))]

    return [json.loads(chunk) for chunk in asyncio.run(collect())]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example("a\u2028b\u2029c\x85d\ne\rf")
def test_any_text_survives_on_a_single_line(text: str) -> None:
    raw = ChunkWriter(HEAD, completions()).chunk(Piece(3, text))
    assert len(raw.decode().splitlines()) == 1
    assert json.loads(raw)["choices"] == [{"index": 3, "text": text, "logprobs": None, "finish_reason": None}]


def test_the_order_of_a_stream() -> None:
    shown, report = Shown(2, echo=True), Report(usage=True)
    deltas = [
        TextDelta(1, "b", 1),
        TextDelta(0, "", 1),
        TextDelta(2, "c", 1),
        TextDelta(0, "a", 1, STOP),
        TextDelta(1, "", 1, LENGTH),
        TextDelta(3, "d", 1, STOP),
        TextDelta(2, "e", 1, STOP),
    ]
    got = streamed(completions(shown, report, num_prompts=2), *deltas)
    assert [(c["index"], c["text"], c["finish_reason"]) for chunk in got for c in chunk["choices"]] == [
        (0, "hi", None),
        (1, "hi", None),
        (1, "b", None),
        (2, "hi", None),
        (3, "hi", None),
        (2, "c", None),
        (0, "a", None),
        (0, "", "stop"),
        (1, "", "length"),
        (3, "d", None),
        (3, "", "stop"),
        (2, "e", None),
        (2, "", "stop"),
    ]
    assert got[-1]["choices"] == [] and all(chunk["usage"] is None for chunk in got[:-1])
    assert got[-1]["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 7,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    same = {json.dumps({**chunk, "choices": 0, "usage": 0}) for chunk in got}
    assert same == {json.dumps({**HEAD.fields("text_completion"), "choices": 0, "usage": 0})}


def test_without_usage_asked_for_there_is_none() -> None:
    assert all("usage" not in chunk for chunk in streamed(completions(), TextDelta(0, "a", 1, STOP)))


def test_running_usage_is_on_every_chunk() -> None:
    report = Report(usage=True, running_usage=True)
    got = streamed(completions(None, report), TextDelta(0, "a", 1), TextDelta(0, "b", 1, STOP))
    assert [chunk["usage"]["completion_tokens"] for chunk in got] == [1, 2, 2, 2]
    alone = streamed(completions(None, Report(running_usage=True)), TextDelta(0, "a", 1, STOP))
    assert [chunk["usage"]["total_tokens"] for chunk in alone] == [3, 3]


@pytest.mark.parametrize("usage", [True, False])
def test_timings_are_on_the_last_chunk_alone(usage: bool) -> None:
    ended = [TextDelta(i, "a", 1, STOP, timing=Timing(0.0, 0.01, 0.02 + i, 0.02 + i, 1)) for i in range(2)]
    got = streamed(completions(None, Report(usage=usage, timings=True), num_prompts=2), *ended)
    assert ["timings" in chunk for chunk in got] == [False] * (len(got) - 1) + [True]
    assert got[-1]["timings"]["queue_ms"] == 10.0 and got[-1]["timings"]["ttft_ms"] == 20.0


def test_ids_of_the_prompt_come_first_and_once() -> None:
    got = streamed(completions(Shown(token_ids=True)), TextDelta(0, "a", 1), TextDelta(0, "b", 1, STOP))
    choices = [chunk["choices"][0] for chunk in got]
    assert [choice.get("prompt_token_ids") for choice in choices] == [PROMPT, None, None, None]
    assert all(choice["token_ids"] == [] for choice in choices), "these deltas carry no tokens"


def test_nothing_leaves_before_the_first_delta_and_an_error_is_the_readers() -> None:
    async def failing() -> AsyncGenerator[list[TextDelta], None]:
        raise ValueError("before any token")
        yield

    async def first() -> None:
        await anext(chunks(failing(), ChunkWriter(HEAD, completions(Shown(echo=True)))))

    with pytest.raises(ValueError, match="before any token"):
        asyncio.run(first())


def test_the_whole_reply_is_the_streams_chunks_joined() -> None:
    deltas = [TextDelta(0, "a", 1), TextDelta(1, "b", 1, LENGTH), TextDelta(0, "c", 1, STOP)]
    reply = asyncio.run(complete(source(*deltas), HEAD, completions(Shown(2, echo=True))))
    assert reply["choices"] == [
        {"index": 0, "text": "hiac", "logprobs": None, "finish_reason": "stop"},
        {"index": 1, "text": "hib", "logprobs": None, "finish_reason": "length"},
    ]
    assert reply["usage"]["completion_tokens"] == 3 and "timings" not in reply
