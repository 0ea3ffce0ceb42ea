"""Chunks are JSON on one line, whatever the text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm.choice import TextDelta
from llm.sequence import FinishReason
from llm.tokenizer import ByteTokenizer
from server.api.chat_delta import CallPart, ChatDelta, ChatReader
from server.api.chat_stream import ChunkWriter, chunks
from server.api.reply import ReplyHead, Wanted
from tests.fakes import one_by_one

BYTES = ByteTokenizer()
HEAD = ReplyHead('model "x"', "fp")


def written(wanted: Wanted, *deltas: ChatDelta) -> list[bytes]:
    """Chunks of a stream with these deltas, roles first."""
    writer = ChunkWriter(HEAD, wanted, BYTES)
    return [chunk for delta in deltas for chunk in writer.write(delta)]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example("a\u2028b\u2029c\x85d\ne\rf")
def test_any_text_survives_on_a_single_line(text: str) -> None:
    delta = ChatDelta(TextDelta(1, text or "-", 1), text or "-")
    _, _, raw, *_ = written(Wanted([1], 2), ChatDelta(TextDelta(1, "", 1), ""), delta)
    assert len(raw.decode().splitlines()) == 1, "also for readers that split lines on U+2028"
    chunk = json.loads(raw)
    assert chunk["choices"][0]["delta"] == {"content": text or "-"}
    assert chunk["choices"][0]["index"] == 1
    assert chunk["choices"][0]["finish_reason"] is None


def run(*deltas: TextDelta, n: int = 1, with_usage: bool = False) -> list[dict[str, object]]:
    async def source() -> AsyncGenerator[list[TextDelta], None]:
        for delta in deltas:
            yield [delta]

    async def collect() -> list[bytes]:
        writer = ChunkWriter(HEAD, Wanted([1, 2, 3, 4, 5], n, usage=with_usage), BYTES)
        return [c async for c in one_by_one(chunks(source(), ChatReader(n, None), writer))]

    return [json.loads(chunk) for chunk in asyncio.run(collect())]


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), usage=st.booleans())
def test_a_chunk_of_text_alone_is_spliced_into_what_the_long_way_writes(text: str, usage: bool) -> None:
    """A delta that also calls goes the long way, which writes its text first."""
    wanted = Wanted([1], usage=usage)
    call = CallPart(0, "{}", "call_1", "f")
    _, spliced = written(wanted, ChatDelta(TextDelta(0, text, 1), text))
    _, whole, _ = written(wanted, ChatDelta(TextDelta(0, text, 1), text, (call,)))
    assert spliced == whole


def test_what_came_together_leaves_together() -> None:
    async def source() -> AsyncGenerator[list[TextDelta], None]:
        yield [TextDelta(0, "a", 1), TextDelta(0, "b", 1)]
        yield [TextDelta(0, "", 1)]
        yield [TextDelta(0, "c", 1, FinishReason.STOP)]

    async def collect() -> list[int]:
        writer = ChunkWriter(HEAD, Wanted([1], usage=True), BYTES)
        return [len(together) async for together in chunks(source(), ChatReader(1, None), writer)]

    assert asyncio.run(collect()) == [3, 3], (
        "a role and two texts; text, end and usage; and nothing for no text"
    )


def test_the_order_of_a_stream_with_two_choices() -> None:
    stop, length = FinishReason.STOP, FinishReason.LENGTH
    got = run(
        TextDelta(1, "b", 1),
        TextDelta(0, "", 1),
        TextDelta(0, "aa", 1, stop),
        TextDelta(1, "", 1, length),
        n=2,
        with_usage=True,
    )
    assert [c["choices"] and (c["choices"][0]["index"], c["choices"][0]["delta"]) for c in got] == [  # type: ignore[index]
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
        (1, {"content": "b"}),
        (0, {"content": "aa"}),
        (0, {}),
        (1, {}),
        [],
    ]
    assert [c["choices"][0]["finish_reason"] for c in got[:-1]] == [None] * 4 + ["stop", "length"]  # type: ignore[index]
    assert got[-1]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert all(c["usage"] is None for c in got[:-1])
    same = [{k: c[k] for k in ("id", "object", "created", "model", "system_fingerprint")} for c in got]
    assert all(s == same[0] for s in same) and same[0]["model"] == 'model "x"'


def test_without_usage_asked_for_there_is_no_usage() -> None:
    assert all("usage" not in c for c in run(TextDelta(0, "a", 1, FinishReason.STOP)))


def test_nothing_leaves_before_the_first_delta() -> None:
    async def failing() -> AsyncGenerator[list[TextDelta], None]:
        raise ValueError("before any token")
        yield

    async def first() -> None:
        await anext(chunks(failing(), ChatReader(1, None), ChunkWriter(HEAD, Wanted([1]), BYTES)))

    with pytest.raises(ValueError, match="before any token"):
        asyncio.run(first())
