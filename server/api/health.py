"""GET /health and /version. Healthy means that the engines make progress, not that a socket answers."""

from __future__ import annotations

import os
import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from llm.engine import EngineStats
from server import __version__
from server.api.shapes import Health, Version, ok
from server.registry import registry_of

STALL_SECONDS = 60.0

router = APIRouter()


def condition(engine: EngineStats) -> str:
    """ok, dead (its thread is gone) or stalled (work, and no step for a minute)."""
    if not engine.alive:
        return "dead"
    return "stalled" if engine.num_running > 0 and engine.seconds_since_step > STALL_SECONDS else "ok"


@router.head("/health", include_in_schema=False)
@router.get("/health", responses=ok(Health) | ok(Health, status=503))
async def health(request: Request) -> JSONResponse:
    """200 when every engine is ok, else 503; no key needed."""
    engines = [
        {
            "model": model.name,
            "device": engine.device,
            "status": condition(engine),
            "num_running": engine.num_running,
            "num_waiting": engine.num_waiting,
            "num_steps": engine.num_steps,
            "num_tokens": engine.num_tokens,
            "num_prompt_tokens": engine.num_prompt_tokens,
            "num_preemptions": engine.num_preemptions,
            "num_free_blocks": engine.num_free_blocks,
            "num_blocks": engine.num_blocks,
        }
        for model in registry_of(request).models
        for engine in model.stats()
    ]
    worst = next((e["status"] for e in engines if e["status"] != "ok"), "ok")
    answer = {
        "status": worst,
        "pid": os.getpid(),
        "loop_cpu_seconds": time.thread_time(),  # of this thread, which is the event loop's
        "engines": engines,
    }
    return JSONResponse(answer, 200 if worst == "ok" else 503)


@router.get("/version", responses=ok(Version))
async def version() -> JSONResponse:
    """The server's version."""
    return JSONResponse({"version": __version__})
