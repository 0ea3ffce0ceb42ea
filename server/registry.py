"""Model id, or `base:adapter` → running TextModel. `default`, and no model at all, mean the first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request

from llm.text import TextModel
from server.errors import ApiError, shown

DEFAULT = "default"


class Registry:
    """The models this server answers with, in order; none while they are being loaded.

    Attributes:
        models: those with engines of their own.
        served: and the adapters on each, after it.
    """

    def __init__(self, models: Sequence[TextModel] = ()) -> None:
        self.models: list[TextModel] = []
        self.served: list[TextModel] = []
        self._by_name: dict[str, TextModel] = {}
        self.add(models)

    def add(self, models: Sequence[TextModel]) -> None:
        """More models, each under its own name."""
        self.models += models
        self.served = [one for model in self.models for one in model.served]
        self._by_name = {one.name: one for one in self.served}
        assert len(self._by_name) == len(self.served), "two models of one name"

    def get(self, name: str | None) -> TextModel:
        """The model of that id.

        Raises:
            ApiError: 404, naming the ids there are.
        """
        if name in self._by_name:
            return self._by_name[name]
        if name is None or name == DEFAULT:
            return self.models[0]
        known = ", ".join(self._by_name)
        message = f"the model {shown(name)} does not exist; this server has: {known}"
        raise ApiError(404, message, code="model_not_found", param="model")

    def start(self) -> None:
        """Start every model on the running event loop."""
        for model in self.models:
            model.start()

    async def close(self, timeout: float | None = None) -> bool:
        """Stop every model; streams still open end with an error. False when an engine had not ended after
        `timeout` seconds.
        """
        return all(await asyncio.gather(*(model.close(timeout) for model in self.models)))


def registry_of(request: Request) -> Registry:
    """The registry of the app that got this request."""
    registry = request.app.state.registry
    assert isinstance(registry, Registry)
    return registry
