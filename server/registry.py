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
    """

    def __init__(self, models: Sequence[TextModel] = ()) -> None:
        self.models: list[TextModel] = []
        self.add(models)

    def add(self, models: Sequence[TextModel]) -> None:
        """More models, each under its own name."""
        self.models += models
        names = [one.name for one in self.served]
        assert len(set(names)) == len(names), "two models of one name"

    @property
    def served(self) -> list[TextModel]:
        """Models with engines of their own, each followed by the adapters that are on it now."""
        return [one for model in self.models for one in model.served]

    def has(self, name: str) -> bool:
        """Whether a model of that very id is served."""
        return any(one.name == name for one in self.served)

    def get(self, name: str | None, param: str = "model") -> TextModel:
        """The model of that id.

        Args:
            param: the request's field that names it.

        Raises:
            ApiError: 404, naming the ids there are.
        """
        served = self.served
        found = next((one for one in served if one.name == name), None)
        if found is not None:
            return found
        if name is None or name == DEFAULT:
            return self.models[0]
        known = ", ".join(one.name for one in served)
        message = f"the model {shown(name)} does not exist; this server has: {known}"
        raise ApiError(404, message, code="model_not_found", param=param)

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
