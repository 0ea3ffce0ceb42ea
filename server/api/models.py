"""GET /v1/models and /v1/models/{id}: what is served, with its context and its sampling policy."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from server.api.card import card
from server.api.shapes import ModelCard, ModelList, ok
from server.registry import registry_of

router = APIRouter()


@router.get("/v1/models", responses=ok(ModelList))
async def list_models(request: Request) -> JSONResponse:
    """Every model, the default one first, each followed by its adapters."""
    return JSONResponse({"object": "list", "data": [card(model) for model in registry_of(request).served]})


@router.get("/v1/models/{model_id:path}", responses=ok(ModelCard))
async def retrieve_model(request: Request, model_id: str) -> JSONResponse:
    """One model; its id may contain slashes."""
    return JSONResponse(card(registry_of(request).get(model_id)))
