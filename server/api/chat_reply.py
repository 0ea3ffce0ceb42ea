"""Deltas of a chat → the whole chat.completion object: the same deltas that a stream writes, put together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llm.choice import ReplyToken, TextDelta
from llm.sequence import Logprob
from llm.tokenizer import Tokenizer
from server.api.chat_delta import CallPart, ChatDelta, ChatReader
from server.api.logprobs import chat_entries, prompt_entries
from server.api.reply import ReplyHead, Wanted, usage
from server.api.timings import Stopwatch


@dataclass(slots=True)
class _Choice:
    """What has come of one choice."""

    content: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[ReplyToken] = field(default_factory=list)
    finish: str | None = None

    def add(self, delta: ChatDelta) -> None:
        self.content.append(delta.content)
        self.tokens += delta.source.tokens
        self.finish = delta.finish
        for part in delta.calls:
            self._add_call(part)

    def _add_call(self, part: CallPart) -> None:
        if part.name is not None:
            function = {"name": part.name, "arguments": ""}
            self.calls.append({"id": part.id, "type": "function", "function": function})
        self.calls[part.index]["function"]["arguments"] += part.arguments

    def message(self) -> dict[str, Any]:
        """OpenAI's message: content is null when there are only calls."""
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.calls:
            message |= {"content": content or None, "tool_calls": self.calls}
        return message


async def complete(
    deltas: AsyncGenerator[list[TextDelta], None],
    reader: ChatReader,
    head: ReplyHead,
    wanted: Wanted,
    tokenizer: Tokenizer,
    *,
    with_prompt_logprobs: bool,
) -> dict[str, Any]:
    """The whole reply as one object."""
    choices = [_Choice() for _ in range(wanted.num_choices)]
    scores: list[Logprob] = []
    watch = Stopwatch(wanted.num_choices, per_token=wanted.per_token)
    num_tokens = num_cached = 0
    async with aclosing(deltas):
        async for arrived in deltas:
            for delta in arrived:
                choices[delta.choice].add(reader.read(delta))
                scores += delta.prompt_logprobs
                num_tokens += delta.num_tokens
                watch.see(delta)
                if delta.choice == 0:  # the others may start later, and find what it computed
                    num_cached = delta.num_cached
    reply = {
        **head.fields("chat.completion"),
        "choices": [_written(i, choice, wanted, tokenizer) for i, choice in enumerate(choices)],
        "usage": usage(len(wanted.prompt), num_tokens, num_cached),
    }
    if with_prompt_logprobs:
        reply["prompt_logprobs"] = prompt_entries(wanted.prompt, scores, tokenizer)
    if wanted.token_ids:
        reply["prompt_token_ids"] = wanted.prompt
    if wanted.timings:
        reply["timings"] = watch.read(num_cached)
    return reply


def _written(index: int, choice: _Choice, wanted: Wanted, tokenizer: Tokenizer) -> dict[str, Any]:
    assert choice.finish is not None, "a stream of deltas ends every choice"
    logprobs = None
    if wanted.num_top is not None:
        entries = chat_entries(choice.tokens, tokenizer, wanted.num_top)
        logprobs = {"content": entries, "refusal": None}
    written = {
        "index": index,
        "message": choice.message(),
        "logprobs": logprobs,
        "finish_reason": choice.finish,
    }
    if wanted.token_ids:
        written["token_ids"] = [token.id for token in choice.tokens]
    return written
