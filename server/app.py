"""Settings → the ASGI application: routes, layers, error handlers, and the models' start and stop.

    >>> app = create_app(load_settings(["--device", "cpu"]))

Layers, outermost first: `request_id` (id on every response, last resort for errors), `auth` (keys), routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from llm.text import TextModel
from server import __version__
from server.api import chat, completions, embeddings, health, template, tokenize
from server.api import models as models_api
from server.auth import BearerAuth
from server.errors import ERROR_RESPONSES, install_handlers
from server.registry import Registry
from server.request_id import RequestId
from server.settings import Settings
from server.startup import load


def create_app(settings: Settings, models: Sequence[TextModel] | None = None) -> FastAPI:
    """The application.

    Args:
        settings: what the operator chose.
        models: what to answer with; None loads the checkpoints that settings name when the app starts.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        if models is None:
            loaded = await asyncio.to_thread(load, settings)
            app.state.registry = Registry([one.model for one in loaded])
        app.state.registry.start()
        try:
            yield
        finally:
            await app.state.registry.close()

    app = FastAPI(
        title="Causerie",
        version=__version__,
        description="OpenAI's API for a checkpoint of your own.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=[
            Middleware(RequestId),
            Middleware(BearerAuth, keys=[key.get_secret_value() for key in settings.api_key]),
        ],
    )
    app.state.settings = settings
    if models is not None:
        app.state.registry = Registry(models)
    install_handlers(app)
    for endpoint in (chat, completions, embeddings, models_api, tokenize, template, health):
        app.include_router(endpoint.router, responses=ERROR_RESPONSES)
    return app
