"""GET /v1/models and /v1/models/{id}: what is served, with its context and its sampling policy."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from llm.text import TextModel
from server.api.shapes import ModelCard, ModelList, ok
from server.registry import registry_of

router = APIRouter()


def card(model: TextModel) -> dict[str, Any]:
    """OpenAI's model object and what a person wants to know besides."""
    defaults = model.defaults
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "causerie",
        "max_model_len": model.max_model_len,
        "checkpoint": model.source,
        "default_sampling": {
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "top_k": defaults.top_k,
            "min_p": defaults.min_p,
            "repetition_penalty": defaults.repetition_penalty,
            "max_tokens": defaults.max_tokens,
            "stop": list(defaults.stop),
        },
    }


@router.get("/v1/models", responses=ok(ModelList))
async def list_models(request: Request) -> JSONResponse:
    """Every model, the default one first, each followed by its adapters."""
    return JSONResponse({"object": "list", "data": [card(model) for model in registry_of(request).served]})


@router.get("/v1/models/{model_id:path}", responses=ok(ModelCard))
async def retrieve_model(request: Request, model_id: str) -> JSONResponse:
    """One model; its id may contain slashes."""
    return JSONResponse(card(registry_of(request).get(model_id)))
