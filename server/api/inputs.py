"""Text, or token ids, as a client sends them → the ids a model reads. For routes without a conversation.

One input or a list of them, each checked against the vocabulary and the context before it costs anything;
long text is cut into tokens in a worker thread. Refuses to know what is done with the ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Field, Tag

from llm.errors import RequestError
from llm.text import TextModel
from server.api.sampling import TokenId
from server.errors import invalid

MAX_INPUTS = 64
IN_THREAD_SIZE, ALONE_SIZE = 4 << 10, 64 << 10
"""Characters or ids: work of more leaves the event loop, work of more again waits for its turn."""
_ALONE = ThreadPoolExecutor(1, "long-text")
"""Threads that all compute have the interpreter in turns of milliseconds; the event loop is one of them."""

T = TypeVar("T")


def _kind(value: Any) -> str | None:
    """By the first item, so that an error names the item that differs."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return "<ids>" if isinstance(first, int) else "<id lists>" if isinstance(first, list) else "<texts>"


Ids = Annotated[list[TokenId], Field(min_length=1)]
Sent = str | list[str] | list[int] | list[list[int]]
Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS), Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS), Tag("<id lists>")],
    Discriminator(
        _kind,
        custom_error_type="input_type",
        custom_error_message="must be a string, a list of strings, a list of ids or a list of such lists",
    ),
]
"""One input or several, each text or ids."""


def each(sent: Sent, param: str) -> list[tuple[str, str | list[int]]]:
    """The inputs one by one, each with its path: input, or input[2]."""
    if isinstance(sent, str):
        return [(param, sent)]
    items: Sequence[str | int | list[int]] = sent
    if ids := [item for item in items if isinstance(item, int)]:  # all of them or none
        return [(param, ids)]
    return [(f"{param}[{i}]", one) for i, one in enumerate(items) if not isinstance(one, int)]


async def to_ids(model: TextModel, one: str | list[int], param: str, *, begins: bool = True) -> list[int]:
    """Ids of one input; text begins as the model was trained, with the begin-of-text id if there is one.

    Args:
        begins: false for text without that id.

    Raises:
        RequestError: more bytes or ids than the context can hold, or an id beyond the vocabulary.
    """
    if not isinstance(one, str):
        check_length(len(one), model.max_model_len, param)
        check_ids(one, model, param)
        return one
    check_size(len(one.encode()), model, param)
    return await encode_text(model, one, begins=begins)


async def encode_text(model: TextModel, text: str, *, begins: bool = True) -> list[int]:
    """Ids of a text of any length.

    Args:
        begins: put the begin-of-text id first, if the model was trained with one.
    """
    begin = model.tokenizer.begin_of_text if begins else None
    ids = await off_loop(len(text), lambda: model.tokenizer.encode(text))
    return ids if begin is None else [begin, *ids]


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Do some work on text or ids; in a worker thread when there is much of it, one at a time when there is
    very much. Others have their turn before the caller goes on with the next of many.

    Args:
        size: characters or ids.
    """
    if size > ALONE_SIZE:
        return await asyncio.get_running_loop().run_in_executor(_ALONE, work)
    if size > IN_THREAD_SIZE:
        return await asyncio.to_thread(work)
    done = work()
    await asyncio.sleep(0)
    return done


def check_size(num_bytes: int, model: TextModel, param: str) -> None:
    """Raise a RequestError for more UTF-8 bytes than the context can hold, whatever their tokens."""
    if num_bytes > model.max_prompt_bytes:
        raise RequestError(
            f"{param} is too long: it is {num_bytes} bytes, and this model's maximum context length is "
            f"{model.max_model_len} tokens, which hold at most {model.max_prompt_bytes} bytes",
            param=param,
            code="context_length_exceeded",
        )


def check_length(num_tokens: int, limit: int, param: str) -> None:
    """Raise a RequestError for more tokens than the context has."""
    if num_tokens > limit:
        raise RequestError(
            f"{param} is too long: it has {num_tokens} tokens, and this model's maximum context length is "
            f"{limit} tokens",
            param=param,
            code="context_length_exceeded",
        )


def check_ids(ids: list[int], model: TextModel, param: str) -> None:
    """Raise a 400 for the first id that the vocabulary does not have."""
    limit = model.tokenizer.vocab_size
    if ids and max(ids) >= limit:
        at = next(i for i, token in enumerate(ids) if token >= limit)
        path = f"{param}[{at}]"
        raise invalid(f"{path} must be a token id below {limit}, the vocabulary, got {ids[at]}", path)
