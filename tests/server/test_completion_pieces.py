"""Several prompts as one stream: order, echo, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from llm.choice import ReplyToken, TextDelta
from llm.sequence import FinishReason
from llm.tokenizer import ByteTokenizer
from server.api.completion_pieces import MAX_WAITING, Piece, PromptReplies, Shown, merge
from tests.fakes import Gate, one_by_one, scripted_logprob

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


class Source:
    """Streams that say what they are told, and remember how many are open."""

    def __init__(self) -> None:
        self.num_open = 0

    async def stream(self, *steps: TextDelta | Gate | Exception) -> AsyncGenerator[list[TextDelta], None]:
        self.num_open += 1
        try:
            for step in steps:
                if isinstance(step, Gate):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield [step]
        finally:
            self.num_open -= 1


def said(choice: int, text: str, finish: FinishReason | None = None) -> TextDelta:
    return TextDelta(choice, text, 1, finish)


def test_choices_are_renumbered_and_each_keeps_its_order() -> None:
    async def run() -> list[TextDelta]:
        source = Source()
        one = source.stream(said(0, "a"), said(1, "b"), said(0, "c", STOP), said(1, "d", STOP))
        two = source.stream(said(1, "e", LENGTH), said(0, "f", STOP))
        got = [delta async for delta in one_by_one(merge([one, two], 2))]
        assert source.num_open == 0
        return got

    got = asyncio.run(run())
    for choice, text in enumerate(["ac", "bd", "f", "e"]):
        mine = [delta for delta in got if delta.choice == choice]
        assert "".join(delta.text for delta in mine) == text and mine[-1].finish is not None
    assert len(got) == 6


def test_a_prompt_that_waits_holds_up_nobody() -> None:
    async def run() -> str:
        source, gate = Source(), Gate()
        streams = [source.stream(gate, said(0, "late")), source.stream(*[said(0, "x")] * 50)]
        merged = one_by_one(merge(streams, 1))
        early = [await anext(merged) for _ in range(50)]
        gate.open()
        rest = [delta async for delta in merged]
        return "".join(delta.text for delta in early + rest)

    assert asyncio.run(run()) == "x" * 50 + "late"


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no")])
def test_the_first_failure_ends_all(error: Exception) -> None:
    async def run() -> int:
        source = Source()
        merged = merge([source.stream(Gate()), source.stream(said(0, "a"), error)], 1)
        with pytest.raises(type(error), match="no"):
            async for _ in merged:
                pass
        return source.num_open

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_leaving_early_closes_all(num_prompts: int) -> None:
    async def run() -> int:
        source = Source()
        streams = [source.stream(*[said(0, "x")] * MAX_WAITING, Gate()) for _ in range(num_prompts)]
        merged = merge(streams, 1)
        await anext(merged)
        assert source.num_open >= 1
        await merged.aclose()
        return source.num_open

    assert asyncio.run(run()) == 0


def scores(*ids: int) -> TextDelta:
    return TextDelta(0, "", 0, prompt_logprobs=tuple(scripted_logprob(i, 1) for i in ids))


def test_the_echo_waits_for_all_scores_and_goes_first() -> None:
    replies = PromptReplies(2, [97, 98, 99], ByteTokenizer(), Shown(2, echo=True, num_top=0))
    early = ReplyToken(120, b"x", False, scripted_logprob(120, 0), 0.0, 1)
    assert list(replies.read(scores(98))) == []
    assert list(replies.read(TextDelta(3, "x", 1, tokens=(early,)))) == [], "its prompt is not complete"
    heads = list(replies.read(scores(99)))
    assert [(piece.choice, piece.text) for piece in heads] == [(2, "abc"), (3, "abc"), (3, "x")]
    assert [piece.logprobs and piece.logprobs["text_offset"] for piece in heads] == [[0, 1, 2]] * 2 + [[3]]
    assert [piece.text for piece in replies.read(TextDelta(2, "y", 1))] == ["y"]


def test_without_an_echo_nothing_goes_first() -> None:
    replies = PromptReplies(0, [97], ByteTokenizer(), Shown())
    assert list(replies.read(said(0, "a"))) == [Piece(0, "a", 1)]
    assert list(replies.read(said(0, "b", STOP))) == [Piece(0, "b", 1), Piece(0, finish=STOP)]


def test_a_reply_nobody_wants_is_neither_shown_nor_counted() -> None:
    replies = PromptReplies(0, [97], ByteTokenizer(), Shown(echo=True, reply=False, num_top=0))
    token = ReplyToken(120, b"x", False, scripted_logprob(120, 0), 0.0, 1)
    head, end = replies.read(TextDelta(0, "x", 1, STOP, (token,)))
    assert (head.text, head.num_tokens) == ("a", 0)
    assert end == Piece(0, finish=LENGTH)


def test_an_end_that_the_engine_took_for_text_is_none() -> None:
    replies = PromptReplies(0, [97], ByteTokenizer(), Shown(num_top=0, ends=frozenset([120])))
    token = ReplyToken(120, b"x", False, scripted_logprob(120, 0), 0.0, 1)
    text, end = replies.read(TextDelta(0, "x", 1, LENGTH, (token,)))
    assert (text.text, text.num_tokens) == ("", 1)
    assert text.logprobs is not None and text.logprobs["token_logprobs"] == [-0.5]
    assert end.finish is STOP
    (other, end) = replies.read(TextDelta(0, "y", 1, LENGTH, (replace(token, id=121, data=b"y"),)))
    assert (other.text, end.finish) == ("y", LENGTH)
