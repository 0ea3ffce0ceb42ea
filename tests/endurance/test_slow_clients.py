"""Clients that hold on to the server without using it slow nobody, cost no memory, and are cut.

Four streams are measured with and without such clients, turn by turn. Bad readers are compared with good ones
that ask for the same, since a reply that is computed costs what it costs.
"""

from __future__ import annotations

import itertools
import json
import math
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from clients.child import ChildServer
from tests.endurance.offenders import ONE_LETTER
from tests.endurance.raw import CHAT, connect, post
from tests.endurance.readings import MEGABYTE, assert_quiet_log, holding, percentile, wait_until_idle

ROOT = Path(__file__).parents[2]
NUM_STREAMS, NUM_TOKENS, NUM_ROUNDS = 4, 400, 5
MOST_TRIES = 3
"""A machine with others on it has bad minutes: what holds anybody up does so in each of three contests."""
LIMITS = [
    *("--send-timeout", "1.5", "--header-timeout", "1.5", "--body-timeout", "1.5"),
    *("--num-speculative-tokens", "0"),  # which bring several tokens at once: then gaps say nothing
]
WORST_RATIO, FLAT = 1.25, 16 * MEGABYTE
CONTROLS = {
    "slow": "polite",
    "a byte a second": "polite",
    "frozen": "polite",
    "half-closed": None,
    "half-open": None,
}
"""Each kind of offender, and whom it is compared with."""


def gaps(url: str) -> list[float]:
    """Seconds between the tokens of each of the streams; tokens read together share the time they took."""
    asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": NUM_TOKENS, **ONE_LETTER}
    request = post(CHAT, {**asked, "ignore_eos": True, "stream": True})
    read: list[list[tuple[float, int]]] = []  # of each stream: when, and how many tokens
    with selectors.DefaultSelector() as selector:
        for _ in range(NUM_STREAMS):
            client = connect(url)
            client.sendall(request)
            read.append([])
            selector.register(client, selectors.EVENT_READ, (client, read[-1]))
        while selector.get_map():
            for key, _ in selector.select():
                stream, times = key.data
                data = stream.recv(1 << 16)
                times.append((time.perf_counter(), data.count(b"data: ")))
                if not data:
                    selector.unregister(stream)
                    stream.close()
    assert all(sum(number for _, number in times) > NUM_TOKENS for times in read), "every stream was whole"
    pairs = [pair for times in read for pair in itertools.pairwise(times)]
    return [(late - early) / number for (early, _), (late, number) in pairs for _ in range(number)]


@contextmanager
def company(kind: str | None, url: str) -> Iterator[subprocess.Popen[str] | None]:
    """Those clients at work in the background; the polite ones leave in the end, others must be cut."""
    if kind is None:
        yield None
        return
    command = [sys.executable, "-m", "tests.endurance.offenders", kind, url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
            if kind != "polite":
                outcome = json.loads(process.stdout.readline())
                assert outcome["cut"] == outcome["of"], (kind, outcome)
        finally:
            process.kill()


def measured(kind: str | None, server: ChildServer) -> tuple[list[float], int]:
    """Gaps in that company, and the most memory the server held meanwhile."""
    with company(kind, server.url):
        found = gaps(server.url)
        rss = holding(server.pid).rss
    wait_until_idle(server.url)
    return found, rss


@dataclass(frozen=True)
class Contest:
    """Rounds in turn: gaps with the offenders and with their control, and the most memory held meanwhile."""

    with_them: list[list[float]]
    without: list[list[float]]
    peak: int

    @property
    def ratios(self) -> list[float]:
        """Of the median gaps, round by round."""
        return [median(a) / median(b) for a, b in zip(self.with_them, self.without, strict=True)]

    def told(self, kind: str, start: int) -> str:
        """A line about it."""
        return (
            f"{kind}: median gap {show(self.without, 0.5)} -> {show(self.with_them, 0.5)} ms, ratio "
            f"{median(self.ratios):.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f}); p99 "
            f"{show(self.without, 0.99)} -> {show(self.with_them, 0.99)} ms; RSS at most "
            f"{(self.peak - start) / MEGABYTE:+.1f} MB"
        )


def contest(kind: str, server: ChildServer) -> Contest:
    """One kind of offender against its control."""
    without, offended = [], []
    for _ in range(NUM_ROUNDS):
        without.append(measured(CONTROLS[kind], server)[0])
        offended.append(measured(kind, server))
    return Contest([gaps for gaps, _ in offended], without, max(rss for _, rss in offended))


@pytest.mark.slow
def test_nobody_is_held_up_by_clients_that_hold_on(roomy_folder: Path, figure: Callable[[str], None]) -> None:
    with ChildServer(["--checkpoint", str(roomy_folder), *LIMITS]) as server:
        for kind in (None, "polite", *CONTROLS):
            measured(kind, server)
        start, best = holding(server.pid), {kind: math.inf for kind in CONTROLS}
        for kind in CONTROLS:
            for _ in range(MOST_TRIES):
                found = contest(kind, server)
                figure(found.told(kind, start.rss))
                best[kind] = min(best[kind], median(found.ratios))
                if best[kind] <= WORST_RATIO:
                    break
        end = holding(server.pid)
        grown = end.rss - start.rss
        figure(
            f"all were cut; in the end RSS {grown / MEGABYTE:+.1f} MB, descriptors {end.fds - start.fds:+}"
        )
        assert max(best.values()) <= WORST_RATIO, best
        assert grown < FLAT and end.fds <= start.fds
        assert_quiet_log(server)


def show(rounds: list[list[float]], share: float) -> str:
    """A percentile of all rounds' gaps, in milliseconds."""
    return f"{percentile((gap for one in rounds for gap in one), share) * 1e3:.1f}"
