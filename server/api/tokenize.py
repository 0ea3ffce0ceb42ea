"""POST /tokenize and /detokenize: text or a conversation to token ids, and back. vLLM's shapes.

    $ curl localhost:8000/tokenize -H 'content-type: application/json' -d '{"prompt":"what is a token?"}'

Nothing is computed and no prompt is too long for the context: counting is what these are for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm.text import TextModel
from server.api.conversation import RenderingFields, encode, to_messages, to_rendering
from server.api.fields import Neutral, Schema, component, describe, ignored, parse, report
from server.api.inputs import check_ids, encode_text, off_loop
from server.api.logprobs import token_name
from server.api.sampling import TokenId
from server.api.shapes import Detokenized, Tokenized, ok
from server.api.tools import ToolFields, to_tool_use
from server.body import read_object
from server.errors import invalid
from server.registry import registry_of
from server.settings import settings_of

MAX_IDS = 1 << 20
"""About as many as a body of two megabytes has room for."""
SLICE = 8 << 10

router = APIRouter()


class TokenizeRequest(Schema):
    """What is honoured with a prompt."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(RenderingFields, ToolFields):
    """What is honoured with messages; their template alone says which control tokens there are."""

    model: str | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Schema):
    """What is honoured."""

    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS)]
    model: str | None = None


IGNORED_IN_CHAT: Neutral = {"add_special_tokens": (False,)}
"""With messages: reported unless neutral."""

EITHER = describe(TokenizeRequest)
EITHER["requestBody"]["content"]["application/json"]["schema"] = {
    "anyOf": [component(TokenizeRequest), component(TokenizeChatRequest)]
}


@router.post("/tokenize", openapi_extra=EITHER, responses=ok(Tokenized))
async def tokenize(request: Request) -> Response:
    """The ids a model would read for this text, or for this conversation."""
    settings = settings_of(request)
    body = await read_object(request, settings.max_body_bytes)
    asked = _parse(body)
    headers = report(ignored(asked, IGNORED_IN_CHAT), strict=settings.strict)
    model = registry_of(request).get(asked.model)
    ids = await _ids(model, asked)
    strings = None
    if asked.return_token_strs:
        strings = await off_loop(len(ids), lambda: [token_name(model.tokenizer, token) for token in ids])
    counts = {"count": len(ids), "max_model_len": model.max_model_len}
    written = await off_loop(len(ids), lambda: write_answer(counts, {"tokens": ids, "token_strs": strings}))
    return Response(written, headers=headers, media_type="application/json")


@router.post("/detokenize", openapi_extra=describe(DetokenizeRequest), responses=ok(Detokenized))
async def detokenize(request: Request) -> JSONResponse:
    """The text that these ids spell; control tokens are no text."""
    settings = settings_of(request)
    asked = parse(DetokenizeRequest, await read_object(request, settings.max_body_bytes))
    headers = report(ignored(asked, {}), strict=settings.strict)
    model = registry_of(request).get(asked.model)
    check_ids(asked.tokens, model, "tokens")
    text = await off_loop(len(asked.tokens), lambda: model.tokenizer.decode(asked.tokens))
    return JSONResponse({"prompt": text}, headers=headers)


def write_answer(counts: dict[str, int], lists: Mapping[str, list[int] | list[str] | None]) -> bytes:
    """The JSON of an answer. Written in slices, because one call that writes a million ids would keep the
    interpreter from every other thread until it is done.
    """
    parts = [_json(counts)[1:-1]]
    for name, items in lists.items():
        slices = [] if items is None else [items[i : i + SLICE] for i in range(0, len(items), SLICE)]
        whole = "null" if items is None else f"[{','.join(_json(part)[1:-1] for part in slices)}]"
        parts.append(f'"{name}":{whole}')
    return f"{{{','.join(parts)}}}".encode()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _parse(body: dict[str, Any]) -> TokenizeRequest | TokenizeChatRequest:
    if body.get("messages") is None:
        return parse(TokenizeRequest, body)
    if body.get("prompt") is not None:
        raise invalid("prompt and messages are given: send one of them", "prompt")
    return parse(TokenizeChatRequest, body)


async def _ids(model: TextModel, asked: TokenizeRequest | TokenizeChatRequest) -> list[int]:
    if isinstance(asked, TokenizeRequest):
        return await encode_text(model, asked.prompt, begins=asked.add_special_tokens is not False)
    rendering = to_rendering(asked, to_tool_use(asked).tools)
    return await encode(model, rendering.segments(model, to_messages(asked.messages)))
