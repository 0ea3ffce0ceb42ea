"""Deltas of a chat → chat.completion.chunk objects, as finished JSON.

Order: a chunk with the role for every choice, chunks of content and tool calls, per choice one empty delta
with its finish_reason, then, when asked for, one chunk with usage. What never changes is encoded once per
stream and the delta spliced in. Refuses to know frames and sockets.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from llm.choice import TextDelta
from llm.tokenizer import Tokenizer
from server.api.chat_delta import CallPart, ChatDelta, ChatReader
from server.api.logprobs import chat_entries
from server.api.reply import ReplyHead, Wanted, dump, usage
from server.api.timings import Stopwatch

PLAIN = '"logprobs":null'


class ChunkWriter:
    """JSON of one stream's chunks: a constant front and back around what changes."""

    def __init__(self, head: ReplyHead, wanted: Wanted, tokenizer: Tokenizer) -> None:
        self._wanted = wanted
        self._tokenizer = tokenizer
        self._front = f'{dump(head.fields("chat.completion.chunk"))[:-1]},"choices":['
        # With usage asked for, every chunk but the last says null, as OpenAI's does.
        self._back = ',"usage":null}' if wanted.usage else "}"
        # Around the text of a chunk that says nothing else, nearly all of them.
        choices = range(wanted.num_choices)
        self._openings = [f'{self._front}{{"index":{i},"delta":{{"content":' for i in choices]
        self._closing = f'}},{PLAIN},"finish_reason":null}}]{self._back}'
        self._is_plain = not (wanted.tokens or wanted.running_usage)
        self._watch = Stopwatch(wanted.num_choices, per_token=wanted.per_token)
        self._has_begun = False
        self._num_open = wanted.num_choices
        self._num_tokens = 0
        self._num_cached = 0

    def write(self, delta: ChatDelta) -> list[bytes]:
        """What a choice gained; roles before the first delta's, usage after the last one's."""
        chunks = [] if self._has_begun else list(self._roles())
        self._has_begun = True
        self._num_tokens += delta.source.num_tokens
        if delta.source.choice == 0:  # the others may start later, and find what it computed
            self._num_cached = delta.source.num_cached
        self._watch.see(delta.source)
        if not self._is_plain or delta.calls or delta.finish is not None:
            chunks += self._write_all(delta)
        elif delta.content:
            opening = self._openings[delta.source.choice]
            chunks.append(f"{opening}{dump(delta.content)}{self._closing}".encode())
        return chunks

    def _roles(self) -> Iterator[bytes]:
        """Each choice's first chunk; the very first has the prompt's ids, when they are wanted."""
        extra = f',"prompt_token_ids":{dump(self._wanted.prompt)}' if self._wanted.token_ids else ""
        for choice in range(self._wanted.num_choices):
            yield self._chunk(choice, '{"role":"assistant","content":""}', "null", top=extra)
            extra = ""

    def _write_all(self, delta: ChatDelta) -> Iterator[bytes]:
        """Whatever a delta says, each kind in a chunk of its own."""
        choice = delta.source.choice
        about = self._about_tokens(delta) if self._wanted.tokens else None
        if delta.content or (about is not None and delta.source.tokens and not delta.calls):
            yield self._chunk(choice, '{"content":' + dump(delta.content) + "}", "null", about)
            about = None
        if delta.calls:
            calls = dump([call_part(part) for part in delta.calls])
            yield self._chunk(choice, f'{{"tool_calls":{calls}}}', "null", about)
        if delta.finish is not None:
            yield from self._end(choice, delta.finish)

    def _end(self, choice: int, finish: str) -> Iterator[bytes]:
        """A choice's last chunk, and after the last choice's that with usage; the very last has timings."""
        self._num_open -= 1
        timings = ""
        if not self._num_open and self._wanted.timings:
            timings = f',"timings":{dump(self._watch.read(self._num_cached))}'
        yield self._chunk(choice, "{}", f'"{finish}"', top="" if self._wanted.usage else timings)
        if not self._num_open and self._wanted.usage:
            yield f'{self._front}]{timings},"usage":{dump(self._usage())}}}'.encode()

    def _usage(self) -> dict[str, Any]:
        return usage(len(self._wanted.prompt), self._num_tokens, self._num_cached)

    def _about_tokens(self, delta: ChatDelta) -> str:
        """The choice's fields about the tokens that came with the delta."""
        tokens, wanted = delta.source.tokens, self._wanted
        ids = f',"token_ids":{dump([token.id for token in tokens])}' if wanted.token_ids else ""
        if wanted.num_top is None or not tokens:
            return f"{PLAIN}{ids}"
        entries = chat_entries(tokens, self._tokenizer, wanted.num_top)
        return f'"logprobs":{dump({"content": entries, "refusal": None})}{ids}'

    def _chunk(
        self, choice: int, delta: str, finish: str, about: str | None = None, *, top: str = ""
    ) -> bytes:
        back = self._back
        if self._wanted.running_usage:
            back = f',"usage":{dump(self._usage())}}}'
        return (
            f'{self._front}{{"index":{choice},"delta":{delta},{about or PLAIN},'
            f'"finish_reason":{finish}}}]{top}{back}'
        ).encode()


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
    deltas: AsyncGenerator[list[TextDelta], None], reader: ChatReader, writer: ChunkWriter
) -> AsyncGenerator[list[bytes], None]:
    """One JSON text per chunk; those of deltas that came together, together. Roles leave with the first
    delta: an error before it is an HTTP error.
    """
    async with aclosing(deltas):
        async for arrived in deltas:
            if made := [chunk for delta in arrived for chunk in writer.write(reader.read(delta))]:
                yield made
