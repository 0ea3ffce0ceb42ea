"""GET /live, /ready, /health and /version. Alive is who makes progress, not whose socket answers."""

from __future__ import annotations

import os
import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from server import __version__
from server.api.shapes import Health, State, Version, ok
from server.errors import RETRY_SECONDS
from server.lifecycle import Phase, lifecycle_of

router = APIRouter()


@router.head("/live", include_in_schema=False)
@router.get("/live", responses=ok(State) | ok(State, status=503))
async def live(request: Request) -> JSONResponse:
    """200 unless an engine is dead or stalled: then a restart helps. No key needed."""
    status = lifecycle_of(request).liveness()
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses=ok(State) | ok(State, status=503))
async def ready(request: Request) -> JSONResponse:
    """200 from the first token on until the server is asked to stop; no key needed."""
    status = lifecycle_of(request).readiness()
    if status == "ready":
        return JSONResponse({"status": status})
    return JSONResponse({"status": status}, 503, headers={"retry-after": str(RETRY_SECONDS)})


@router.head("/health", include_in_schema=False)
@router.get("/health", responses=ok(Health) | ok(Health, status=503))
async def health(request: Request) -> JSONResponse:
    """200 when every engine is ok, else 503; no key needed."""
    life = lifecycle_of(request)
    engines = [
        {
            "model": model,
            "device": engine.device,
            "status": life.condition(engine),
            "num_running": engine.num_running,
            "num_waiting": engine.num_waiting,
            "num_steps": engine.num_steps,
            "num_tokens": engine.num_tokens,
            "num_prompt_tokens": engine.num_prompt_tokens,
            "num_preemptions": engine.num_preemptions,
            "num_free_blocks": engine.num_free_blocks,
            "num_blocks": engine.num_blocks,
            "num_cached_blocks": engine.num_cached_blocks,
            "num_cache_queries": engine.num_cache_queries,
            "num_cache_hits": engine.num_cache_hits,
            "num_drafted": engine.num_drafted,
            "num_accepted": engine.num_accepted,
            "cpu_seconds": engine.cpu_seconds,
            "runner_cpu_seconds": engine.runner_cpu_seconds,
        }
        for model, engine in life.engines()
    ]
    status = "loading" if life.phase is Phase.LOADING else life.liveness()
    answer = {
        "status": status,
        "phase": life.phase.value,
        "pid": os.getpid(),
        "loop_cpu_seconds": time.thread_time(),  # of this thread, which is the event loop's
        "engines": engines,
    }
    return JSONResponse(answer, 200 if status == "ok" else 503)


@router.get("/version", responses=ok(Version))
async def version() -> JSONResponse:
    """The server's version."""
    return JSONResponse({"version": __version__})
