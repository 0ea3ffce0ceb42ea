"""The offline benchmarks' commands: they run on any checkpoint, say what they did, and refuse in one line."""

from __future__ import annotations

import argparse
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from clients.bench.__main__ import offline_speeds
from llm.bench import cache, grammar, levels, offline, sampling
from llm.bench.offline import longest, plan
from llm.config import EngineConfig

SMALL = "--device cpu --threads 1 --rounds 1 --prompt-tokens 5 --new-tokens 3".split()


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


@pytest.fixture(scope="module")
def measured(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one small bench left bench.json, bench.png and, as out.txt, what it printed."""
    folder = tmp_path_factory.mktemp("bench") / "new"
    argv = "--streams 2,1 --contexts 16,1,999 --prefill 40,999".split()
    files = ["--json", str(folder / "bench.json"), "--png", str(folder / "bench.png")]
    with redirect_stdout(io.StringIO()) as out:
        assert offline.main(["--checkpoint", str(tiny_folder), *SMALL, *argv, *files]) == 0
    (folder / "out.txt").write_text(out.getvalue())
    return folder


def test_every_level_is_measured_and_written(measured: Path) -> None:
    report = json.loads((measured / "bench.json").read_text())
    assert list(report["streams"]) == ["1", "2"]
    assert (report["prompt_tokens"], report["new_tokens"], report["rounds"]) == (5, 3, 1)
    assert [(row["streams"], row["context"]) for row in report["decode"]] == [
        (1, 1),
        (2, 1),
        (1, 16),
        (2, 16),
    ]
    assert [row["tokens"] for row in report["prefill"]] == [40]
    assert report["left_out"] == [
        "context 999: the model has 256 positions",
        "prefill of 999: the model has 256 positions",
    ]
    assert report["runner"].split(",")[0] in ("eager", "native")


def test_the_figures_agree_with_each_other(measured: Path) -> None:
    report = json.loads((measured / "bench.json").read_text())
    assert report["read_gb_per_s"] > 0 and report["giga_ops_per_s"] > 0 and report["weights_mb"] > 0
    for row in report["streams"].values():
        assert row["share"] == pytest.approx(
            row["tokens_per_s"] / row["ceiling_tokens_per_s"], rel=0.1, abs=1e-3
        )
        assert 0 < row["host_share"] < 1 and row["host_ms"] > 0 and row["ttft_ms"] > 0 and row["gap_ms"] > 0
    for row in report["decode"]:
        assert row["tokens_per_s"] == pytest.approx(row["streams"] / row["ms"] * 1e3, rel=0.01, abs=0.1)
        assert row["share"] == pytest.approx(row["floor_ms"] / row["ms"], rel=0.1, abs=1e-3)
    for row in report["prefill"]:
        assert row["share"] == pytest.approx(
            row["tokens_per_s"] / row["ceiling_tokens_per_s"], rel=0.1, abs=1e-3
        )
    rows = [*report["streams"].values(), *report["decode"], *report["prefill"]]
    assert {row["bound"] for row in rows} <= {"memory", "compute"}


def test_the_load_test_reads_the_line(measured: Path) -> None:
    streams = json.loads((measured / "bench.json").read_text())["streams"]
    assert offline_speeds(measured / "bench.json") == {
        int(n): row["tokens_per_s"] for n, row in streams.items()
    }


def test_the_picture_is_one(measured: Path) -> None:
    assert (measured / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_people_get_tables_and_the_line_last(measured: Path) -> None:
    out = (measured / "out.txt").read_text().splitlines()
    assert out[-1] + "\n" == (measured / "bench.json").read_text()
    heads = [line.split()[0] for line in out if line.lstrip()[0].isalpha()]
    assert (
        heads
        == "model runner work hardware engine streams runner streams fitted runner tokens left left".split()
    )
    assert out[-2] == "left out   prefill of 999: the model has 256 positions"


def test_nothing_that_fits_is_still_an_engine_measured(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        *SMALL,
        "--streams",
        "1",
        "--contexts",
        "999",
        "--prefill",
        "999",
        "--png",
        str(tmp_path / "a.png"),
    ]
    assert offline.main(["--checkpoint", str(tiny_folder), *argv]) == 0
    report = last_line(capsys)
    assert report["decode"] == report["prefill"] == [] and len(report["left_out"]) == 2
    assert report["streams"]["1"]["tokens_per_s"] > 0
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--prompt-tokens 200 --new-tokens 100", "together exceed the model's 256 positions"),
        ("--checkpoint nowhere", "nowhere: no such file or folder"),
        ("--json /", "--json /: "),
        ("--png /dev/null/a.png", "--png /dev/null/a.png: "),
        ("--dtype int3", "int3"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    argv: str, message: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offline.main(["--checkpoint", str(tiny_folder), "--device", "cpu", *argv.split()]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    "argv",
    [
        *("--streams 1,a", "--streams 0", "--rounds 0", "--new-tokens 0", "--contexts 1,-2", "--prefill ,"),
        *("--threads 0", "--runner fast", "--quantization int3", "--kv-cache-dtype int8", "--isa sse2"),
    ],
)
def test_values_that_are_none_are_refused(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        offline.parse(argv.split())
    assert caught.value.code == 2
    assert f"argument {argv.split()[0]}: invalid" in capsys.readouterr().err


def test_instructions_are_the_native_runners(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        offline.parse("--isa avx2 --runner eager".split())
    assert "--isa is of the native runner" in capsys.readouterr().err


def test_levels_are_ascending_and_each_there_once() -> None:
    assert levels("16,1,4,1") == [1, 4, 16]


def asked(**changes: Any) -> argparse.Namespace:
    """What was asked, all of it possible at 256 positions."""
    chosen = {"streams": [1, 4], "contexts": [16, 64], "prefill": [64], "prompt_tokens": 8, "new_tokens": 8}
    return argparse.Namespace(**(chosen | changes))


def test_levels_beyond_the_pool_are_left_out_with_the_reason() -> None:
    config = EngineConfig(max_model_len=64, max_num_seqs=4, num_blocks=8, block_size=16)
    found = plan(asked(contexts=[16, 17, 64]), config, 256)
    assert found.decode == [(1, 16), (4, 16), (1, 17), (4, 17), (1, 64)]
    assert found.left_out == ["4 streams at context 64: 16 KV blocks, memory holds 8"]
    assert found.prefill == [64]


def test_the_longest_sequence_is_the_longest_that_fits() -> None:
    assert longest(asked(), 256) == 64
    assert longest(asked(contexts=[16, 257], prefill=[256]), 256) == 256
    assert longest(asked(contexts=[257], prefill=[300]), 256) == 16


def test_attention_pairs_are_those_of_the_loops() -> None:
    """3 prompt tokens and 2 new ones: two passes, in which a token sees itself and those before."""
    assert cache.attention_pairs(3, 2) == ((1 + 2 + 3) + (1 + 2 + 3 + 4), (1 + 2 + 3) + 4)


def test_cached_and_naive_are_compared_within_the_positions(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(tiny_folder), "--device", "cpu", "--rounds", "1"]
    assert cache.main(argv) == 0
    rows = last_line(capsys)["rows"]
    assert isinstance(rows, list)
    assert [(row["prompt_tokens"], row["new_tokens"]) for row in rows] == [(32, 100), (156, 100)]
    assert all(row["same_tokens"] > 0.9 for row in rows)


def test_grammars_are_measured_beside_free_replies(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(tiny_folder), *SMALL, "--streams", "2,1"]
    assert grammar.main(argv) == 0
    streams = last_line(capsys)["streams"]
    assert list(streams) == ["1", "2"]
    assert all(row["free"] > 0 and row["schema"] > 0 for row in streams.values())


def test_grammars_of_too_long_replies_are_refused(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(tiny_folder), "--device", "cpu", "--new-tokens", "300"]
    assert grammar.main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_drawing_is_measured_beside_computing(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every mix at every level, by both samplers."""
    assert sampling.main(["--checkpoint", str(tiny_folder), *SMALL, "--streams", "2,1"]) == 0
    report = last_line(capsys)
    assert [(row["streams"], row["mix"]) for row in report["rows"]] == [
        (count, mix) for count in (1, 2) for mix in sampling.MIXES
    ]
    for row in report["rows"]:
        assert min(row["step_us"], row["draw_us"], row["torch_draw_us"]) > 0
        assert row["share"] == pytest.approx(row["draw_us"] / row["step_us"], abs=1e-2)


@pytest.mark.parametrize("argv", ["--prompt-tokens 250 --new-tokens 7", "--new-tokens 1"])
def test_what_cannot_be_drawn_is_one_line(
    argv: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sampling.main(["--checkpoint", str(tiny_folder), "--device", "cpu", *argv.split()]) == 2
    assert "the model's 256 positions together" in capsys.readouterr().err
