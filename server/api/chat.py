"""POST /v1/chat/completions: OpenAI's chat, streamed and not.

    $ curl -N localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"messages":[{"role":"user","content":"what is a token?"}],"stream":true}'

Fields in ChatRequest are honoured, fields in UNBUILT refused, all others ignored and reported; docs/api.md
has the list.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm.sequence import FinishReason
from llm.choice import TextDelta
from server.api.chat_stream import ReplyHead, chunks, usage
from server.api.conversation import (
    UNBUILT_MESSAGE,
    Messages,
    TemplateOptions,
    build_prompt,
    to_messages,
)
from server.api.fields import Neutral, Schema, describe, ignored, parse, refuse_unbuilt, report
from server.api.sampling import SamplingFields, TokenLimit, limit_tokens, to_drawing
from server.body import read_object
from server.errors import invalid
from server.registry import registry_of
from server.settings import Settings, settings_of
from server.sse import finish_unless_gone, open_stream

router = APIRouter()


class StreamOptions(Schema):
    """Only with stream."""

    include_usage: bool | None = None


class ChatRequest(SamplingFields):
    """What is honoured."""

    messages: Messages
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: TokenLimit = None
    truncation: Literal["error", "drop_oldest"] | None = None
    chat_template_kwargs: TemplateOptions = None
    user: Annotated[str, Field(max_length=1024)] | None = None


UNBUILT: Neutral = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "audio": (),
    "modalities": (["text"],),
    "chat_template": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
}
"""Refused unless neutral: ignoring these would change the meaning of the answer."""

IGNORED: Neutral = {
    "min_tokens": (0,),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "reasoning_effort": (),
    "verbosity": (),
    "prediction": (),
    "priority": (0,),
    "cache_salt": (),
    "prompt_cache_key": (),
    "safety_identifier": (),
    "stream_options.include_obfuscation": (False,),
    "stream_options.continuous_usage_stats": (False,),
    "messages[].name": (),
    "messages[].refusal": (),
    "messages[].audio": (),
    "messages[].annotations": ([],),
    "messages[].reasoning_content": (),
}
"""Known fields that change nothing here: reported unless neutral, like every unknown field."""


@router.post("/v1/chat/completions", openapi_extra=describe(ChatRequest), response_class=JSONResponse)
async def chat_completions(request: Request) -> Response:
    """Reply to a conversation."""
    settings = settings_of(request)
    asked = parse(ChatRequest, await read_object(request, settings.max_body_bytes))
    headers = _check_fields(asked, settings)
    model = registry_of(request).get(asked.model)
    wanted = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    limit = limit_tokens(wanted, model.defaults, settings.default_max_tokens)
    drop = asked.truncation == "drop_oldest"
    prompt = await build_prompt(
        model,
        to_messages(asked.messages),
        max_tokens=limit,
        drop=drop,
        options=asked.chat_template_kwargs,
    )
    drawing = to_drawing(asked, model, model.check_room(len(prompt.ids), limit))
    headers |= drawing.headers | prompt.headers
    head = ReplyHead.of(model)
    deltas = model.stream(prompt.ids, drawing.params, drawing.num_choices)
    if not asked.stream:
        reply = _complete(deltas, head, n=drawing.num_choices, num_prompt_tokens=len(prompt.ids))
        return JSONResponse(await finish_unless_gone(request, reply), headers=headers)
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage is True
    stream = chunks(
        deltas, head, n=drawing.num_choices, num_prompt_tokens=len(prompt.ids), with_usage=with_usage
    )
    return await open_stream(
        request,
        stream,
        headers=headers,
        keep_alive=settings.keep_alive_interval,
        send_timeout=settings.send_timeout,
    )


def _check_fields(asked: ChatRequest, settings: Settings) -> dict[str, str]:
    """Refuse what is not built or contradicts itself, and report what is ignored."""
    refuse_unbuilt(asked, UNBUILT)
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options is only for requests with stream: true", "stream_options")
    neutral = {**UNBUILT, **{f"messages[].{name}": v for name, v in UNBUILT_MESSAGE.items()}, **IGNORED}
    return report(ignored(asked, neutral), strict=settings.strict)


async def _complete(
    deltas: AsyncGenerator[TextDelta, None], head: ReplyHead, *, n: int, num_prompt_tokens: int
) -> dict[str, Any]:
    """The whole reply as one object."""
    texts: list[list[str]] = [[] for _ in range(n)]
    finish: list[FinishReason | None] = [None] * n
    num_tokens = 0
    async with aclosing(deltas):
        async for delta in deltas:
            texts[delta.choice].append(delta.text)
            finish[delta.choice] = delta.finish
            num_tokens += delta.num_tokens
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": "".join(texts[i]), "refusal": None},
            "logprobs": None,
            "finish_reason": _ended(finish[i]),
        }
        for i in range(n)
    ]
    return {
        **head.fields("chat.completion"),
        "choices": choices,
        "usage": usage(num_prompt_tokens, num_tokens),
    }


def _ended(reason: FinishReason | None) -> str:
    assert reason is not None, "a stream of deltas ends every choice"
    return reason.value
