"""Deltas of text → chat.completion.chunk objects, as finished JSON.

Order: a chunk with the role for every choice, chunks of content, per choice one empty delta with its
finish_reason, then, when asked for, one chunk with usage. What never changes is encoded once per stream and
the delta spliced in. Refuses to know frames and sockets.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llm.sequence import FinishReason
from llm.choice import TextDelta
from llm.text import TextModel


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every chunk of a reply, and the whole one, has in common."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, model: TextModel) -> ReplyHead:
        """A new reply of this model, under the name it is served by."""
        return cls(model.name, model.fingerprint)

    def fields(self, kind: str) -> dict[str, Any]:
        """The JSON object's first fields."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage(num_prompt_tokens: int, num_completion_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object; the prompt counts once however many choices it has."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


class ChunkWriter:
    """JSON of one stream's chunks: a constant front and back around what changes."""

    def __init__(self, head: ReplyHead, *, with_usage: bool) -> None:
        self._front = _dump(head.fields("chat.completion.chunk"))[:-1]
        # With usage asked for, every chunk but the last says null, as OpenAI's does.
        self._back = ',"usage":null}' if with_usage else "}"

    def role(self, choice: int) -> bytes:
        """A choice's first chunk."""
        return self._chunk(choice, '{"role":"assistant","content":""}', "null")

    def content(self, choice: int, text: str) -> bytes:
        """New text; the only chunk that is written once per token."""
        return self._chunk(choice, '{"content":' + _dump(text) + "}", "null")

    def finish(self, choice: int, reason: FinishReason) -> bytes:
        """A choice's last chunk."""
        return self._chunk(choice, "{}", f'"{reason.value}"')

    def usage(self, num_prompt_tokens: int, num_completion_tokens: int) -> bytes:
        """The stream's last chunk."""
        totals = _dump(usage(num_prompt_tokens, num_completion_tokens))
        return f'{self._front},"choices":[],"usage":{totals}}}'.encode()

    def _chunk(self, choice: int, delta: str, finish: str) -> bytes:
        return (
            f'{self._front},"choices":[{{"index":{choice},"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]'
            f"{self._back}"
        ).encode()


async def chunks(
    deltas: AsyncGenerator[TextDelta, None],
    head: ReplyHead,
    *,
    n: int,
    num_prompt_tokens: int,
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """One JSON text per chunk. Roles leave with the first delta: an error before it is an HTTP error."""
    writer = ChunkWriter(head, with_usage=with_usage)
    num_tokens, started = 0, False
    async with aclosing(deltas):
        async for delta in deltas:
            if not started:
                started = True
                for choice in range(n):
                    yield writer.role(choice)
            num_tokens += delta.num_tokens
            if delta.text:
                yield writer.content(delta.choice, delta.text)
            if delta.finish is not None:
                yield writer.finish(delta.choice, delta.finish)
    if with_usage:
        yield writer.usage(num_prompt_tokens, num_tokens)


def _dump(value: Any) -> str:
    """Compact JSON on one line, also for readers that take U+2028, U+2029 or U+0085 for a line's end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if text.isascii():
        return text
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
