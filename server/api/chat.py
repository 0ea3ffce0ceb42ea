"""POST /v1/chat/completions: OpenAI's chat, streamed and not.

    $ curl -N localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"messages":[{"role":"user","content":"what is a token?"}],"stream":true}'

Fields in ChatRequest are honoured, fields in UNBUILT refused, all others ignored and reported; docs/api.md
has the list.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm.grammar import Grammar, GrammarSpec
from llm.text import TextModel
from server.api.chat_delta import ChatReader
from server.api.chat_reply import complete
from server.api.chat_stream import ChunkWriter, chunks
from server.api.conversation import (
    MAX_CALLS,
    UNBUILT_MESSAGE,
    RenderingFields,
    build_prompt,
    to_messages,
    to_rendering,
)
from server.api.fields import Neutral, describe, ignored, parse, refuse_unbuilt, report
from server.api.reply import ReplyHead, StreamFields, StreamOptions, Wanted, check_stream
from server.api.sampling import (
    MAX_TOP_LOGPROBS,
    SamplingFields,
    TokenLimit,
    check_scores,
    limit_tokens,
    to_drawing,
)
from server.api.shapes import ChatChunk, ChatCompletion, ok_or_stream
from server.api.structured import UNBUILT_FORMS, StructuredFields, compile_grammar, grammar_spec
from server.api.tools import ToolFields, ToolUse, to_tool_use
from server.body import read_object
from server.errors import invalid
from server.limits import limits_of
from server.registry import registry_of
from server.settings import Settings, settings_of
from server.sse import finish_unless_gone, open_stream

router = APIRouter()


class ChatRequest(RenderingFields, ToolFields, StructuredFields, SamplingFields, StreamFields):
    """What is honoured."""

    model: str | None = None
    max_completion_tokens: TokenLimit = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["error", "drop_oldest"] | None = None


UNBUILT: Neutral = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "chat_template": (),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
    **UNBUILT_FORMS,
}
"""Refused unless neutral: ignoring these would change the meaning of the answer."""

IGNORED: Neutral = {
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "reasoning_effort": (),
    "verbosity": (),
    "prediction": (),
    "prompt_cache_key": (),
    "safety_identifier": (),
    "stream_options.include_obfuscation": (False,),
    "messages[].refusal": (),
    "messages[].audio": (),
    "messages[].annotations": ([],),
    "messages[].reasoning_content": (),
    "messages[].tool_calls[].index": tuple(range(MAX_CALLS)),
}
"""Known fields that change nothing here: reported unless neutral, like every unknown field."""


@router.post(
    "/v1/chat/completions",
    openapi_extra=describe(ChatRequest),
    responses=ok_or_stream(ChatCompletion, ChatChunk),
    response_class=JSONResponse,
)
async def chat_completions(request: Request) -> Response:
    """Reply to a conversation."""
    settings = settings_of(request)
    asked = parse(ChatRequest, await read_object(request, settings.max_body_bytes))
    headers = _check_fields(asked, settings)
    model = registry_of(request).get(asked.model)
    use = to_tool_use(asked)
    rendering = to_rendering(asked, use.tools)
    form = grammar_spec(asked)
    ticket = limits_of(request).admit(request, model, asked.n or 1)
    asked_tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    limit = limit_tokens(asked_tokens, model.defaults, settings.default_max_tokens)
    drop = asked.truncation == "drop_oldest"
    messages = to_messages(asked.messages)
    prompt = await build_prompt(model, messages, rendering, max_tokens=limit, drop=drop)
    check_scores("prompt_logprobs", len(prompt.ids), asked.prompt_logprobs)
    room = model.check_room(len(prompt.ids), limit)
    num_top = (asked.top_logprobs or 0) if asked.logprobs else None
    has_form = form is not None and not use.tools  # then it says of every character what it is
    drawing = to_drawing(asked, model, room, template_stops=not has_form, logprobs=num_top)
    grammar = await _grammar(model, form, use)
    headers |= drawing.headers | prompt.headers
    wanted = _wanted(asked, prompt.ids, drawing.num_choices, num_top)
    texts = model.stream(
        prompt.ids,
        drawing.params,
        drawing.num_choices,
        strip=not (rendering.continue_final or has_form),
        with_tokens=wanted.tokens,
        grammar=grammar,
        template_ends=not asked.ignore_eos,
        calls=bool(use.tools),
        terms=ticket.terms(asked.priority, asked.cache_salt),
    )
    calls = model.template.tool_format if use.tools else None
    only_calls = bool(use.tools) and use.choice != "auto"
    reader = ChatReader(drawing.num_choices, calls, only_calls=only_calls)
    head = ReplyHead.of(model)
    if not asked.stream:
        scored = asked.prompt_logprobs is not None
        reply = complete(texts, reader, head, wanted, model.tokenizer, with_prompt_logprobs=scored)
        return JSONResponse(await finish_unless_gone(request, reply), headers=headers)
    return await open_stream(
        request,
        chunks(texts, reader, ChunkWriter(head, wanted, model.tokenizer)),
        headers=headers,
        keep_alive=settings.keep_alive_interval,
        send_timeout=settings.send_timeout,
    )


def _check_fields(asked: ChatRequest, settings: Settings) -> dict[str, str]:
    """Refuse what is not built or contradicts itself, and report what is ignored."""
    refuse_unbuilt(asked, UNBUILT)
    check_stream(asked, asked.prompt_logprobs)
    if asked.top_logprobs and not asked.logprobs:
        raise invalid("top_logprobs is only for requests with logprobs: true", "top_logprobs")
    neutral = {**UNBUILT, **{f"messages[].{name}": v for name, v in UNBUILT_MESSAGE.items()}, **IGNORED}
    return report(ignored(asked, neutral), strict=settings.strict)


async def _grammar(model: TextModel, form: GrammarSpec | None, use: ToolUse) -> Grammar | None:
    """What replies follow: calls, and beside them or alone the form of their content."""
    if use.tools:
        return await compile_grammar(model.call_grammars, lambda: use.spec(model.template, form), "tools")
    return None if form is None else await compile_grammar(model.grammars, lambda: form, form.param)


def _wanted(asked: ChatRequest, prompt: list[int], num_choices: int, num_top: int | None) -> Wanted:
    options = asked.stream_options or StreamOptions()
    return Wanted(
        prompt,
        num_choices,
        usage=options.include_usage is True,
        running_usage=options.continuous_usage_stats is True,
        num_top=num_top,
        token_ids=asked.return_token_ids is True,
        timings=asked.timings is True or asked.timings_per_token is True,
        per_token=asked.timings_per_token is True,
    )
