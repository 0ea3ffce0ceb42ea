"""The load test's command: options, tables, JSON line, one server or two."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.bench.__main__ import main, offline_speeds
from clients.child import ChildServer
from tests.clients.fake_server import FakeServer

ASIS = ["--prompt-tokens", "0"]
SMALL = ["--streams", "1,2", "--requests", "2", "--rounds", "2", "--max-tokens", "3"]
FAKE = f"{sys.executable} -m tests.clients.fake_server"


def last_line(out: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(out.splitlines()[-1])
    return line


def sent(fake: FakeServer) -> list[tuple[str, int]]:
    """What was asked for, without the questions that find out what the server is."""
    return [(r["messages"][0]["content"], r["max_tokens"]) for r in fake.requests if r["max_tokens"] > 1]


def test_table_and_json_line(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline = tmp_path / "offline.json"
    offline.write_text('a table\n{"streams": {"1": {"tokens_per_s": 1e9}, "4": {"tokens_per_s": 1}}}\n')
    copy = tmp_path / "new" / "copy.json"
    assert main([fake.url, *SMALL, *ASIS, "--offline", str(offline), "--json", str(copy)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("hardware") and "cores" in lines[0]
    assert lines[1] == f"server     {fake.url}  fake"
    assert lines[2].startswith("work       2, 2 requests a level: questions → 3; each came to")
    assert lines[4].split()[:2] == ["streams", "tokens/s"]
    assert "server µs" not in lines[4], "the fake says no pid"
    assert f"offline is the share of the speed in {offline}" in out
    result = last_line(out)
    assert result == json.loads(copy.read_text())
    assert result["bench"] == "http" and result["requests"] == {"1": 2, "2": 2} and result["num_errors"] == 0
    row = result["streams"]["1"]
    assert row["completion_tokens"] > 0 and row["tokens_per_s"] > 0 and row["speedup"] == 1.0
    assert row["ttft_ms"] <= row["ttft_p95_ms"] <= row["ttft_p99_ms"] <= row["e2e_p99_ms"]
    assert row["offline_share"] is not None and row["offline_share"] < 1
    assert result["streams"]["2"]["offline_share"] is None, "not measured offline"
    assert all(request["ignore_eos"] is True and request["temperature"] == 0 for request in fake.requests)
    assert {tokens for _, tokens in sent(fake)} == {3}


def test_words_and_sampling_are_what_was_asked(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = ["--temperature", "0.8", "--top-p", "0.9", "--top-k", "50"]
    assert main([fake.url, "--words", "48", *SMALL, *sampling]) == 0
    assert {len(prompt.split()) for prompt, _ in sent(fake)} == {48}
    assert all((r["temperature"], r["top_p"], r["top_k"]) == (0.8, 0.9, 50) for r in fake.requests)
    out = capsys.readouterr().out
    assert "48 words → 3" in out and "temperature 0.8, top_p 0.9, top_k 50" in out
    assert last_line(out)["kinds"] == [["48", "3", 1.0]] and last_line(out)["prompt_unit"] == "words"


def test_tokens_are_met_as_the_server_counts(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The fake counts words and adds two of its own."""
    assert main([fake.url, "--prompt-tokens", "30", *SMALL]) == 0
    assert {len(prompt.split()) for prompt, _ in sent(fake)} == {28}
    assert "each came to 30 prompt" in capsys.readouterr().out


def test_a_mixture_at_a_rate_with_an_slo(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "new" / "load.png"
    load = ["--rate", "500,1000", "--requests", "20", "--rounds", "1", "--mix", "20:7*3,40-50:8"]
    assert main([fake.url, *load, "--slo-ttft-ms", "1e9", "--png", str(png)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[4].split()[0] == "req/s" and "20 tokens → 7 ×3, 40-50 tokens → 8 ×1" in out
    result = last_line(out)
    assert list(result["rates"]) == ["500", "1000"] and "streams" not in result
    assert result["rates"]["500"]["goodput_share"] == 1.0
    assert {tokens for _, tokens in sent(fake)} == {7, 8}
    assert {len(prompt.split()) for prompt, tokens in sent(fake) if tokens == 7} == {18}
    assert all(38 <= len(prompt.split()) <= 48 for prompt, tokens in sent(fake) if tokens == 8)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_common_prefix_is_sent_first_alone(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--words", "5", "--cached-prefix", "10", "--max-tokens", "3"]
    assert main([fake.url, *argv, "--streams", "1", "--requests", "2", "--rounds", "2"]) == 0
    heads = [" ".join(prompt.split()[:10]) for prompt, _ in sent(fake)]
    assert {len(prompt.split()) for prompt, _ in sent(fake)} == {10 + 5}
    assert len(heads) == 1 + 2 * 3 and len(set(heads[1:4])) == len(set(heads[4:])) == 1
    assert heads[1] != heads[4], "another prefix in another round"
    out = capsys.readouterr().out
    assert "first ms" in out and "after 10 common tokens" in out
    assert last_line(out)["streams"]["1"]["first_ttft_ms"] > 0


def test_two_servers_in_turn(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = tmp_path / "both.png"
    with FakeServer() as other:
        other.unknown = {"ignore_eos", "seed"}
        other.has_usage = False
        argv = [fake.url, *SMALL, "--words", "5", "--against", other.url + "/v1", "--against-model", "theirs"]
        argv += ["--against-temperature", "0.7"]
        assert main([*argv, "--png", str(png)]) == 0
        assert sorted(sent(fake)) == sorted(sent(other))
        assert {request["model"] for request in other.requests} == {"theirs"}
    out = capsys.readouterr().out
    assert {request["temperature"] for request in fake.requests} == {0}
    assert {request["temperature"] for request in other.requests} == {0.7} and "greedy, against 0.7" in out
    against = next(line for line in out.splitlines() if line.startswith("against"))
    assert "measured without ignore_eos, seed, which it refuses" in against
    assert "sends no usage: chunks with text are counted" in against
    assert out.count("\n       1  server") == out.count("\n       1  against") == 2, "a line in each table"
    assert "server : against in the same round, median (least–most)" in out
    result = last_line(out)
    assert result["against"]["refused_params"] == ["ignore_eos", "seed"]
    assert result["against"]["counted_by"] == "chunks" and result["counted_by"] == "usage"
    least, most = result["ratios"]["2"]["tokens_per_s"][1:]
    assert 0 < least <= result["ratios"]["2"]["tokens_per_s"][0] <= most
    assert "NOT THE SAME WORK" not in out, "replies are as long, and one does not count prompts"
    assert png.stat().st_size > 0


def test_servers_that_are_started_tell_their_start_and_memory(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = ["--against-command", FAKE, "--against-api-key", "k"]
    assert main(["--spawn", "--checkpoint", str(tiny_folder), *SMALL, *peer]) == 0
    out = capsys.readouterr().out
    for name in ("server", "against"):
        line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
        assert "first token" in line and "after its start" in line and "peak memory" in line
    result = last_line(out)
    for server in (result, result["against"]):
        assert server["start_seconds"] > 0 and server["peak_memory_mb"] > 5
        assert server["streams"]["2"]["server_cpu_us_per_token"] is not None
    assert result["streams"]["2"]["completion_tokens"] > 0


def test_a_peer_that_does_not_start_is_said(capsys: pytest.CaptureFixture[str], fake: FakeServer) -> None:
    script = f"{sys.executable} -c 'raise SystemExit(\"no such model\")'"
    assert main([fake.url, *SMALL, "--against-command", script]) == 2
    err = capsys.readouterr().err
    assert "ended with code 1 before it was ready" in err and "no such model" in err


def test_failures_and_ignored_fields_are_said(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(4):
        fake.say("what it is, how it counts twice, and a warm-up")
    fake.say("a", headers={"x-ignored-params": "ignore_eos, seed"})
    fake.fail(500, {"error": {"message": "our bug"}})
    few = ["--streams", "1", "--requests", "2", "--rounds", "1", "--words", "3"]
    assert main([fake.url, *few]) == 1
    out = capsys.readouterr().out
    assert "ignored by the server: ignore_eos, seed" in out
    assert "server: 1 of 2 requests failed, the first with: our bug" in out
    last = last_line(out)
    assert last["num_errors"] == 1 and last["ignored_params"] == ["ignore_eos", "seed"]


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
        assert main([server.url, *few, "--offline", str(same)]) == 0
        out = capsys.readouterr().out
        assert main([server.url, *few, "--offline", str(other)]) == 0
        assert "NOT THE SAME WORK" in capsys.readouterr().out
    assert "NOT THE SAME WORK" not in out and "greedy" in out
    row = last_line(out)["streams"]["1"]
    assert row["completion_tokens"] == 2 * 64 and 2 * 58 <= row["prompt_tokens"] <= 2 * 64


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http://127.0.0.1:1", *SMALL]) == 2
    assert capsys.readouterr().err == "no server answers at http://127.0.0.1:1\n"


def test_a_file_that_cannot_be_written_is_said_before_minutes_of_measuring(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([fake.url, *SMALL, "--png", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and fake.requests == []


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
