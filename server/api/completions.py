"""POST /v1/completions: text that goes on from a prompt, streamed and not. OpenAI's older API, vLLM's fields.

    $ curl localhost:8000/v1/completions -H 'content-type: application/json' \\
        -d '{"prompt":"A token is","max_tokens":16,"echo":true,"logprobs":1}'

No template: the model reads the prompt and nothing else. Prompts are text or token ids, one or a list; the
replies to a list are computed together. With `echo` and `logprobs` this is how evaluation harnesses score.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm.config import SamplingParams
from llm.errors import ContextLengthExceeded
from llm.text import TextModel
from server.api.completion_pieces import Shown, merge
from server.api.completion_stream import ChunkWriter, Completions, Report, chunks, complete
from server.api.fields import Neutral, describe, ignored, parse, refuse_unbuilt, report
from server.api.inputs import Input, each, to_ids
from server.api.reply import ReplyHead, StreamFields, StreamOptions, check_stream
from server.api.sampling import (
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    SEED_HEADER,
    SamplingFields,
    check_scores,
    to_drawing,
)
from server.api.shapes import Completion, ok_or_stream
from server.api.structured import UNBUILT_FORMS, StructuredFields, compile_grammar, grammar_spec
from server.body import read_object
from server.errors import invalid
from server.limits import limits_of
from server.registry import registry_of
from server.settings import Settings, settings_of
from server.sse import finish_unless_gone, open_stream

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this route only."""

router = APIRouter()


class CompletionRequest(StructuredFields, SamplingFields, StreamFields):
    """What is honoured."""

    prompt: Input
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_special_tokens: bool | None = None


UNBUILT: Neutral = {
    "suffix": ("",),
    "best_of": (),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
    "prompt_embeds": (),
    **UNBUILT_FORMS,
}
"""Refused unless neutral: ignoring these would change the meaning of the answer. `best_of` n is neutral."""

IGNORED: Neutral = {
    "store": (False,),
    "metadata": ({},),
    "stream_options.include_obfuscation": (False,),
}
"""Known fields that change nothing here: reported unless neutral, like every unknown field."""


@router.post(
    "/v1/completions",
    openapi_extra=describe(CompletionRequest),
    responses=ok_or_stream(Completion, Completion),
    response_class=JSONResponse,
)
async def completions(request: Request) -> Response:
    """Go on from one prompt or several."""
    settings = settings_of(request)
    asked = parse(CompletionRequest, await read_object(request, settings.max_body_bytes))
    headers = _check_fields(asked, settings)
    model = registry_of(request).get(asked.model)
    form = grammar_spec(asked)
    sent = each(asked.prompt, "prompt")
    ticket = limits_of(request).admit(request, model, len(sent) * (asked.n or 1))
    named = [(path, await _prompt_ids(model, asked, one, path)) for path, one in sent]
    num_tokens = sum(len(ids) for _, ids in named) * (asked.n or 1)
    check_scores("prompt_logprobs", num_tokens, asked.prompt_logprobs)
    check_scores("logprobs", num_tokens, asked.logprobs if asked.echo else None)
    drawn = [_params(model, asked, len(ids), path, settings) for path, ids in named]
    grammar = None if form is None else await compile_grammar(model.grammars, lambda: form, form.param)
    shown, plan = _shown(asked, drawn[0] if form is None else None), _report(asked)
    streams = [
        model.stream(
            ids,
            replace(params, stop_token_ids=params.stop_token_ids - shown.ends),
            shown.num_choices,
            strip=False,
            with_tokens=shown.num_top is not None or shown.token_ids or plan.per_token,
            grammar=grammar,
            template_ends=False,
            terms=ticket.terms(asked.priority, asked.cache_salt),
        )
        for (_, ids), params in zip(named, drawn, strict=True)
    ]
    headers |= _seeds(drawn)
    deltas = merge(streams, shown.num_choices)
    replies = Completions([ids for _, ids in named], model.tokenizer, shown, plan)
    head = ReplyHead(model.name, model.fingerprint, id=f"cmpl-{uuid.uuid4().hex}")
    if not asked.stream:
        reply = await finish_unless_gone(request, complete(deltas, head, replies))
        return JSONResponse(reply, headers=headers)
    return await open_stream(
        request,
        chunks(deltas, ChunkWriter(head, replies)),
        headers=headers,
        keep_alive=settings.keep_alive_interval,
        send_timeout=settings.send_timeout,
    )


def _check_fields(asked: CompletionRequest, settings: Settings) -> dict[str, str]:
    """Refuse what is not built or contradicts itself, and report what is ignored."""
    unbuilt = {**UNBUILT, "best_of": (1 if asked.n is None else asked.n,)}
    refuse_unbuilt(asked, unbuilt)
    check_stream(asked, asked.prompt_logprobs)
    if asked.max_tokens == 0 and not asked.echo:
        raise invalid("max_tokens must be at least 1 without echo: true, got 0", "max_tokens")
    return report(ignored(asked, {**unbuilt, **IGNORED}), strict=settings.strict)


async def _prompt_ids(
    model: TextModel, asked: CompletionRequest, one: str | list[int], path: str
) -> list[int]:
    """Ids of one prompt. An empty one is where a document begins, if the vocabulary has a word for that."""
    ids = await to_ids(model, one, path, begins=asked.add_special_tokens is not False)
    if ids:
        return ids
    begin = model.tokenizer.end_of_text
    if begin is None:
        raise invalid(f"{path} is empty, and this model has no token that a text begins with", path)
    return [begin]


def _params(
    model: TextModel, asked: CompletionRequest, num_tokens: int, path: str, settings: Settings
) -> SamplingParams:
    """How the replies to one prompt are drawn: without a seed, those to each prompt by another."""
    limit = asked.max_tokens
    if limit is None:
        cap = settings.default_max_tokens
        limit = DEFAULT_MAX_TOKENS if cap is None else min(DEFAULT_MAX_TOKENS, cap)
    try:
        room = model.check_room(num_tokens, max(1, limit))
    except ContextLengthExceeded as error:
        raise ContextLengthExceeded(error.num_prompt_tokens, error.limit, param=path) from None
    params = to_drawing(asked, model, room, template_stops=False, logprobs=asked.logprobs).params
    if asked.echo and asked.logprobs is not None:
        params = replace(params, prompt_logprobs=max(asked.logprobs, asked.prompt_logprobs or 0))
    return params


def _shown(asked: CompletionRequest, params: SamplingParams | None) -> Shown:
    """What of the completions is wanted.

    Args:
        params: of the replies, None when they follow a grammar.
    """
    shown = Shown(
        1 if asked.n is None else asked.n,
        echo=asked.echo is True,
        reply=asked.max_tokens != 0,
        num_top=asked.logprobs,
        token_ids=asked.return_token_ids is True,
    )
    # Harnesses score a text by its echo and drop the one token drawn after it: it has to be in the list, also
    # when it ends the text. The engine names no logprob for such a token, so it is told that it is text.
    if shown.scores_prompt and params is not None and asked.max_tokens == 1 and not params.min_tokens:
        return replace(shown, ends=params.stop_token_ids)
    return shown


def _report(asked: CompletionRequest) -> Report:
    options = asked.stream_options or StreamOptions()
    return Report(
        usage=options.include_usage is True,
        running_usage=options.continuous_usage_stats is True,
        prompt_logprobs=asked.prompt_logprobs,
        timings=asked.timings is True or asked.timings_per_token is True,
        per_token=asked.timings_per_token is True,
    )


def _seeds(drawn: Sequence[SamplingParams]) -> dict[str, str]:
    """The seed of every prompt's replies, in order; one when it is one."""
    return {SEED_HEADER: ",".join(dict.fromkeys(str(params.seed) for params in drawn))}
