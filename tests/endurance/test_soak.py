"""Three minutes of everything at once; `soak.py` is the same for half an hour, as a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clients.child import ChildServer
from tests.endurance.readings import assert_quiet_log
from tests.endurance.soak import slope, soak

ROOT = Path(__file__).parent.parent.parent
MINUTES, WARM_UP_SECONDS = 3.0, 60.0
MAX_SLOPE = 20.0
"""Megabytes a minute: in so short a second half one step of an allocator, ten megabytes, weighs that much.
20 KB lost with each request would show; what is less shows in half an hour."""


@pytest.mark.slow
def test_three_minutes_of_everything(figure: Callable[[str], None]) -> None:
    arguments = ["--checkpoint", str(ROOT / "checkpoints" / "causette"), "--uvicorn-log-level", "warning"]
    with ChildServer(arguments) as server:
        verdict = soak(server, MINUTES, say=figure, warm_up=WARM_UP_SECONDS)
        assert_quiet_log(server)
    figure(
        f"soak: {verdict.requests} requests in {MINUTES:g} min, {verdict.outcomes}, "
        f"RSS {verdict.rss_start_mb} -> {verdict.rss_end_mb} MB, "
        f"{verdict.slope_mb_per_minute} MB/min in the second half"
    )
    assert verdict.failures == []
    assert verdict.free_blocks == verdict.num_blocks
    assert verdict.slope_mb_per_minute < MAX_SLOPE
    assert {"200", "400", "404", "left"} <= set(verdict.outcomes), "each kind was met"
    assert verdict.fds[1] <= verdict.fds[0] and verdict.threads[1] <= verdict.threads[0] + 1


@pytest.mark.slow
def test_the_slope_is_that_of_the_line() -> None:
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == 2
    assert slope([(0.0, 5.0), (1.0, 5.0)]) == 0
    assert slope([(3.0, 5.0)]) == 0
