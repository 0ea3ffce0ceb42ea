"""The load test's command: options, table, JSON line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.bench import main, offline_speeds, parse_levels, table
from clients.child import ChildServer
from tests.clients.fake_server import FakeServer

ASIS = ["--prompt-tokens", "0"]
SMALL = ["--streams", "1,2", "--requests", "2", "--rounds", "2", "--max-tokens", "3"]


def test_table_and_json_line(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline = tmp_path / "offline.json"
    offline.write_text('a table\n{"streams": {"1": {"tokens_per_s": 1e9}, "4": {"tokens_per_s": 1}}}\n')
    assert main(["--url", fake.url, *SMALL, *ASIS, "--offline", str(offline)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("hardware") and "cores" in lines[0]
    assert lines[1].startswith("work       fake: 2, 2 requests a level")
    assert lines[2].split()[:3] == ["streams", "TTFT", "ms"]
    assert "server µs" not in lines[2], "the fake says no pid"
    result = json.loads(lines[-1])
    assert result["bench"] == "http" and result["requests"] == {"1": 2, "2": 2}
    row = result["streams"]["1"]
    assert row["completion_tokens"] > 0 and row["tokens_per_s"] > 0 and row["speedup"] == 1.0
    assert row["offline_share"] is not None and row["offline_share"] < 1
    assert result["streams"]["2"]["offline_share"] is None, "not measured offline"
    assert all(request["ignore_eos"] is True and request["temperature"] == 0 for request in fake.requests)
    assert all(request["max_tokens"] == 3 for request in fake.requests)


def test_failures_and_ignored_fields_are_said(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.say("warm-up")
    fake.say("a", headers={"x-ignored-params": "ignore_eos, seed"})
    fake.fail(500, {"error": {"message": "our bug"}})
    assert main(["--url", fake.url, "--streams", "1", "--requests", "2", "--rounds", "1", *ASIS]) == 1
    out = capsys.readouterr().out
    assert "ignored    by the server: ignore_eos, seed" in out
    assert "1 of 2 requests failed, the first with: our bug" in out
    last = json.loads(out.splitlines()[-1])
    assert last["num_errors"] == 1 and last["ignored_params"] == ["ignore_eos", "seed"]


def test_a_spawned_server_is_measured_with_its_cpu_time(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--spawn", "--checkpoint", str(tiny_folder), *SMALL]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["streams"]["2"]
    assert row["completion_tokens"] > 0 and row["server_cpu_us_per_token"] is not None


def test_the_work_is_that_of_the_offline_bench(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same lengths by default, so that the share is one; other lengths are said beside it."""
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    for path, new_tokens in ((same, 64), (other, 8)):
        line = {"prompt_tokens": 64, "new_tokens": new_tokens, "streams": {"1": {"tokens_per_s": 9.0}}}
        path.write_text(json.dumps(line))
    few = ["--streams", "1", "--requests", "2", "--rounds", "1"]
    with ChildServer(["--checkpoint", str(tiny_folder)]) as server:
        assert main(["--url", server.url, *few, "--offline", str(same)]) == 0
        out = capsys.readouterr().out
        assert main(["--url", server.url, *few, "--offline", str(other)]) == 0
        assert "NOT THE SAME WORK" in capsys.readouterr().out
    assert "NOT THE SAME WORK" not in out and "greedy" in out
    row = json.loads(out.splitlines()[-1])["streams"]["1"]
    assert row["completion_tokens"] == 2 * 64 and 2 * 58 <= row["prompt_tokens"] <= 2 * 64


def test_levels() -> None:
    assert parse_levels("1,4,16", None) == {1: 8, 4: 16, 16: 64}
    assert parse_levels("4,1", "6") == {4: 6, 1: 6}
    assert parse_levels("1,4", "2,3") == {1: 2, 4: 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--streams", "1,x"], "--streams must be whole numbers"),
        (["--streams", "0"], "--streams must be whole numbers"),
        (["--streams", "1,4", "--requests", "1,2,3"], "3 numbers for 2 levels"),
        (["--rounds", "0"], "--rounds"),
        (["--checkpoint", "x"], "--spawn"),
    ],
)
def test_options_that_cannot_be_used(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "x", "[]", '{"streams": [1]}', '{"streams": {"1": {}}}'])
def test_a_file_that_is_no_offline_bench(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "offline.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="offline bench"):
        offline_speeds(path)
    assert main(["--offline", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_columns_nobody_filled_are_left_out() -> None:
    text = table(
        {
            1: {"streams": 1, "gap_ms": None, "ttft_ms": 2.0},
            4: {"streams": 4, "gap_ms": None, "ttft_ms": None},
        }
    )
    assert [line.split() for line in text.splitlines()] == [
        ["streams", "TTFT", "ms"],
        ["1", "2.0"],
        ["4", "–"],
    ]
