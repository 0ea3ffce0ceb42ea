"""What this machine is and how fast it reads memory: the ceiling printed beside every measurement.

>>> describe(torch.device("cpu"))
'AMD EPYC 7B13, 2 cores, torch 2.13.0, 2 threads'
"""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path

import torch


def describe(device: torch.device) -> str:
    """One line about the processor or the accelerator and torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {usable_cores()} cores, torch {torch.__version__}, {threads} threads"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity, and in a container no more than its CPU quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or "max"
        return cores


def usable_memory(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of the machine's memory, and in a container no more than its limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(cgroup.read_text()))
    except (OSError, ValueError):  # no cgroup v2 here, or "max"
        return total


def free_memory(device: torch.device, cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes that this process may still take there: an estimate, since others take them too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        available = usable_memory(cgroup)
    return max(min(available, usable_memory(cgroup) - _held_in_container(cgroup)), 0)


def _held_in_container(cgroup: Path) -> int:
    """Bytes of a container's limit that are taken, this process's too, but for pages of files it can drop."""
    try:
        held = int(cgroup.with_name("memory.current").read_text())
    except (OSError, ValueError):
        return 0
    try:
        stat = dict(line.split() for line in cgroup.with_name("memory.stat").read_text().splitlines())
        return max(held - int(stat["inactive_file"]), 0)
    except (OSError, ValueError, KeyError):
        return held


def read_bandwidth(device: torch.device, megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second of summing a tensor that fits no cache; the best of `repeats` runs."""
    data = torch.ones(megabytes << 18, device=device)  # float32
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        float(data.sum())  # .item() waits for the device
        best = max(best, data.numel() * 4 / (time.perf_counter() - start))
    return best
