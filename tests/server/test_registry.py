"""Model ids."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import ApiError
from server.registry import Registry
from tests.fakes import ScriptedModel


def test_default_and_nothing_mean_the_first() -> None:
    first, second = ScriptedModel(name="a/b"), ScriptedModel(name="c")
    registry = Registry([first, second])  # type: ignore[list-item]
    assert registry.get(None) is registry.get("default") is registry.get("a/b") is first
    assert registry.get("c") is second


def test_a_model_named_default_is_found_by_its_name() -> None:
    first, second = ScriptedModel(name="a"), ScriptedModel(name="default")
    assert Registry([first, second]).get("default") is second  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["", "A", "a/b/", "x" * 10_000])
def test_an_unknown_model_is_a_404_that_names_the_known(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        Registry([ScriptedModel(name="a/b"), ScriptedModel(name="c")]).get(name)  # type: ignore[list-item]
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert "a/b, c" in caught.value.message and len(caught.value.message) < 200


def test_starts_and_closes_every_model() -> None:
    models = [ScriptedModel(name="a"), ScriptedModel(name="b")]
    registry = Registry(models)  # type: ignore[arg-type]
    registry.start()
    asyncio.run(registry.close())
    assert [(m.num_started, m.num_closed) for m in models] == [(1, 1)] * 2
