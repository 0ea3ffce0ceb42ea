"""POST /v1/embeddings: a text as a vector, the mean of the model's last hidden states, of length 1.

    $ curl localhost:8000/v1/embeddings -H 'content-type: application/json' -d '{"input":"what is a token?"}'

The dot product of two such vectors is their cosine similarity. A decoder that was trained to write and never
to compare gives neighbours, not a search engine.
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from llm.text import TextModel
from server.api.fields import Neutral, Schema, describe, ignored, parse, refuse_unbuilt, report
from server.api.inputs import Input, check_length, each, to_ids
from server.api.shapes import Embeddings, ok
from server.api.together import together
from server.body import read_object
from server.errors import invalid
from server.limits import limits_of
from server.registry import registry_of
from server.settings import settings_of
from server.sse import finish_unless_gone

router = APIRouter()


class EmbeddingRequest(Schema):
    """What is honoured."""

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None


UNBUILT: Neutral = {"dimensions": ()}
"""Refused: a shorter vector would be another model's."""

IGNORED: Neutral = {}
"""Known fields that change nothing here: there are none."""


@router.post("/v1/embeddings", openapi_extra=describe(EmbeddingRequest), responses=ok(Embeddings))
async def embeddings(request: Request) -> JSONResponse:
    """One vector for each input, in their order."""
    settings = settings_of(request)
    asked = parse(EmbeddingRequest, await read_object(request, settings.max_body_bytes))
    refuse_unbuilt(asked, UNBUILT)
    headers = report(ignored(asked, UNBUILT), strict=settings.strict)
    model = registry_of(request).get(asked.model)
    sent = each(asked.input, "input")
    ticket = limits_of(request).admit(request, model, len(sent))
    prompts = [await _prompt(model, one, path) for path, one in sent]
    work = [model.embed(prompt, terms=ticket.terms()) for prompt in prompts]
    vectors = await finish_unless_gone(request, together(work))
    write = to_base64 if asked.encoding_format == "base64" else list
    num_tokens = sum(map(len, prompts))
    return JSONResponse(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": write(normalise(vector))}
                for i, vector in enumerate(vectors)
            ],
            "model": model.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        },
        headers=headers,
    )


def normalise(vector: list[float]) -> list[float]:
    """The vector at length 1; one of zeros stays, and what is not finite counts as zero."""
    finite = [value if math.isfinite(value) else 0.0 for value in vector]
    length = math.hypot(*finite)
    return [value / length for value in finite] if length > 0 else finite


def to_base64(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's SDKs ask for when nobody says otherwise."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def _prompt(model: TextModel, one: str | list[int], path: str) -> list[int]:
    if one == "":
        raise invalid(f"{path} must be at least 1 character long", path)
    ids = await to_ids(model, one, path)
    if not ids:
        raise invalid(f"{path} holds no character that the model's vocabulary can write", path)
    check_length(len(ids), model.max_model_len, path)
    return ids
