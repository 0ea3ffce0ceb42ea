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
from server.api.chat_delta import ChatDelta, chat_deltas
from server.api.chat_stream import ChunkWriter, chunks
from server.api.reply import ReplyHead, Wanted

BYTES = ByteTokenizer()
HEAD = ReplyHead('model "x"', "fp")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example("a\u2028b\u2029c\x85d\ne\rf")
def test_any_text_survives_on_a_single_line(text: str) -> None:
    delta = ChatDelta(TextDelta(3, text or "-", 1), text or "-")
    (raw,) = ChunkWriter(HEAD, Wanted([1]), BYTES).delta(delta)
    assert len(raw.decode().splitlines()) == 1, "also for readers that split lines on U+2028"
    chunk = json.loads(raw)
    assert chunk["choices"][0]["delta"] == {"content": text or "-"}
    assert chunk["choices"][0]["index"] == 3
    assert chunk["choices"][0]["finish_reason"] is None


def run(*deltas: TextDelta, n: int = 1, with_usage: bool = False) -> list[dict[str, object]]:
    async def source() -> AsyncGenerator[TextDelta, None]:
        for delta in deltas:
            yield delta

    async def collect() -> list[bytes]:
        wanted = Wanted([1, 2, 3, 4, 5], n, usage=with_usage)
        return [c async for c in chunks(chat_deltas(source(), n, None), HEAD, wanted, BYTES)]

    return [json.loads(chunk) for chunk in asyncio.run(collect())]


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
    async def failing() -> AsyncGenerator[TextDelta, None]:
        raise ValueError("before any token")
        yield

    async def first() -> None:
        await anext(chunks(chat_deltas(failing(), 1, None), HEAD, Wanted([1]), BYTES))

    with pytest.raises(ValueError, match="before any token"):
        asyncio.run(first())
