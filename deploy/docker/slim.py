"""Takes from an environment what serving never opens, and says what each removal saved.

Runs while the image is built, before the server answers its first requests there (which is the proof that
nothing was missed). Refuses to know the server: it is a list of paths, each with its reason. A path that is
not there is passed over, since packages move their files between versions.

    $ python3 deploy/docker/slim.py /venv
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

UNUSED = {
    "torch's C++ tests": ("torch/test", "torch/bin/test_*", "torch/bin/*Test", "torch/lib/lib*_test.so"),
    "protobuf's compiler": ("torch/bin/protoc*",),
    "C and C++ headers, static libraries, CMake files": (
        "torch/include",
        "torch/share",
        "**/*.a",
        "**/*.h",
        "**/*.hpp",
        "**/*.cuh",
        "numpy/_core/include",
    ),
    "stubs for type checkers": ("**/*.pyi",),
    "tests of Python packages": ("numpy/**/tests", "sympy/**/tests", "mpmath/tests"),
    "graphs of torch's compiler, which would want a C compiler, too": ("networkx*",),
    "curves of a training run": (
        *("matplotlib*", "mpl_toolkits", "fontTools", "fonttools*", "PIL", "pillow*"),
        *("contourpy*", "kiwisolver*", "cycler*", "pyparsing*", "pylab.py", "dateutil", "python_dateutil*"),
    ),
    "the editor of the chat in the terminal, which does with plain lines": ("prompt_toolkit*", "wcwidth*"),
    "a second way to download from the hub": ("hf_xet*",),
    "installers": ("pip", "pip-*", "setuptools", "setuptools-*", "pkg_resources", "_distutils_hack"),
    "their hook": ("distutils-precedence.pth",),
    "bytecode of all modules, imported or not": ("**/__pycache__",),
}
"""Not sympy: torch imports it to check a shape on its meta device, where a model is laid out first."""

STRIPPED = ("libtorch_cpu.so", "libtorch_python.so", "libc10.so")


def main(arguments: list[str]) -> int:
    """Slim the environment at the given path; 0 when done, 2 when it is none."""
    found = sorted(Path(arguments[0]).glob("lib/python3*/site-packages")) if len(arguments) == 1 else []
    if not found:
        print("usage: slim.py ENVIRONMENT, a folder made by `python3 -m venv`", file=sys.stderr)
        return 2
    site = found[0]
    before = size_of([site])
    for reason, patterns in UNUSED.items():
        report(remove(site, patterns), reason)
    report(strip(site / "torch/lib" / name for name in STRIPPED), "symbol tables of torch's libraries")
    print(f"{before / 1e6:.0f} MB of packages are now {size_of([site]) / 1e6:.0f} MB")
    return 0


def remove(site: Path, patterns: Iterable[str]) -> int:
    """Delete what the patterns name, and return how many bytes that was."""
    saved = 0
    for pattern in patterns:
        for path in sorted(site.glob(pattern)):
            saved += size_of([path])
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return saved


def strip(libraries: Iterable[Path]) -> int:
    """Drop the symbols that only a debugger reads, where binutils are there; return the bytes saved."""
    paths = [path for path in libraries if path.exists()]
    if not paths or shutil.which("strip") is None:
        return 0
    before = size_of(paths)
    subprocess.run(["strip", "--strip-unneeded", *paths], check=True)
    return before - size_of(paths)


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of these files and of all files below these folders; a hard link counts each time."""
    total = 0
    for path in paths:
        files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
        total += sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())
    return total


def report(saved: int, reason: str) -> None:
    """One line about a removal."""
    print(f"{saved / 1e6:6.1f} MB  {reason}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
