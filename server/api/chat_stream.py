"""Deltas of a chat → chat.completion.chunk objects, as finished JSON.

Order: a chunk with the role for every choice, chunks of content and tool calls, per choice one empty delta
with its finish_reason, then, when asked for, one chunk with usage. What never changes is encoded once per
stream and the delta spliced in. Refuses to know frames and sockets.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from llm.tokenizer import Tokenizer
from server.api.chat_delta import CallPart, ChatDelta
from server.api.logprobs import chat_entries
from server.api.reply import ReplyHead, Wanted, dump, usage
from server.api.timings import Stopwatch


class ChunkWriter:
    """JSON of one stream's chunks: a constant front and back around what changes."""

    def __init__(self, head: ReplyHead, wanted: Wanted, tokenizer: Tokenizer) -> None:
        self._wanted = wanted
        self._tokenizer = tokenizer
        self._front = dump(head.fields("chat.completion.chunk"))[:-1]
        # With usage asked for, every chunk but the last says null, as OpenAI's does.
        self._back = ',"usage":null}' if wanted.usage else "}"
        self._num_tokens = 0

    def roles(self) -> Iterator[bytes]:
        """Each choice's first chunk; the very first has the prompt's ids, when they are wanted."""
        extra = f',"prompt_token_ids":{dump(self._wanted.prompt)}' if self._wanted.token_ids else ""
        for choice in range(self._wanted.num_choices):
            yield self._chunk(choice, '{"role":"assistant","content":""}', "null", top=extra)
            extra = ""

    def delta(self, delta: ChatDelta, *, last: str = "") -> Iterator[bytes]:
        """What a choice gained, each kind in a chunk of its own.

        Args:
            last: more fields of the choice's last chunk.
        """
        choice = delta.source.choice
        self._num_tokens += delta.source.num_tokens
        about = self._about_tokens(delta) if self._wanted.tokens else None
        if delta.content or (about is not None and delta.source.tokens and not delta.calls):
            yield self._chunk(choice, '{"content":' + dump(delta.content) + "}", "null", about)
            about = None
        if delta.calls:
            calls = dump([call_part(part) for part in delta.calls])
            yield self._chunk(choice, f'{{"tool_calls":{calls}}}', "null", about)
        if delta.finish is not None:
            yield self._chunk(choice, "{}", f'"{delta.finish}"', top=last)

    def usage(self, extra: str = "") -> bytes:
        """The stream's last chunk."""
        return f'{self._front},"choices":[]{extra},"usage":{dump(self._usage())}}}'.encode()

    def _usage(self) -> dict[str, Any]:
        return usage(len(self._wanted.prompt), self._num_tokens)

    def _about_tokens(self, delta: ChatDelta) -> str:
        """The choice's fields about the tokens that came with the delta."""
        tokens, wanted = delta.source.tokens, self._wanted
        ids = f',"token_ids":{dump([token.id for token in tokens])}' if wanted.token_ids else ""
        if wanted.num_top is None or not tokens:
            return f'"logprobs":null{ids}'
        entries = chat_entries(tokens, self._tokenizer, wanted.num_top)
        return f'"logprobs":{dump({"content": entries, "refusal": None})}{ids}'

    def _chunk(
        self, choice: int, delta: str, finish: str, about: str | None = None, *, top: str = ""
    ) -> bytes:
        back = self._back
        if self._wanted.running_usage:
            back = f',"usage":{dump(self._usage())}}}'
        return (
            f'{self._front},"choices":[{{"index":{choice},"delta":{delta},{about or PLAIN},'
            f'"finish_reason":{finish}}}]{top}{back}'
        ).encode()


PLAIN = '"logprobs":null'


def call_part(part: CallPart) -> dict[str, Any]:
    """OpenAI's delta of a tool call: id, type and name in the first only, arguments as they go on."""
    if part.name is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    return {
        "index": part.index,
        "id": part.id,
        "type": "function",
        "function": {"name": part.name, "arguments": part.arguments},
    }


async def chunks(
    deltas: AsyncGenerator[ChatDelta, None], head: ReplyHead, wanted: Wanted, tokenizer: Tokenizer
) -> AsyncGenerator[bytes, None]:
    """One JSON text per chunk. Roles leave with the first delta: an error before it is an HTTP error."""
    writer = ChunkWriter(head, wanted, tokenizer)
    watch = Stopwatch(wanted.num_choices, per_token=wanted.per_token)
    num_open, started = wanted.num_choices, False
    timings = ""
    async with aclosing(deltas):
        async for delta in deltas:
            if not started:
                started = True
                for chunk in writer.roles():
                    yield chunk
            watch.see(delta.source)
            num_open -= delta.finish is not None
            if not num_open and wanted.timings:
                timings = f',"timings":{dump(watch.read())}'
            for chunk in writer.delta(delta, last="" if wanted.usage else timings):
                yield chunk
    if wanted.usage:
        yield writer.usage(timings)
