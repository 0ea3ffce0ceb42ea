"""What a process and its children took: CPU time and peak memory, from /proc.

    >>> cpu_seconds(server.pid), peak_memory_mb(server.pid)

A server may be several processes, as vLLM's is. None where /proc does not tell. Refuses to know what they do.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

PROC = Path("/proc")


def cpu_seconds(pid: int) -> float | None:
    """User and system time of the process and of its children that run."""
    ticks = [_ticks(fields) for fields in _family(pid)]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def peak_memory_mb(pid: int) -> float | None:
    """The most each process ever held in RAM, summed: pages that two of them share count twice."""
    peaks = [_peak_kb(int(fields[0])) for fields in _family(pid)]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) / 1e3 * 1.024 if known else None


def hardware() -> str:
    """Processor and the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = (_read("cpuinfo") or "").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {cores} cores"


def is_ours(pid: int) -> bool:
    """Whether a process of this machine has that id and may be a Causerie: ids repeat in containers."""
    command = _read(f"{pid}/cmdline") or ""
    return "server" in command or "causerie" in command


def _family(pid: int) -> list[list[str]]:
    """The stat fields of a process and its descendants: [pid, state, parent, …]."""
    if (own := _stat(str(pid))) is None:
        return []
    stats = [stat for path in PROC.iterdir() if path.name.isdigit() and (stat := _stat(path.name))]
    family, parents = [own], {str(pid)}
    while children := [stat for stat in stats if stat[2] in parents]:
        family += children
        parents = {stat[0] for stat in children}
        stats = [stat for stat in stats if stat not in children]
    return family


def _stat(pid: str) -> list[str] | None:
    text = _read(f"{pid}/stat")
    return None if text is None else [pid, *text.rpartition(")")[2].split()]  # its name may hold spaces


def _ticks(fields: list[str]) -> int:
    return int(fields[12]) + int(fields[13])  # utime and stime, the 14th and 15th of the line


def _peak_kb(pid: int) -> int | None:
    found = re.search(r"^VmHWM:\s+(\d+) kB", _read(f"{pid}/status") or "", re.MULTILINE)
    return None if found is None else int(found[1])


def _read(name: str) -> str | None:
    try:
        return (PROC / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
