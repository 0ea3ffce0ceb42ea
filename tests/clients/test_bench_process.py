"""What a process took, its children included."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from clients.bench import process
from clients.bench.process import cpu_seconds, hardware, is_ours, peak_memory_mb

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "data = bytearray(50_000_000); print(flush=True); input()"])
child.wait()
"""

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc here")


@pytest.fixture
def parent() -> Iterator[int]:
    """A process whose child holds 50 MB."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout is not None and started.stdin is not None
        started.stdout.readline()
        yield started.pid
        started.stdin.write(b"\n")


def test_a_family_is_summed(parent: int) -> None:
    (child,) = psutil.Process(parent).children()
    alone = peak_memory_mb(child.pid)
    both = peak_memory_mb(parent)
    assert alone is not None and both is not None
    assert alone > 50 and both > alone + 3
    assert alone == pytest.approx(child.memory_info().rss / 1e6, rel=0.2)
    assert (cpu_seconds(parent) or 0) >= (cpu_seconds(child.pid) or 0) > 0


def test_cpu_seconds_of_this_process() -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    assert before <= sum(os.times()[:2]) + sum(c.cpu_times().user for c in psutil.Process().children()) + 0.1
    assert before + 0.1 >= time.process_time() - 0.1, "the clock's tick is 10 ms"


def test_no_such_process() -> None:
    gone = 2**22 + 1
    assert (cpu_seconds(gone), peak_memory_mb(gone), is_ours(gone)) == (None, None, False)


def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(process, "PROC", process.Path(str(tmp_path)))
    assert (cpu_seconds(os.getpid()), peak_memory_mb(os.getpid())) == (None, None)
    assert hardware().endswith("cores")


def test_the_hardware_has_cores() -> None:
    assert int(hardware().rpartition(", ")[2].split()[0]) >= 1
