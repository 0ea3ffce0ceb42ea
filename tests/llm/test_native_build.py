"""Compiled once, compiled again when it must be, and one line when it cannot be."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm.runner.native import build
from llm.runner.native.build import NativeUnavailable, best_isa, built_library, sanitizer_preload

FLAGS = {
    "avx512": "fpu sse2 avx avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni",
    "avx2": "fpu sse2 avx avx2 fma f16c avx512f avx512bw avx512dq avx512vl",
}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason=f"needs one of {', '.join(build.COMPILERS)}"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two files and a header, so that one call must compile and link both."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.h").write_text("#define ANSWER 42\n")
    (folder / "answer.c").write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    (folder / "twice.c").write_text("int answer(void);\nint twice(void) { return 2 * answer(); }\n")
    return folder


@pytest.fixture
def compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `cc` that notes each compilation in a file, then is the real one."""
    real = next(filter(None, map(shutil.which, build.COMPILERS)))
    notes = tmp_path / "compiles"
    notes.touch()
    put_compiler(
        tmp_path / "bin",
        f'case " $* " in *" -o "*) echo "$*" >> {notes};; esac\nexec {real} "$@"',
        monkeypatch,
        beside=os.environ["PATH"],
    )
    return notes


def put_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch, beside: str = "") -> None:
    folder.mkdir()
    (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{beside}")


def count(notes: Path) -> int:
    return len(notes.read_text().splitlines())


def call(path: Path, name: str = "twice") -> int:
    result: int = getattr(ctypes.CDLL(str(path)), name)()
    return result


@needs_compiler
def test_all_sources_become_one_library_and_the_log_says_by_whom(
    sources: Path, tmp_path: Path, compiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        path = built_library("portable", sources=sources, folders=[tmp_path / "deep/built"])
    assert call(path) == 84 and count(compiles) == 1
    assert re.fullmatch(r"portable-[0-9a-f]{16}-[0-9a-f]{16}\.so", path.name)
    said = r"kernel: compiled for portable by (gcc|clang)( \d+\.\d+)? in \d+\.\d s"
    assert re.fullmatch(said, caplog.messages[-1]), caplog.messages
    assert path.stat().st_mode & 0o555 == 0o555, "another user may serve what this one built"
    assert {file.name for file in path.parent.iterdir()} <= {path.name, ".lock"}, "nothing is left behind"


@needs_compiler
def test_the_second_time_nothing_is_compiled_nor_a_compiler_wanted(
    sources: Path,
    tmp_path: Path,
    compiles: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = built_library("portable", sources=sources, folders=[tmp_path / "built"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.INFO):
        assert built_library("portable", sources=sources, folders=[tmp_path / "built"]) == first
    assert count(compiles) == 1
    assert caplog.messages == ["kernel: portable, cached"]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "text", "twice"),
    [
        ("answer.h", "#define ANSWER 21\n", 42),
        ("twice.c", "int answer(void);\nint twice(void) { return 3 * answer(); }\n", 126),
        ("new.c", "int unused;\n", 84),
    ],
)
def test_a_changed_source_is_compiled_anew(
    sources: Path, tmp_path: Path, compiles: Path, name: str, text: str, twice: int
) -> None:
    before = built_library("portable", sources=sources, folders=[tmp_path / "built"])
    (sources / name).write_text(text)
    after = built_library("portable", sources=sources, folders=[tmp_path / "built"])
    assert after != before and count(compiles) == 2
    assert (call(before), call(after)) == (84, twice)


@needs_compiler
def test_other_options_are_another_library(
    sources: Path, tmp_path: Path, compiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = built_library("portable", sources=sources, folders=[tmp_path / "built"])
    monkeypatch.setitem(build.OPTIONS, "portable", ["-DISA_PORTABLE", "-DMORE"])
    assert built_library("portable", sources=sources, folders=[tmp_path / "built"]) != before


@needs_compiler
def test_old_libraries_go_and_those_of_other_kinds_stay(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "built"
    folder.mkdir()
    other = folder / "avx2-0000000000000000-0000000000000000.so"
    other.touch()
    made = []
    for answer in range(build.KEPT + 2):
        (sources / "answer.h").write_text(f"#define ANSWER {answer}\n")
        made.append(built_library("portable", sources=sources, folders=[folder]))
        os.utime(made[-1], (answer, answer))  # a clock of ticks may give two the same time
    assert set(folder.glob("*.so")) == {other, *made[-build.KEPT :]}


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_library_is_none(sources: Path, tmp_path: Path, compiles: Path, damage: str) -> None:
    folders = [tmp_path / "built"]
    path = built_library("portable", sources=sources, folders=folders)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.unlink()  # what is loaded must not be written to
    path.write_bytes({"cut": whole[:middle], "flipped": flipped, "empty": b""}[damage])
    again = built_library("portable", sources=sources, folders=folders)
    assert again.stem.endswith(build._digest(again)) and again.stat().st_size == len(whole)
    assert call(again) == 84 and count(compiles) == 2
    assert list(folders[0].glob("*.so")) == [again]


@needs_compiler
def test_one_that_cannot_be_loaded_here_is_none(sources: Path, tmp_path: Path, compiles: Path) -> None:
    """As a checkout shared with a machine that has an older C library."""
    path = built_library("portable", sources=sources, folders=[tmp_path / "built"])
    stem = path.stem.rpartition("-")[0]
    path.unlink()
    path.write_bytes(b"made elsewhere")
    path.rename(path.with_name(f"{stem}-{build._digest(path)}.so"))
    again = built_library("portable", sources=sources, folders=[tmp_path / "built"])
    assert call(again) == 84 and count(compiles) == 2
    assert list((tmp_path / "built").glob("*.so")) == [again]


@needs_compiler
def test_threads_at_once_compile_once(sources: Path, tmp_path: Path, compiles: Path) -> None:
    together = threading.Barrier(4)

    def start(_: int) -> Path:
        together.wait()
        return built_library("portable", sources=sources, folders=[tmp_path / "built"])

    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(start, range(4)))
    assert len(paths) == 1 and call(paths.pop()) == 84
    assert count(compiles) == 1


@needs_compiler
def test_processes_at_once_compile_once(sources: Path, tmp_path: Path, compiles: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import build; from pathlib import Path; "
        "print(build.built_library('portable', sources=Path(sys.argv[2]), folders=[Path(sys.argv[3])]))"
    )
    command = [sys.executable, "-c", script, str(build.HERE), str(sources), str(tmp_path / "built")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)]
    lines = {process.communicate()[0] for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(lines) == 1 and call(Path(lines.pop().strip())) == 84
    assert count(compiles) == 1


@needs_compiler
def test_what_a_killed_build_left_is_swept(sources: Path, tmp_path: Path) -> None:
    left = tmp_path / "built/.building-x"
    left.mkdir(parents=True)
    (left / "kernel.so").write_bytes(b"half")
    built_library("portable", sources=sources, folders=[left.parent])
    assert not left.exists()


@needs_compiler
def test_where_the_first_folder_cannot_be_written_the_second_is(
    sources: Path, tmp_path: Path, compiles: Path
) -> None:
    (tmp_path / "file").touch()
    folders = [tmp_path / "file/built", tmp_path / "home"]
    path = built_library("portable", sources=sources, folders=folders)
    assert path.parent == folders[1]
    assert built_library("portable", sources=sources, folders=folders) == path and count(compiles) == 1
    with pytest.raises(NativeUnavailable, match=r"kept nowhere: .*file/built \(Not a directory\)$"):
        built_library("portable", sources=sources, folders=folders[:1])


def test_libraries_lie_beside_the_package_else_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    assert build._own_folders() == [build.BUILT, Path("/home/one/.cache/causerie")]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            'echo "k.c: In function" >&2; echo "k.c:3:1: error: no such thing" >&2; exit 1',
            "k.c:3:1: error: no",
        ),
        (
            "echo 'ld: cannot find -lm' >&2; echo 'collect2: error: ld returned 1' >&2; exit 1",
            "cannot find -lm",
        ),
        ("exit 1", "it did not say why"),
        ("exit 0", "it did not say why"),
        ("kill -9 $$", "it did not say why"),
    ],
)
def test_a_compiler_that_fails_is_one_line(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    put_compiler(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(NativeUnavailable) as caught:
        built_library("portable", sources=sources, folders=[tmp_path / "built"])
    assert str(caught.value).startswith(f"{tmp_path}/bin/cc does not compile the kernel: ")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "built").glob("*.so")) and not list((tmp_path / "built").glob(".building*"))


@needs_compiler
def test_a_source_that_does_not_compile_is_named(sources: Path, tmp_path: Path) -> None:
    (sources / "twice.c").write_text("int twice(void) { return nothing; }\n")
    with pytest.raises(
        NativeUnavailable, match=r"does not compile the kernel: twice\.c:1:.*error: .*nothing"
    ):
        built_library("portable", sources=sources, folders=[tmp_path / "built"])


def test_without_a_compiler_one_line_says_so(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NativeUnavailable, match=r"^no C compiler \(cc, gcc or clang\) to build the kernel with$"
    ):
        built_library("portable", sources=sources, folders=[tmp_path / "built"])
    with pytest.raises(NativeUnavailable, match="no C compiler"):
        sanitizer_preload()


def test_a_compiler_that_is_no_program_is_one_line(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_compiler(tmp_path / "bin", "", monkeypatch)
    (tmp_path / "bin/cc").write_bytes(b"\x00")
    with pytest.raises(NativeUnavailable, match="bin/cc cannot be run: Exec format error"):
        built_library("portable", sources=sources, folders=[tmp_path / "built"])


def test_without_sources_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailable, match="no C sources$"):
        built_library("portable", sources=tmp_path, folders=[tmp_path / "built"])


@pytest.mark.parametrize("isa", FLAGS)
def test_the_best_of_what_every_core_has(isa: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {FLAGS[isa]}\nbugs\t\t:\n\n")
    assert best_isa(cpuinfo, "Linux x86_64") == isa
    with cpuinfo.open("a") as file:
        file.write(f"processor\t: 1\nvmx flags\t: nothing\nflags\t\t: {FLAGS['avx2']}\n")
    assert best_isa(cpuinfo, "Linux x86_64") == "avx2"


@pytest.mark.parametrize("isa", FLAGS)
def test_every_flag_is_needed(isa: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for flag in build.NEEDED[isa]:
        cpuinfo.write_text(f"flags : {' '.join(build.NEEDED[isa] - {flag})}\n")
        try:
            assert best_isa(cpuinfo, "Linux x86_64") != isa
        except NativeUnavailable as reason:
            assert str(reason) == "this CPU has neither AVX-512 VNNI nor AVX2 with FMA and F16C"


def test_another_system_or_a_cpu_that_does_not_tell_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailable, match="^the kernel runs on Linux x86_64, this is Darwin arm64$"):
        best_isa(machine="Darwin arm64")
    with pytest.raises(NativeUnavailable, match="cpuinfo does not tell what this CPU is: No such file"):
        best_isa(tmp_path / "cpuinfo", "Linux x86_64")
    (tmp_path / "cpuinfo").write_text("processor : 0\n")
    with pytest.raises(NativeUnavailable, match="this CPU has neither"):
        best_isa(tmp_path / "cpuinfo", "Linux x86_64")


def isa_here() -> str | None:
    try:
        return best_isa()
    except NativeUnavailable:
        return None


@needs_compiler
@pytest.mark.skipif(isa_here() is None, reason="needs a CPU with FMA")
def test_no_product_and_sum_is_rounded_once_unless_the_source_says_so(tmp_path: Path) -> None:
    (tmp_path / "f.c").write_text("float f(float a, float b) { return a * a - b; }\n")
    path = built_library(sources=tmp_path, folders=[tmp_path / "built"])
    assert path.name.startswith(f"{isa_here()}-")
    f = ctypes.CDLL(str(path)).f
    f.argtypes, f.restype = [ctypes.c_float, ctypes.c_float], ctypes.c_float
    assert f(1 + 2**-12, 1 + 2**-11) == 0.0, "fused, it would be 2**-24"


@needs_compiler
@pytest.mark.parametrize(
    ("argument", "said"),
    [("4", "heap-buffer-overflow"), ("2147483647", "signed integer overflow"), ("1", None)],
)
def test_a_sanitized_library_ends_the_process_that_errs(
    tmp_path: Path, argument: str, said: str | None
) -> None:
    try:
        preload = sanitizer_preload()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))
    (tmp_path / "err.c").write_text(
        "#include <stdlib.h>\nstatic char *volatile held;\n"
        "int err(int n) { held = malloc(4); n = n < 9 ? (held[n] = 1) : n + 1; free(held); return n; }\n"
    )
    path = built_library("portable", sanitize=True, sources=tmp_path, folders=[tmp_path / "built"])
    assert path.name.startswith("portable_sanitized-")
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).err(int(sys.argv[2])); print('lived')"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), argument],
        env={**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode == 0) == (said is None) == (done.stdout == "lived\n"), done.stderr
    assert said is None or said in done.stderr


def test_the_command_says_what_it_built_or_why_not(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["--isa", "all"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: no C compiler") for line in lines)


@needs_compiler
def test_the_command_builds_what_it_is_asked_for(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    assert build.main(["--isa", "portable"]) == 0
    assert build.main(["--isa", "portable"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("kernel: compiled for portable by ") and second == "kernel: portable, cached"
    assert len(list((tmp_path / "built").glob("portable-*.so"))) == 1
