"""Pieces of completions → text_completion objects: a stream's chunks as finished JSON, or one whole reply.

Order of a stream: per choice the echo, when asked for; text as it comes; per choice one chunk without text
and with its finish_reason; then, when asked for, one chunk with usage. What never changes is encoded once.
Refuses to know frames and sockets.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from llm.choice import TextDelta
from llm.tokenizer import Tokenizer
from server.api.completion_pieces import Piece, PromptReplies, Shown
from server.api.logprobs import empty_completion_logprobs, prompt_entries
from server.api.reply import ReplyHead, dump, usage
from server.api.timings import Stopwatch

KIND = "text_completion"


@dataclass(frozen=True, slots=True)
class Report:
    """What a request wants to know besides its completions.

    Attributes:
        usage: a last chunk with usage; a whole reply always has it.
        running_usage: usage on every chunk.
        prompt_logprobs: alternatives beside each prompt token's log probability; None for none at all.
        timings: when tokens came; `per_token` each one's.
    """

    usage: bool = False
    running_usage: bool = False
    prompt_logprobs: int | None = None
    timings: bool = False
    per_token: bool = False


class Completions:
    """All replies of one request: reads deltas, counts tokens and time.

    Args:
        prompts: ids of each.
        tokenizer: of the model.
        shown: what is wanted of each reply.
        report: what else is wanted.
    """

    def __init__(self, prompts: list[list[int]], tokenizer: Tokenizer, shown: Shown, report: Report) -> None:
        n = shown.num_choices
        self.num_choices = n * len(prompts)
        self.shown, self.report = shown, report
        self.num_open = self.num_choices
        self._replies = [PromptReplies(i * n, prompt, tokenizer, shown) for i, prompt in enumerate(prompts)]
        self._tokenizer = tokenizer
        self._watch = Stopwatch(self.num_choices, per_token=report.per_token)
        self._num_prompt_tokens = sum(map(len, prompts))
        self._num_tokens = 0
        self._num_cached = [0] * len(prompts)

    def read(self, delta: TextDelta) -> Iterator[Piece]:
        """The delta's pieces; tokens and ends count as they are taken."""
        self._watch.see(delta)
        prompt, choice = divmod(delta.choice, self.shown.num_choices)
        if choice == 0:  # the others may start later, and find what it computed
            self._num_cached[prompt] = delta.num_cached
        for piece in self._replies[prompt].read(delta):
            self._num_tokens += piece.num_tokens
            self.num_open -= piece.finish is not None
            yield piece

    def usage(self) -> dict[str, Any]:
        """So far."""
        return usage(self._num_prompt_tokens, self._num_tokens, sum(self._num_cached))

    def timings(self) -> dict[str, Any]:
        """Of all replies, once they have ended."""
        return self._watch.read(sum(self._num_cached))

    def prompt_logprobs(self) -> Iterator[list[dict[str, dict[str, Any]] | None]]:
        """vLLM's, for each choice those of the prompt that it follows."""
        for replies in self._replies:
            scores, top = replies.scores, self.report.prompt_logprobs
            entries = prompt_entries(replies.prompt, scores, self._tokenizer, top)
            yield from [entries] * self.shown.num_choices


class ChunkWriter:
    """JSON of one stream's chunks: a constant front and back around what changes."""

    def __init__(self, head: ReplyHead, completions: Completions) -> None:
        self._completions = completions
        self._front = f'{dump(head.fields(KIND))[:-1]},"choices":['
        # With usage asked for, every chunk but the last says null, as OpenAI's does.
        self._back = ',"usage":null}' if completions.report.usage else "}"

    def write(self, delta: TextDelta) -> Iterator[bytes]:
        """What a choice gained; after the last choice's end the usage, if it is wanted."""
        for piece in self._completions.read(delta):
            if piece.text or piece.token_ids or piece.logprobs or piece.finish or piece.prompt is not None:
                yield self.chunk(piece)
        if not self._completions.num_open and self._completions.report.usage:
            totals = dump(self._completions.usage())
            yield f'{self._front}]{self._timings(last=True)},"usage":{totals}}}'.encode()

    def chunk(self, piece: Piece) -> bytes:
        """One piece."""
        reason = "null" if piece.finish is None else f'"{piece.finish.value}"'
        logprobs = "null" if piece.logprobs is None else dump(piece.logprobs)
        ids = ""
        if self._completions.shown.token_ids:
            ids = f',"token_ids":{dump(piece.token_ids)}'
            if piece.prompt is not None:
                ids += f',"prompt_token_ids":{dump(piece.prompt)}'
        back = self._back
        if self._completions.report.running_usage:
            back = f',"usage":{dump(self._completions.usage())}}}'
        return (
            f'{self._front}{{"index":{piece.choice},"text":{dump(piece.text)},"logprobs":{logprobs},'
            f'"finish_reason":{reason}{ids}}}]{self._timings()}{back}'
        ).encode()

    def _timings(self, *, last: bool = False) -> str:
        """On the stream's last chunk, when asked for: that with usage, or the last choice's end."""
        report = self._completions.report
        if not report.timings or self._completions.num_open or last is not report.usage:
            return ""
        return f',"timings":{dump(self._completions.timings())}'


async def chunks(
    deltas: AsyncGenerator[list[TextDelta], None], writer: ChunkWriter
) -> AsyncGenerator[list[bytes], None]:
    """One JSON text per chunk; those of deltas that came together, together."""
    async with aclosing(deltas):
        async for arrived in deltas:
            if made := [chunk for delta in arrived for chunk in writer.write(delta)]:
                yield made


async def complete(
    deltas: AsyncGenerator[list[TextDelta], None], head: ReplyHead, completions: Completions
) -> dict[str, Any]:
    """The whole reply as one object."""
    shown, report = completions.shown, completions.report
    choices = [_Choice(i, shown) for i in range(completions.num_choices)]
    async with aclosing(deltas):
        async for arrived in deltas:
            for delta in arrived:
                for piece in completions.read(delta):
                    choices[piece.choice].add(piece)
    reply = {
        **head.fields(KIND),
        "choices": [choice.written() for choice in choices],
        "usage": completions.usage(),
    }
    if report.prompt_logprobs is not None:
        for choice, scores in zip(reply["choices"], completions.prompt_logprobs(), strict=True):
            choice["prompt_logprobs"] = scores
    if report.timings:
        reply["timings"] = completions.timings()
    return reply


class _Choice:
    """What has come of one choice."""

    def __init__(self, index: int, shown: Shown) -> None:
        self._fields: dict[str, Any] = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
        if shown.num_top is not None:
            self._fields["logprobs"] = empty_completion_logprobs()
        if shown.token_ids:
            self._fields |= {"token_ids": [], "prompt_token_ids": None}
        self._text: list[str] = []

    def add(self, piece: Piece) -> None:
        self._text.append(piece.text)
        for name, values in (piece.logprobs or {}).items():
            self._fields["logprobs"][name] += values
        if piece.token_ids:
            self._fields["token_ids"] += piece.token_ids
        if piece.prompt is not None:
            self._fields["prompt_token_ids"] = piece.prompt
        if piece.finish is not None:
            self._fields["finish_reason"] = piece.finish.value

    def written(self) -> dict[str, Any]:
        assert self._fields["finish_reason"] is not None, "a stream of deltas ends every choice"
        return {**self._fields, "text": "".join(self._text)}
