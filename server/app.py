"""Settings → the ASGI application: layers, routes, error handlers, and the models' start and stop.

    >>> app = create_app(load_settings(["--device", "cpu"]))

Layers, outermost first: `answers` (counts and the log), `cors` (who may read answers), `request_id` (id on
every response, last resort for errors), `cors` again (which pages may ask), `page` (the chat page, which
needs no key), `auth` (keys), `limits` (places, and whether the server is open), routes. Each refuses before
it looks at a body.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from llm.text import TextModel
from server import __version__
from server.answers import Answers
from server.api import adapters, chat, completions, embeddings, health, score, template, tokenize
from server.api import metrics as metrics_api
from server.api import models as models_api
from server.auth import KeyAuth
from server.cors import BrowserGate, CorsHeaders, Origins
from server.errors import ERROR_RESPONSES, install_handlers
from server.keys import Keyring
from server.lifecycle import Lifecycle
from server.limits import Gate, Limits
from server.metrics import Metrics
from server.page import TEMPLATES, Page
from server.registry import Registry
from server.request_id import RequestId
from server.settings import Settings
from server.startup import is_loopback, load_models

ENDPOINTS = (
    chat,
    completions,
    embeddings,
    score,
    models_api,
    adapters,
    tokenize,
    template,
    health,
    metrics_api,
)
OPENAPI = "/openapi.json"


def create_app(settings: Settings, models: Sequence[TextModel] | None = None) -> FastAPI:
    """The application.

    Args:
        settings: what the operator chose.
        models: what to answer with; None loads the checkpoints that settings name once the app has started,
            and answers 503 until then.

    Raises:
        SettingsError: keys or origins that cannot be used.
    """
    metrics = Metrics()
    limits = Limits(settings, metrics)
    life = Lifecycle(Registry(models or ()), settings.stall_timeout)
    metrics.watch(life.engines)
    for model in models or ():
        limits.open_model(model)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        life.begin((lambda: load_models(settings)) if models is None else None, limits.open_model)
        try:
            yield
        finally:
            await life.close()

    app = FastAPI(
        title="Causerie",
        version=__version__,
        description="OpenAI's API for a checkpoint of your own.",
        openapi_url=OPENAPI,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours are /metrics and the log
        lifespan=lifespan,
        middleware=_layers(settings, life, limits, metrics),
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.limits = limits
    app.state.lifecycle = life
    app.state.registry = life.registry
    install_handlers(app)
    for endpoint in ENDPOINTS:
        app.include_router(endpoint.router, responses=ERROR_RESPONSES)
    return app


def _layers(settings: Settings, life: Lifecycle, limits: Limits, metrics: Metrics) -> list[Middleware]:
    """Outermost first."""
    origins, keyring = Origins.of(settings), Keyring.of(settings)
    loopback = is_loopback(settings.host)
    routes = [route.path for endpoint in ENDPOINTS for route in endpoint.router.routes]
    return [
        Middleware(
            Answers,
            metrics=metrics,
            paths=[OPENAPI, *routes, *(TEMPLATES if settings.page else ())],
            log_requests=settings.log_requests,
        ),
        Middleware(CorsHeaders, origins=origins),
        Middleware(RequestId),
        Middleware(BrowserGate, origins=origins, needs_key=bool(keyring), loopback=loopback),
        *([Middleware(Page)] if settings.page else []),
        Middleware(KeyAuth, keyring=keyring),
        Middleware(Gate, life=life, limits=limits, metrics=metrics),
    ]
