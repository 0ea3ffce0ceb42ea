"""What is taken from an environment, and what stays."""

from __future__ import annotations

from pathlib import Path

from deploy.docker import slim

GONE: tuple[str, ...] = (
    "torch/test/x",
    "torch/include/a/b.h",
    "torch/bin/test_api",
    "numpy/linalg/tests/t.py",
    "torch/_C.pyi",
)
GONE += (
    "matplotlib/pyplot.py",
    "pip/__init__.py",
    "llm/__pycache__/x.pyc",
    "torch/lib/libtorchbind_test.so",
    "prompt_toolkit/shortcuts/prompt.py",
    "networkx/a.py",
)
KEPT = (
    "torch/__init__.py",
    "torch/bin/torch_shm_manager",
    "torch/lib/libc10.txt",
    "numpy/testing/__init__.py",
)


def environment(folder: Path, *files: str) -> Path:
    """An environment of these files, ten bytes each."""
    site = folder / "lib/python3.11/site-packages"
    for name in files:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(b"0123456789")
    return site


def left(site: Path) -> set[str]:
    return {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}


def test_what_serving_never_opens_goes(tmp_path: Path) -> None:
    site = environment(tmp_path, *GONE, *KEPT)
    assert slim.main([str(tmp_path)]) == 0
    assert left(site) == set(KEPT)


def test_a_removal_says_what_it_saved(tmp_path: Path) -> None:
    site = environment(tmp_path, "torch/test/a", "torch/test/b/c", "torch/x")
    (site / "torch/test/loop").symlink_to(site / "torch")
    assert 20 <= slim.remove(site, ["torch/test", "torch/absent"]) < 20 + 4096
    assert left(site) == {"torch/x"}


def test_a_folder_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    assert slim.main([str(tmp_path)]) == 2
    assert slim.main([]) == 2
