"""What the machine is: cores by affinity and quota, a bandwidth that is a bandwidth."""

import os
from pathlib import Path

import pytest
import torch

from llm.hardware import describe, free_memory, read_bandwidth, usable_cores, usable_memory


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", None),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", 2),
        ("garbage", None),
    ],
)
def test_a_containers_quota_bounds_the_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    here = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path / "cpu.max") == (here if cores is None else min(here, cores))


def test_the_line_names_cores_and_threads() -> None:
    assert f"{usable_cores()} cores" in describe(torch.device("cpu"))


def test_bandwidth_is_measured() -> None:
    assert 1e8 < read_bandwidth(torch.device("cpu"), megabytes=8, repeats=2) < 1e13


def test_a_containers_limit_bounds_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    machine = usable_memory(file)
    assert machine > 1 << 28, "no such file, no limit"
    for text, wanted in (("max\n", machine), ("4096\n", 4096), (f"{1 << 60}\n", machine)):
        file.write_text(text)
        assert usable_memory(file) == wanted


def test_what_a_container_holds_already_is_not_free(tmp_path: Path) -> None:
    """Its limit counts this process too; pages of files it has read make room for others."""
    cpu, limit = torch.device("cpu"), tmp_path / "memory.max"
    assert free_memory(cpu, limit) > 1 << 26, "no container"
    limit.write_text("100000\n")
    assert free_memory(cpu, limit) == 100_000, "a kernel that does not say more"
    (tmp_path / "memory.current").write_text("70000\n")
    assert free_memory(cpu, limit) == 30_000
    (tmp_path / "memory.stat").write_text("anon 20000\ninactive_file 50000\nactive_file 0\n")
    assert free_memory(cpu, limit) == 80_000
    (tmp_path / "memory.current").write_text("250000\n")
    assert free_memory(cpu, limit) == 0
