"""POST /v1/score: how probable a model thinks texts that are already there, of chats the assistant's words.

    $ curl localhost:8000/v1/score -H 'content-type: application/json' -d '{"messages":[
        {"role":"user","content":"what is a token?"},{"role":"assistant","content":"A piece of text."}]}'

One conversation as `messages`, or as `input` a text or a list of texts and conversations, read together.
A conversation is rendered by the model's template with all its replies, and what counts is what training
weighs. Nothing is written: usage counts prompts alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response

from llm.chat.template import text_bytes
from llm.errors import RequestError
from llm.likelihood import Likelihood, ScoredText, finite, likelihood, measure, read_chat, read_text
from llm.sequence import Logprob
from llm.text import TextModel
from server.api.conversation import (
    ChatMessage,
    Messages,
    to_messages,
)
from server.api.fields import Neutral, Schema, describe, ignored, parse, refuse_unbuilt, report
from server.api.inputs import MAX_INPUTS, check_size, off_loop, to_ids
from server.api.logprobs import token_name
from server.api.reply import usage
from server.api.sampling import MAX_PRIORITY, MAX_SALT_CHARS, check_scores
from server.api.shapes import Scores, ok
from server.api.together import together
from server.body import read_object
from server.errors import invalid
from server.limits import limits_of
from server.registry import registry_of
from server.settings import settings_of
from server.sse import finish_unless_gone

MAX_LISTED = 1 << 17
"""Tokens that a reply lists: about 14 MB of JSON."""
MAX_RENDERED = 4096
"""Messages times replies of a conversation, where the template is rendered for each reply."""

router = APIRouter()


def _kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


Item = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Messages, Tag("<list>")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="must be a string or a list of messages",
    ),
]
Items = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_INPUTS), Tag("<list>")],
    Discriminator(
        _kind,
        custom_error_type="input_type",
        custom_error_message="must be a string, or a list of strings and of lists of messages",
    ),
]
"""One text, or several texts and conversations."""


class ScoreRequest(Schema):
    """What is honoured."""

    messages: Messages | None = None
    input: Items | None = None
    model: str | None = None
    logprobs: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_CHARS)] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None


UNBUILT: Neutral = {
    "tools": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (False,),
    "continue_final_message": (False,),
    "add_special_tokens": (True,),
    "truncation": ("error",),
    "top_logprobs": (0,),
}
"""Refused unless neutral: with these it would be another text, or another answer."""


@router.post("/v1/score", openapi_extra=describe(ScoreRequest), responses=ok(Scores))
async def score(request: Request) -> Response:
    """Negative log likelihood and perplexity of each input, in their order."""
    settings = settings_of(request)
    asked = parse(ScoreRequest, await read_object(request, settings.max_body_bytes))
    refuse_unbuilt(asked, UNBUILT)
    sent = _each(asked)
    headers = report(ignored(asked, UNBUILT), strict=settings.strict)
    model = registry_of(request).get(asked.model)
    inputs = [await _read(model, one, path) for path, one in sent]
    num_tokens = sum(len(text.ids) for texts in inputs for text in texts)
    _check_number(asked, num_tokens)
    ticket = limits_of(request).admit(request, model, sum(map(len, inputs)))  # of some a place is not enough
    work = [
        measure(model, text.ids, ticket.terms(asked.priority, asked.cache_salt))
        for texts in inputs
        for text in texts
    ]
    scores = iter(await finish_unless_gone(request, together(work)))
    read = [[(text, next(scores)) for text in texts] for texts in inputs]
    head = {
        "object": "list",
        "model": model.name,
        "system_fingerprint": model.fingerprint,
        "usage": usage(num_tokens, 0, 0),
    }

    def write() -> bytes:
        entries = (_entry(model, i, one, listed=asked.logprobs is True) for i, one in enumerate(read))
        parts = ",".join(map(_json, entries))  # each on its own: other threads have their turns between
        return f'{_json(head)[:-1]},"data":[{parts}]}}'.encode()

    written = await off_loop(num_tokens if asked.logprobs else 0, write)
    return Response(written, headers=headers, media_type="application/json")


def _check_number(asked: ScoreRequest, num_tokens: int) -> None:
    """Raise a 400 for more tokens than one reply is about."""
    check_scores("input" if asked.messages is None else "messages", num_tokens, 0)
    if asked.logprobs and num_tokens > MAX_LISTED:
        raise invalid(
            f"logprobs asks for {num_tokens} tokens, at most {MAX_LISTED} in one reply; send fewer at once",
            "logprobs",
        )


def _each(asked: ScoreRequest) -> list[tuple[str, str | list[ChatMessage]]]:
    """What is to be scored, each with its path."""
    if asked.messages is not None:
        if asked.input is not None:
            raise invalid("input and messages are given: send one of them", "input")
        return [("messages", asked.messages)]
    if asked.input is None:
        raise invalid("input is required, or messages", "input", "missing_required_parameter")
    if isinstance(asked.input, str):
        return [("input", asked.input)]
    return [(f"input[{i}]", one) for i, one in enumerate(asked.input)]


async def _read(model: TextModel, one: str | list[ChatMessage], path: str) -> list[ScoredText]:
    """One input as the model reads it, mostly in one piece.

    Raises:
        ApiError, RequestError: it cannot be read, is too long, or nothing of it would count.
    """
    if isinstance(one, str):
        texts = [read_text(await to_ids(model, one, path))]
        if not texts[0].num_scored:
            count = len(texts[0].ids)
            raise invalid(
                f"{path} must be at least 2 tokens long, the first follows nothing: it has {count}", path
            )
    else:
        texts = await _read_chat(model, one, path)
    num_tokens, limit = max(len(text.ids) for text in texts), model.max_model_len - 1
    if num_tokens > limit:
        raise RequestError(
            f"{path} is too long: it has {num_tokens} tokens, and this model can score {limit}, one less "
            "than its maximum context length",
            param=path,
            code="context_length_exceeded",
        )
    return texts


async def _read_chat(model: TextModel, sent: list[ChatMessage], path: str) -> list[ScoredText]:
    num_replies = sum(message.role == "assistant" for message in sent)
    if not num_replies:
        raise invalid(f"{path} must have a message of role assistant: only those count", path)
    messages = to_messages(sent, path)
    try:
        whole = model.template.render(messages, generate=False)
        size = text_bytes(whole)
        check_size(size, model, path)
        times = 1 if any(segment.trained for segment in whole) else num_replies
        if times * len(messages) > MAX_RENDERED:
            raise invalid(
                f"{path} is too long: {len(messages)} messages, {num_replies} of them the assistant's. This "
                f"model's template is rendered for each of those, and the product may be {MAX_RENDERED}",
                path,
            )
        return await off_loop(size * times, lambda: read_chat(model.tokenizer, model.template, messages))
    except RequestError as error:
        param = error.param or ""
        if path == "messages" or not param.startswith("messages"):
            raise
        named = path + param.removeprefix("messages")
        raise RequestError(f"{path}: {error}", param=named, code=error.code) from None


def _entry(
    model: TextModel, index: int, read: Sequence[tuple[ScoredText, Sequence[Logprob]]], *, listed: bool
) -> dict[str, Any]:
    """One input's object."""
    found = sum((likelihood(text, scores) for text, scores in read), Likelihood())
    entry: dict[str, Any] = {
        "object": "score",
        "index": index,
        "nll": found.nll,
        "num_tokens": found.num_tokens,
        "mean": found.mean,
        "perplexity": found.perplexity,
    }
    if listed:
        entry["tokens"] = [
            {
                "id": token,
                "token": token_name(model.tokenizer, token),
                "bytes": list(model.tokenizer.token_bytes(token)),
                "logprob": None if score is None else finite(score.value),
                "counts": counts,
            }
            for text, scores in read
            for token, score, counts in zip(text.ids, [None, *scores], text.counts, strict=True)
        ]
    return entry


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
