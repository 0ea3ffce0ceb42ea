"""Deltas of several prompts' replies → pieces of completions: what a stream writes and a whole reply joins.

The prompts run together. Choice c of prompt p is choice p·n + c of the request; that renumbering, the echo of
a prompt before its replies and the log probabilities of both happen here. Refuses to know JSON and frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from llm.choice import ReplyToken, TextDelta
from llm.sequence import FinishReason, Logprob
from llm.tokenizer import Tokenizer
from server.api.logprobs import CompletionLogprobs

MAX_WAITING = 64
"""Lists of deltas between the prompts' streams and whoever reads them together; longer lines wait in each
stream's own box.
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request wants to see of its completions.

    Attributes:
        num_choices: n, of each prompt.
        echo: the prompt before each reply.
        reply: False for max_tokens 0: the engine draws a token all the same, and nobody sees it.
        num_top: alternatives beside each token's log probability; None for no log probabilities.
        token_ids: ids of prompt and reply.
        ends: ids that are no text, where the engine was told to treat them as text; see `scores_end`.
    """

    num_choices: int = 1
    echo: bool = False
    reply: bool = True
    num_top: int | None = None
    token_ids: bool = False
    ends: frozenset[int] = frozenset()

    @property
    def scores_prompt(self) -> bool:
        """The echoed prompt comes with log probabilities."""
        return self.echo and self.num_top is not None


@dataclass(slots=True)
class Piece:
    """What one choice gained. Like a TextDelta not frozen.

    Attributes:
        choice: index in the request.
        num_tokens: drawn for it, for the usage.
        logprobs: of the tokens that begin in this text, in OpenAI's shape.
        token_ids: of the same tokens.
        prompt: ids, on a choice's first piece, when ids are wanted.
        finish: on its last.
    """

    choice: int
    text: str = ""
    num_tokens: int = 0
    logprobs: dict[str, list[Any]] | None = None
    token_ids: tuple[int, ...] = ()
    prompt: list[int] | None = None
    finish: FinishReason | None = None


class PromptReplies:
    """One prompt's choices.

    Args:
        first: index of its first choice in the request.
        prompt: its ids.
        tokenizer: of the model.
        shown: what is wanted.
    """

    def __init__(self, first: int, prompt: list[int], tokenizer: Tokenizer, shown: Shown) -> None:
        self.prompt = prompt
        self.scores: list[Logprob] = []
        self._choices = range(first, first + shown.num_choices)
        self._tokenizer = tokenizer
        self._shown = shown
        self._logprobs = {
            choice: CompletionLogprobs(tokenizer, shown.num_top)
            for choice in self._choices
            if shown.num_top is not None
        }
        self._held: list[TextDelta] | None = []

    def read(self, delta: TextDelta) -> Iterator[Piece]:
        """Pieces of a delta. The prompt's own go first, and wait until all of it has been scored."""
        self.scores += delta.prompt_logprobs
        if self._held is None:
            yield from self._pieces(delta)
            return
        self._held.append(delta)
        if self._shown.scores_prompt and len(self.scores) < len(self.prompt) - 1:
            return
        held, self._held = self._held, None
        yield from self._heads()
        for delta in held:
            yield from self._pieces(delta)

    def _heads(self) -> Iterator[Piece]:
        shown = self._shown
        if not shown.echo and not shown.token_ids:
            return
        text = self._tokenizer.decode(self.prompt) if shown.echo else ""
        for choice in self._choices:
            logprobs = None
            if shown.scores_prompt:
                logprobs = self._logprobs[choice].prompt(self.prompt, self.scores)
            yield Piece(choice, text, logprobs=logprobs, prompt=self.prompt if shown.token_ids else None)

    def _pieces(self, delta: TextDelta) -> Iterator[Piece]:
        """Its text and tokens, then its end."""
        if not self._shown.reply:
            if delta.finish is not None:
                yield Piece(delta.choice, finish=FinishReason.LENGTH)
            return
        text, tokens, finish = delta.text, delta.tokens, delta.finish
        if tokens and tokens[-1].id in self._shown.ends:
            text, tokens, finish = "", (*tokens[:-1], replace(tokens[-1], data=b"")), FinishReason.STOP
        if text or tokens or delta.num_tokens:
            logprobs = self._logprobs[delta.choice].reply(tokens) if tokens and self._logprobs else None
            yield Piece(delta.choice, text, delta.num_tokens, logprobs, self._ids(tokens))
        if finish is not None:
            yield Piece(delta.choice, finish=finish)

    def _ids(self, tokens: Sequence[ReplyToken]) -> tuple[int, ...]:
        return tuple(token.id for token in tokens) if self._shown.token_ids else ()


async def merge(
    streams: Sequence[AsyncGenerator[list[TextDelta], None]], num_choices: int
) -> AsyncGenerator[list[TextDelta], None]:
    """The deltas of all prompts as they come, choices renumbered.

    The first stream that fails ends all; so does leaving early.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]):
            async for deltas in streams[0]:
                yield deltas
        return
    inbox: asyncio.Queue[list[TextDelta] | Exception | None] = asyncio.Queue(MAX_WAITING)

    async def read(stream: AsyncGenerator[list[TextDelta], None], first: int) -> None:
        try:
            async with aclosing(stream):
                async for deltas in stream:
                    renumbered = [replace(delta, choice=first + delta.choice) for delta in deltas]
                    await inbox.put(renumbered)
        except Exception as error:
            await inbox.put(error)
        else:
            await inbox.put(None)

    tasks = [asyncio.create_task(read(stream, i * num_choices)) for i, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            together: list[TextDelta] = []
            arrived = [await inbox.get()]
            while not inbox.empty():
                arrived.append(inbox.get_nowait())
            for item in arrived:
                if isinstance(item, Exception):
                    if together:
                        yield together
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    together += item
            if together:
                yield together
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
