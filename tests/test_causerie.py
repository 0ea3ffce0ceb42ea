"""The command: a table of subcommands, each a module's own main."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import causerie

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", causerie.COMMANDS)
def test_every_subcommand_has_its_module_with_a_main(name: str) -> None:
    path = ROOT / (causerie.COMMANDS[name].module.replace(".", "/") + ".py")
    assert path.exists()
    assert "\ndef main(argv" in path.read_text(encoding="utf-8")
    assert PathFinder.find_spec(causerie.COMMANDS[name].module.split(".")[0], [str(ROOT)]) is not None


@pytest.mark.parametrize("name", causerie.COMMANDS)
def test_help_is_the_modules_own_under_the_commands_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["causerie"])
    with pytest.raises(SystemExit) as caught:
        causerie.main([*name.split(), "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: causerie {name} ")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_everything_and_imports_nothing(arguments: list[str]) -> None:
    check = (
        "import sys, causerie; causerie.main(sys.argv[1:]); "
        "assert not {'torch', 'httpx', 'fastapi', 'llm', 'server', 'clients'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, *arguments], capture_output=True, encoding="utf-8", cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name in causerie.COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("arguments", [["srve"], ["train"], ["train", "rl"], ["--port", "1"]])
def test_no_such_subcommand_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert causerie.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and " ".join(arguments) in err
    assert all(name in err for name in causerie.COMMANDS)


def test_the_modules_status_is_the_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["causerie"])
    assert causerie.main(["chat", "--url", "nonsense", "--once", "hi"]) == 1
    assert "http://" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        causerie.main(["bench", "--rounds", "none"])
    assert caught.value.code == 2
    assert "causerie bench: error" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As `causerie inspect … | head -1`: all is written at the end, after the reader left."""
    inspect = [sys.executable, "causerie.py", "inspect", "checkpoints/causette"]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as unread:
        done = subprocess.run(
            inspect, stdout=unread, stderr=subprocess.PIPE, cwd=ROOT, env=environment, timeout=60
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_stdout_is_no_error() -> None:
    close_and_inspect = f"exec {sys.executable} causerie.py inspect checkpoints/causette >&-"
    done = subprocess.run(
        ["sh", "-c", close_and_inspect], stderr=subprocess.PIPE, encoding="utf-8", cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_after_bench_offline_is_the_load_tests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`bench --offline` measures the engine; `bench --offline FILE` compares a server with what it wrote."""
    monkeypatch.setattr(sys, "argv", ["causerie"])
    missing = str(tmp_path / "missing.json")
    assert causerie.main(["bench", "--offline", missing]) == 2
    assert missing in capsys.readouterr().err
    with pytest.raises(SystemExit):
        causerie.main(["bench", "--offline", "--rounds", "none"])
    assert "causerie bench --offline: error: argument --rounds" in capsys.readouterr().err
