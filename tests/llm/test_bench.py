"""The offline benchmarks: they run on any checkpoint, say what they did, and refuse in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm import bench, bench_cache


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_every_level_is_measured_and_written(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "bench.json"
    argv = (
        f"--checkpoint {tiny_folder} --device cpu --streams 2,1 --rounds 1 --prompt-tokens 5 --new-tokens 3"
    )
    assert bench.main([*argv.split(), "--device", "cpu", "--json", str(file)]) == 0
    report = last_line(capsys)
    assert json.loads(file.read_text()) == report
    assert list(report["streams"]) == ["1", "2"]  # type: ignore[call-overload]
    assert (report["prompt_tokens"], report["new_tokens"]) == (5, 3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--prompt-tokens 200 --new-tokens 100", "together exceed the model's 256 positions"),
        ("--checkpoint nowhere", "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    argv: str, message: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--checkpoint", str(tiny_folder), "--device", "cpu", *argv.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("argv", ["--streams 1,a", "--streams 0", "--rounds 0", "--new-tokens 0"])
def test_numbers_that_are_none_are_refused(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(argv.split())
    assert "invalid" in capsys.readouterr().err


def test_attention_pairs_are_those_of_the_loops() -> None:
    """3 prompt tokens and 2 new ones: two passes, in which a token sees itself and those before."""
    assert bench_cache.attention_pairs(3, 2) == ((1 + 2 + 3) + (1 + 2 + 3 + 4), (1 + 2 + 3) + 4)


def test_cached_and_naive_are_compared_within_the_positions(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(tiny_folder), "--device", "cpu", "--rounds", "1"]
    assert bench_cache.main(argv) == 0
    rows = last_line(capsys)["rows"]
    assert isinstance(rows, list)
    assert [(row["prompt_tokens"], row["new_tokens"]) for row in rows] == [(32, 100), (156, 100)]
    assert all(row["same_tokens"] > 0.9 for row in rows)
