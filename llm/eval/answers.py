"""A checkpoint's answers to many conversations at once, by the engine and on the terms that serve them.

Template, stops and sampling policy are the checkpoint's own, so an answer here is the one a server gives to
the same seed. Refuses to know what a right answer is.

    >>> greedy, drawn = asyncio.run(answer_all(model, conversations, [None, 1], max_tokens=60))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager

from llm.chat.template import Message, drop_oldest
from llm.config import GenerationDefaults, SamplingParams
from llm.text import TextModel

AT_ONCE = 64
"""Requests under way: more than run together, so that the engine never waits for the next."""


def policy(defaults: GenerationDefaults, seed: int | None, max_tokens: int) -> SamplingParams:
    """How a checkpoint draws.

    Args:
        seed: None is greedy; otherwise the checkpoint's own sampling under that seed.
    """
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0 if seed is None else defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
        min_p=defaults.min_p,
        repetition_penalty=defaults.repetition_penalty,
        seed=0 if seed is None else seed,
        stop=defaults.stop,
        stop_token_ids=defaults.stop_token_ids,
    )


@asynccontextmanager
async def running(model: TextModel) -> AsyncGenerator[None, None]:
    """The engines of a model, from start to end; they start once."""
    model.start()
    try:
        yield
    finally:
        await model.close()


async def answer_all(
    model: TextModel,
    conversations: Sequence[Sequence[Message]],
    seeds: Sequence[int | None],
    max_tokens: int,
) -> list[list[str]]:
    """What a running model answers: for each seed, an answer to each conversation, in order.

    Raises:
        RequestError: a last message that does not fit the context.
        EngineError: the engine could not go on.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def answer(messages: Sequence[Message], seed: int | None) -> str:
        async with gate:
            return await _answer(model, messages, seed, max_tokens)

    asked = [answer(messages, seed) for seed in seeds for messages in conversations]
    said = await asyncio.gather(*asked)
    count = len(conversations)
    return [said[i * count : (i + 1) * count] for i in range(len(seeds))]


async def _answer(model: TextModel, messages: Sequence[Message], seed: int | None, max_tokens: int) -> str:
    room = model.max_model_len - 1  # a longer conversation loses its oldest turns
    prompt, _ = drop_oldest(model.tokenizer, model.template, messages, room)
    params = policy(model.defaults, seed, model.check_room(len(prompt), max_tokens))
    text = ""
    async with aclosing(model.stream(prompt, params)) as stream:
        async for deltas in stream:
            text += "".join(delta.text for delta in deltas)
    return text.strip()
