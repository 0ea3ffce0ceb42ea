"""A step's parts are found again, and none is below 0."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.bench.fit import Fit, fit

LEVELS = [(streams, context) for streams in (1, 4, 16, 64) for context in (64, 512, 2048)]
PARTS = st.tuples(st.floats(1e-4, 1e-2), st.floats(1e-5, 1e-3), st.floats(1e-8, 1e-5))


@given(PARTS)
def test_parts_are_found_again(parts: tuple[float, float, float]) -> None:
    weights, row, token = parts
    found = fit((n, c, weights + row * n + token * n * c) for n, c in LEVELS)
    assert found is not None and found.worst < 1e-6
    assert (found.weights, found.row, found.token) == pytest.approx(parts, rel=1e-4)


def test_noise_moves_them_little_and_is_told() -> None:
    rng = random.Random(0)
    steps = [(n, c, (3e-3 + 5e-4 * n + 1e-6 * n * c) * rng.uniform(0.9, 1.1)) for n, c in LEVELS]
    found = fit(steps)
    assert found is not None and 0.02 < found.worst < 0.15
    assert found.weights == pytest.approx(3e-3, rel=0.15) and found.token == pytest.approx(1e-6, rel=0.15)


def test_nothing_is_below_nought() -> None:
    """More streams that take less time: no part of a step gives time back."""
    found = fit([(1, 64, 0.004), (4, 64, 0.003), (16, 64, 0.003), (16, 512, 0.002)])
    assert found is not None
    assert min(found.weights, found.row, found.token) >= 0 and found.worst > 0.1


def test_shares_are_of_one_step() -> None:
    assert Fit(0.002, 0.001, 0.00001, 0.0).shares(2, 100) == pytest.approx(
        {"weights": 1 / 3, "rows": 1 / 3, "cache": 1 / 3}
    )


@pytest.mark.parametrize("steps", [[], [(1, 64, 0.1), (4, 64, 0.2)], [(4, 64, 0.1), (4, 512, 0.2)]])
def test_steps_that_do_not_tell_the_parts_apart_have_no_fit(steps: list[tuple[int, int, float]]) -> None:
    assert fit(steps) is None
