"""Healthy means progress."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server import __version__
from tests.fakes import ScriptedModel
from tests.server.wire import app_of, call


@pytest.mark.parametrize(
    ("engine", "status", "word"),
    [
        ({}, 200, "ok"),
        ({"num_running": 3, "seconds_since_step": 29.0}, 200, "ok"),
        ({"num_running": 0, "seconds_since_step": 1e6}, 200, "ok"),
        ({"num_running": 1, "seconds_since_step": 31.0}, 503, "stalled"),
        ({"alive": False}, 503, "dead"),
    ],
)
def test_health_is_the_engines_progress(engine: dict[str, float], status: int, word: str) -> None:
    sick, well = ScriptedModel(), ScriptedModel(name="well")
    sick.engine = replace(sick.engine, **engine)  # type: ignore[arg-type]
    answer = call(app_of(well, sick), "/health")
    assert (answer.status, answer.json["status"]) == (status, word)
    assert [e["status"] for e in answer.json["engines"]] == ["ok", word]
    assert call(app_of(well, sick), "/health", method="HEAD").status == status


def test_version() -> None:
    assert call(app_of(), "/version").json == {"version": __version__}
