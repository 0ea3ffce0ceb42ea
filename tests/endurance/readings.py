"""What a server holds and what it counts: its process, its engines, its metrics, its log.

The process is read from outside (psutil), engines from GET /health, counters from GET /metrics. Refuses to
know who loads the server and how.

    >>> holding(server.pid)
    Holding(rss=301_989_888, fds=14, threads=7)
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

from clients.child import ChildServer
from tests.endurance.raw import ask, get, until

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
PREFIX = "causerie:"
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Holding:
    """Resident bytes, open file descriptors and threads of a process."""

    rss: int
    fds: int
    threads: int


def holding(pid: int) -> Holding:
    """What the process holds now."""
    process = psutil.Process(pid)
    with process.oneshot():
        return Holding(process.memory_info().rss, process.num_fds(), process.num_threads())


@dataclass(frozen=True)
class Counted:
    """One reading of GET /metrics."""

    samples: tuple[tuple[str, dict[str, str], float], ...]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name whose labels are these, whatever others they have."""
        wanted = labels.items()
        return sum(v for n, had, v in self.samples if n == PREFIX + name and wanted <= had.items())

    def has(self, name: str) -> bool:
        return any(n == PREFIX + name for n, _, _ in self.samples)


def metrics(url: str) -> Counted:
    """GET /metrics, read."""
    reply = ask(url, get("/metrics"))
    assert reply.status == 200, (reply.status, reply.body[:200])
    return Counted(tuple(_samples(reply.body.decode())))


def _samples(text: str) -> Iterable[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = _SAMPLE.match(line)
            assert match, f"not a sample: {line!r}"
            yield match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"])


def engine_of(url: str) -> dict[str, Any]:
    """The one engine in GET /health, whatever that says of it."""
    (engine,) = ask(url, get("/health")).json["engines"]
    return dict(engine)


def wait_until_idle(url: str, seconds: float = 120.0) -> dict[str, Any]:
    """The engine once nothing runs or waits; all its blocks must then be free."""

    def idle() -> bool:
        engine = engine_of(url)
        return bool(engine["num_running"] == engine["num_waiting"] == 0)

    until(idle, "nothing runs or waits", seconds)
    engine = engine_of(url)
    assert engine["num_free_blocks"] == engine["num_blocks"], engine
    return engine


def assert_quiet_log(server: ChildServer) -> None:
    """Nothing in the server's log is an error or a traceback."""
    log = server.last_lines(1_000_000)
    assert "Traceback" not in log and "ERROR" not in log and "CRITICAL" not in log, log[-4000:]


def exit_code(server: ChildServer, seconds: float) -> int:
    """What the server ends with, waited for that long.

    Raises:
        AssertionError: it had not ended.
    """
    assert server._process is not None
    try:
        return server._process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no exit within {seconds:g} s:\n{server.last_lines()}") from None


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which that share of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def distribution(seconds: Iterable[float]) -> str:
    """median, p95, p99 and max of times, in milliseconds."""
    times = list(seconds)
    shares = (("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
    return ", ".join(f"{name} {percentile(times, share) * 1e3:.1f} ms" for name, share in shares)
