"""From the process's start to ready with the default checkpoint, and what a server that waits costs."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from clients.child import ChildServer
from tests.endurance.readings import MEGABYTE

MODEL = "checkpoints/causette"
WAITED_SECONDS = 4.0


@pytest.mark.slow
def test_a_server_is_ready_soon_small_and_idle_when_it_waits(figure: Callable[[str], None]) -> None:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        with ChildServer(["--checkpoint", MODEL]) as server:
            while httpx.get(server.url + "/ready").status_code != 200:
                time.sleep(0.02)
            seconds.append(time.monotonic() - began)
            process = psutil.Process(server.pid)
            memory = process.memory_info().rss
            before = process.cpu_times()
            time.sleep(WAITED_SECONDS)
            after = process.cpu_times()
    share = (after.user + after.system - before.user - before.system) / WAITED_SECONDS
    figure(
        f"start of {MODEL}: ready after {min(seconds):.1f} to {max(seconds):.1f} s; "
        f"{memory / MEGABYTE:.0f} MB; {100 * share:.2f} % of a core while it waits"
    )
    assert memory < 700 * MEGABYTE  # 14 MB of weights, a KV cache of which nothing is written, torch
    assert share < 0.02
