"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: adapters while the server runs. vLLM's names.

    $ curl localhost:8000/v1/load_lora_adapter -H 'content-type: application/json' \\
        -d '{"lora_name": "pirate", "lora_path": "pirate"}'

Only with --adapter-dir, only for keys that administer, only from below that folder. Refuses to know how an
adapter comes to the engines, and when it leaves them.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from llm.errors import CheckpointError, OutOfMemory
from llm.text import TextModel
from server.adapter_dir import folder_below
from server.api.card import card
from server.api.fields import Neutral, Schema, describe, ignored, parse, refuse_unbuilt, report
from server.api.shapes import ModelCard, Shape, ok
from server.body import read_object
from server.errors import RETRY_SECONDS, ApiError, invalid, shown
from server.keys import key_of
from server.registry import registry_of
from server.settings import settings_of

log = logging.getLogger("causerie.server")

router = APIRouter()

AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
ModelName = Annotated[str, Field(max_length=256)]
MAX_MESSAGE = 500

UNBUILT: Neutral = {"load_inplace": (False,)}
"""Refused: replies under way would go on with other weights."""


class UnloadAdapterRequest(Schema):
    """What is honoured."""

    lora_name: AdapterName
    base_model: ModelName | None = None


class LoadAdapterRequest(UnloadAdapterRequest):
    """What is honoured."""

    lora_path: Annotated[str, Field(min_length=1, max_length=1024)]


class Unloaded(Shape):
    """OpenAI's answer where a model goes."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


@router.post("/v1/load_lora_adapter", openapi_extra=describe(LoadAdapterRequest), responses=ok(ModelCard))
async def load_lora_adapter(request: Request) -> JSONResponse:
    """Serve one more adapter, under the id MODEL:NAME; the answer comes when it is served."""
    root, settings = _adapter_dir(request), settings_of(request)
    asked = parse(LoadAdapterRequest, await read_object(request, settings.max_body_bytes))
    refuse_unbuilt(asked, UNBUILT)
    headers = report(ignored(asked, UNBUILT), strict=settings.strict)
    base = _base(request, asked.base_model)
    name = f"{base.name}:{asked.lora_name}"
    if registry_of(request).has(name):
        raise invalid(f"lora_name: {shown(name)} is served already: unload it first", "lora_name")
    folder = await asyncio.to_thread(folder_below, root, asked.lora_path)
    try:
        adapted = await base.load_adapter(asked.lora_name, folder)
    except CheckpointError as error:
        raise invalid(f"lora_path: {_words(error, root)}", "lora_path") from None
    except OutOfMemory as error:
        later = {"retry-after": str(RETRY_SECONDS)}
        raise ApiError(503, str(error), code="out_of_memory", headers=later) from None
    log.info("adapter %s loaded from %s (%s)", name, folder, adapted.adapter.digest)
    return JSONResponse(card(adapted), headers=headers)


@router.post("/v1/unload_lora_adapter", openapi_extra=describe(UnloadAdapterRequest), responses=ok(Unloaded))
async def unload_lora_adapter(request: Request) -> JSONResponse:
    """Serve an adapter to nobody new. Replies under way go on with it; its memory is free when they end."""
    _adapter_dir(request)
    settings = settings_of(request)
    asked = parse(UnloadAdapterRequest, await read_object(request, settings.max_body_bytes))
    headers = report(ignored(asked, {}), strict=settings.strict)
    base = _base(request, asked.base_model)
    name = f"{base.name}:{asked.lora_name}"
    if asked.lora_name not in base.shelves.on:
        message = f"lora_name: the adapter {shown(name)} is not loaded"
        raise ApiError(404, message, code="model_not_found", param="lora_name")
    base.unload_adapter(asked.lora_name)
    log.info("adapter %s unloaded", name)
    return JSONResponse({"id": name, "object": "model", "deleted": True}, headers=headers)


def _adapter_dir(request: Request) -> Path:
    """The folder of adapters, if whoever asks may have them loaded; before the body is read.

    Raises:
        ApiError: 403.
    """
    root = settings_of(request).adapter_dir
    if root is None:
        message = "adapters are fixed at start: this server runs without --adapter-dir"
        raise ApiError(403, message, code="adapter_loading_off")
    key = key_of(request.scope)
    if key is not None and not key.is_admin:
        message = f"the key {key.name} may not load or unload adapters: its entry has no 'admin: true'"
        raise ApiError(403, message, code="admin_key_required")
    return root


def _base(request: Request, name: str | None) -> TextModel:
    """The model with engines of its own of that id.

    Raises:
        ApiError: 404; 400 for an adapter's id.
    """
    model = registry_of(request).get(name, "base_model")
    if model.name != model.base:
        raise invalid(f"base_model must be a model, {shown(name)} is an adapter on one", "base_model")
    return model


def _words(error: CheckpointError, root: Path) -> str:
    """What is wrong with an adapter, on one line and without where the folder of adapters is."""
    words = str(error).replace(f"{root.resolve()}/", "")[:MAX_MESSAGE]
    return "".join(char if char.isprintable() else "?" for char in words)
