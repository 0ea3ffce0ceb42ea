"""C sources → a shared library for one kind of CPU, compiled in seconds by the system's compiler and kept.

    $ causerie build-kernel             # for this CPU; --isa all: for every kind, as for an image
    >>> built_library()
    PosixPath('llm/runner/native/built/avx512-3f1c0d9a52b7e604-77a09d6e15c4b3f8.so')

A file's name says what it is: kind of CPU, digest of sources and options, digest of its own bytes. So a
changed source is compiled anew, a damaged file is no file, and a library that is there serves without a
compiler. The compiler is left out of the name: the options leave it no choice that changes a bit of a result.
Libraries lie beside the package, else, where that cannot be written, in ~/.cache/causerie.

Whatever goes wrong is `NativeUnavailable`, one line, and another runner serves. Refuses to know what the
kernel computes and how it is called.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import logging
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "kernel"
BUILT = HERE / "built"
CPUINFO = Path("/proc/cpuinfo")
MACHINE = f"{platform.system()} {platform.machine()}"
COMPILERS = ("cc", "gcc", "clang")
COMPILE_SECONDS = 600.0
KEPT = 3
"""Libraries of one kind in a folder: checkouts that share one, and branches, do not undo each other."""

NEEDED = {
    "avx512": frozenset("avx512f avx512bw avx512dq avx512vl avx512_vnni avx2 fma f16c".split()),
    "avx2": frozenset("avx2 fma f16c".split()),
}
"""Flags of a CPU that runs a library, as Linux spells them; the best first."""
# Nothing lets a compiler choose: no -ffast-math, no product and sum contracted into one rounding.
SHARED = "-std=gnu11 -fPIC -shared -pthread -fno-math-errno -fno-trapping-math -ffp-contract=off".split()
FAST = ("-O3",)
SANITIZED = (
    *"-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all".split(),
    "-fno-sanitize=null,object-size",  # which address sanitizing sees, too, and tells more about
)
OPTIONS = {
    "avx512": "-DISA_AVX512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c".split(),
    "avx2": "-DISA_AVX2 -mavx2 -mfma -mf16c".split(),
    "portable": ["-DISA_PORTABLE"],
}


class NativeUnavailable(Exception):
    """The kernel cannot run here; its text is one line that says why."""


def best_isa(cpuinfo: Path = CPUINFO, machine: str = MACHINE) -> str:
    """The fastest kind of library that this CPU runs; see `fast_isas`."""
    return fast_isas(cpuinfo, machine)[0]


def fast_isas(cpuinfo: Path = CPUINFO, machine: str = MACHINE) -> list[str]:
    """The kinds of library to serve with that this CPU runs, the fastest first: of "avx512" and "avx2" one at
    least.

    Args:
        cpuinfo: what Linux says about the CPU.
        machine: "system architecture", such as "Linux x86_64".

    Raises:
        NativeUnavailable: another system or another CPU.
    """
    if machine != "Linux x86_64":
        raise NativeUnavailable(f"the kernel runs on Linux x86_64, this is {machine}")
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise NativeUnavailable(f"{cpuinfo} does not tell what this CPU is: {error.strerror}") from None
    flags = [set(line.partition(":")[2].split()) for line in lines if line.split(":")[0].strip() == "flags"]
    common = set.intersection(*flags) if flags else set()  # of all cores: a thread may run on any
    found = [isa for isa, needed in NEEDED.items() if needed <= common]
    if not found:
        raise NativeUnavailable("this CPU has neither AVX-512 VNNI nor AVX2 with FMA and F16C")
    return found


def built_library(
    isa: str | None = None,
    *,
    sanitize: bool = False,
    sources: Path = SOURCES,
    folders: Sequence[Path] | None = None,
) -> Path:
    """The library, compiled now if there is none of these sources.

    Args:
        isa: "avx512", "avx2" or "portable"; None for the best of this CPU.
        sanitize: with address and undefined-behaviour checks, for tests; see `sanitizer_preload`.
        sources: folder of *.c, which are compiled together, and the *.h they include.
        folders: where libraries are kept, the first that will do; None for the module's own.

    Raises:
        NativeUnavailable: no such CPU, no compiler, a source it refuses, or nowhere to keep the library.
    """
    if isa in NEEDED and isa not in fast_isas():
        raise NativeUnavailable(f"this CPU does not run {isa}, only {' and '.join(fast_isas())}")
    path, said = _built(best_isa() if isa is None else isa, sanitize, sources, folders)
    log.info("%s", said)
    return path


def sanitizer_preload() -> str:
    """What LD_PRELOAD must name for a process to load a sanitized library.

    Raises:
        NativeUnavailable: no compiler, or one without it.
    """
    found = _ask(_compiler(), "-print-file-name=libasan.so")
    if not Path(found).is_absolute():  # gcc repeats a name that it cannot find
        raise NativeUnavailable("the C compiler has no address sanitizer (libasan.so)")
    return found


def _built(isa: str, sanitize: bool, sources: Path, folders: Sequence[Path] | None) -> tuple[Path, str]:
    """The library, and the line that says where it came from."""
    folders = _own_folders() if folders is None else folders
    files = sorted(sources.glob("*.c"))
    if not files:
        raise NativeUnavailable(f"{sources}: no C sources")
    options = [*SHARED, *(SANITIZED if sanitize else FAST), *OPTIONS[isa]]
    variant = f"{isa}_sanitized" if sanitize else isa
    stem = f"{variant}-{_digest_of_sources([*files, *sorted(sources.glob('*.h'))], options)}"
    for folder in folders:
        if (path := _find(folder, stem, load=not sanitize)) is not None:
            return path, f"kernel: {variant}, cached"
    refused = []
    for folder in folders:
        try:
            return _build(folder, stem, files, options, load=not sanitize)
        except OSError as error:  # a lock that is not let go of is one, too
            refused.append(f"{folder} ({error.strerror or type(error).__name__})")
    raise NativeUnavailable(f"the kernel can be kept nowhere: {', '.join(refused)}")


def _own_folders() -> list[Path]:
    try:
        return [BUILT, Path.home() / ".cache/causerie"]
    except RuntimeError:  # a user by number alone has no home
        return [BUILT]


def _digest_of_sources(files: Sequence[Path], options: Sequence[str]) -> str:
    digest = hashlib.sha256(" ".join([platform.machine(), *options]).encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _find(folder: Path, stem: str, *, load: bool) -> Path | None:
    """The library of that name, if it is whole and, with `load`, this process can load it."""
    for path in sorted(folder.glob(f"{stem}-*.so")):
        try:
            if path.stem == f"{stem}-{_digest(path)}":
                if load:
                    ctypes.CDLL(str(path))
                return path
        except OSError:  # gone, unreadable, or made for another C library
            continue
    return None


def _build(
    folder: Path, stem: str, files: Sequence[Path], options: Sequence[str], *, load: bool
) -> tuple[Path, str]:
    """Compile into the folder, alone there; whoever waited meanwhile takes what the first one made.

    Raises:
        OSError: this folder will not do.
    """
    variant = stem.partition("-")[0]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=COMPILE_SECONDS):
        if (path := _find(folder, stem, load=load)) is not None:
            return path, f"kernel: {variant}, cached"
        for left in folder.glob(".building-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
            made = Path(scratch) / "kernel.so"
            compiler, seconds = _compile(files, options, made)
            made.chmod(0o755)
            path = folder / f"{stem}-{_digest(made)}.so"
            for damaged in folder.glob(f"{stem}-*.so"):
                damaged.unlink()
            made.replace(path)
        _prune(folder, path, variant)
    if load:
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailable(f"the kernel cannot be loaded: {error}") from None
    return path, f"kernel: compiled for {variant} by {compiler} in {seconds:.1f} s"


def _compile(files: Sequence[Path], options: Sequence[str], target: Path) -> tuple[str, float]:
    """One call of the compiler; its name and how many seconds it took."""
    compiler = _compiler()
    names = [path.name for path in files]
    begun = time.perf_counter()
    done = _run([compiler, *options, *names, "-o", str(target), "-lm"], cwd=files[0].parent)
    if done.returncode != 0 or not target.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line and not line.startswith("collect2")]
        first = next(iter([*errors, *lines]), "it did not say why")
        raise NativeUnavailable(f"{compiler} does not compile the kernel: {first:.300}")
    return _describe(compiler), time.perf_counter() - begun


def _compiler() -> str:
    for name in COMPILERS:
        if (path := shutil.which(name)) is not None:
            return path
    *others, last = COMPILERS
    raise NativeUnavailable(f"no C compiler ({', '.join(others)} or {last}) to build the kernel with")


def _describe(compiler: str) -> str:
    """Such as "gcc 12.2"."""
    line = _ask(compiler, "--version").partition("\n")[0]
    versions = re.findall(r"\d+\.\d+", line)
    return " ".join(["clang" if "clang" in line else "gcc", *versions[-1:]])


def _ask(compiler: str, question: str) -> str:
    return _run([compiler, question]).stdout.strip()


def _run(command: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"{command[0]} took more than {COMPILE_SECONDS:g} s") from None
    except OSError as error:
        raise NativeUnavailable(f"{command[0]} cannot be run: {error.strerror}") from None


def _prune(folder: Path, newest: Path, variant: str) -> None:
    """Keep this library and the few before it. A process that has an old one open keeps it."""
    older = [path for path in folder.glob(f"{variant}-*.so") if path != newest]
    older.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in older[KEPT - 1 :]:
        path.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """The command. 0 when every library is there, 1 when one cannot be: the eager runner serves then."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--isa", choices=["all", *OPTIONS], help="kind of CPU; all: avx512 and avx2 (default: this one's)"
    )
    asked = parser.parse_args(argv).isa
    status = 0
    for isa in NEEDED if asked == "all" else [asked]:
        try:
            print(_built(isa or best_isa(), False, SOURCES, None)[1])
        except NativeUnavailable as reason:
            print(f"warning: {reason}; without the kernel, torch computes", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
