"""The application as a whole: routes, lifespan, OpenAPI."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

import pytest

from server import __version__
from server.api.chat import ChatRequest
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, app_of, call


def test_the_lifespan_starts_and_closes_the_models() -> None:
    model = ScriptedModel()
    app = app_of(model)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            assert (model.num_started, model.num_closed) == (1, 0)

    asyncio.run(live())
    assert (model.num_started, model.num_closed) == (1, 1)


def test_openapi_describes_the_fields_and_stands_alone() -> None:
    answer = call(app_of(), "/openapi.json")
    schema = answer.json["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(ChatRequest.model_fields)
    assert schema["required"] == ["messages"]
    assert b"$ref" not in answer.body and b"$defs" not in answer.body
    for path in answer.json["paths"].values():
        for operation in path.values():
            assert set(operation["responses"]) - {"503"} == {"200", "4XX", "5XX"}


def test_no_page_loads_anything_from_elsewhere() -> None:
    for path in ("/docs", "/redoc"):
        assert call(app_of(), path).status == 404


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/models", "did you mean /v1/models?"),
        ("/v1/tokenize", "did you mean /tokenize?"),
        ("/v1/completions/", "did you mean /v1/completions?"),
        ("/nothing", "GET /openapi.json lists the routes"),
    ],
)
def test_a_path_that_is_nearly_a_route_is_answered_with_it(path: str, hint: str) -> None:
    answer = call(app_of(), path)
    assert (answer.status, answer.error["code"]) == (404, "route_not_found")
    assert answer.error["message"] == f"there is no route '{path}'; {hint}"


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
