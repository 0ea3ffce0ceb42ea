"""Texts and conversations of a file, and how probable a checkpoint finds them.

A line is {"messages": [...]}, with its "tools" if it has some, of which the assistant's tokens count, or
{"text": ...}, of which all count but the first. What is longer than the context is read in windows, each from
its own beginning. Refuses to know questions and answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.chat.template import Message
from llm.chat.tools import Tool
from llm.errors import DataError, RequestError
from llm.eval.answers import AT_ONCE
from llm.likelihood import Likelihood, ScoredText, likelihood, measure, read_chat, read_text
from llm.text import TextModel
from llm.train.data import read_conversation, read_jsonl


@dataclass(frozen=True, slots=True)
class Passage:
    """One line: a conversation, or a text when there are no messages. `where` is its "file:line"."""

    where: str
    messages: tuple[Message, ...]
    text: str = ""
    tools: tuple[Tool, ...] = ()


def read_passages(path: str | Path) -> list[Passage]:
    """All lines of a file.

    Raises:
        DataError: a line that is neither, a conversation without a reply, or none at all.
    """
    passages = []
    for where, value in read_jsonl(path):
        if "messages" in value:
            chat = read_conversation(where, value)
            passages.append(Passage(where, chat.messages, tools=chat.tools))
        elif isinstance(value.get("text"), str) and value["text"].strip():
            passages.append(Passage(where, (), value["text"]))
        else:
            raise DataError(f'{where}: expected {{"messages": […]}} or {{"text": "…"}}')
    if not passages:
        raise DataError(f"{path}: nothing to score")
    return passages


def encode(passage: Passage, model: TextModel) -> list[ScoredText]:
    """A passage as this model reads it, mostly in one piece.

    Raises:
        DataError: its template refuses the conversation, or nothing of the passage would count.
    """
    if passage.messages:
        try:
            texts = read_chat(model.tokenizer, model.template, passage.messages, passage.tools)
        except RequestError as error:
            raise DataError(f"{passage.where}: {error}") from None
        return texts
    begin = model.tokenizer.begin_of_text
    ids = model.tokenizer.encode(passage.text)
    text = read_text(ids if begin is None else [begin, *ids])
    if not text.num_scored:
        raise DataError(f"{passage.where}: {len(text.ids)} tokens, at least 2 are needed")
    return [text]


async def measure_all(model: TextModel, passages: Sequence[Passage]) -> list[Likelihood]:
    """How probable a running model finds each passage.

    Raises:
        DataError: as `encode`.
        EngineError: the engine could not go on.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def window(text: ScoredText) -> Likelihood:
        async with gate:
            return likelihood(text, await measure(model, text.ids))

    async def whole(texts: Sequence[ScoredText]) -> Likelihood:
        windows = [part for text in texts for part in text.windows(model.max_model_len - 1)]
        parts = [window(part) for part in windows if part.num_scored]
        return sum(await asyncio.gather(*parts), Likelihood())

    encoded = [encode(passage, model) for passage in passages]  # all are sound before one is read
    return await asyncio.gather(*map(whole, encoded))
