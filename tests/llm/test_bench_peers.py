"""Comparing programs: the lines between processes, rounds in turn, ratios, the table, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llm.bench import peers, peers_own, peers_worker
from llm.bench.peers_contest import Entry, PeerError, Work, best, contest, ratio, started
from llm.bench.peers_table import row, table

DECODE: Work = {"work": "decode", "streams": 4, "context": 64, "steps": 32}
PREFILL: Work = {"work": "prefill", "tokens": 512}
WORKER = Path(peers_worker.__file__)
SCRIPTED = """
import os, sys

def start(options):
    if "refuses" in options:
        raise ValueError("no such\\nmodel")
    print("a library chats")
    os.write(1, b"and its C does too\\n")
    figures = iter(options["figures"])

    def measure(work):
        if (figure := next(figures, None)) is None:
            print("killed by the moon", file=sys.stderr)
            os._exit(3)
        if isinstance(figure, str):
            raise MemoryError(figure)
        with open(options["log"], "a") as log:
            log.write(options["name"] + " ")
        return {"ms_per_step" if work["work"] == "decode" else "tokens_per_s": figure}

    return {"name": "scripted 1.0", "model": options["name"]}, measure
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "scripted.py"
    path.write_text(SCRIPTED)
    return path


def entry(script: Path, name: str, program: str, *figures: float | str, **options: Any) -> Entry:
    """A contestant whose figures are these, one after the other."""
    given = {"name": name, "figures": figures, "log": str(script.with_name("log"))} | options
    return Entry(name, program, [sys.executable, "-I", str(WORKER), str(script), json.dumps(given)])


def test_a_worker_says_what_it_is_and_answers_each_line(script: Path) -> None:
    answers = io.StringIO()
    options = {"name": "x", "figures": ["too little cache", 2.5], "log": str(script.with_name("log"))}
    lines = f"{json.dumps(PREFILL)}\n{json.dumps(DECODE)}\nno JSON\n"
    peers_worker.answer(str(script), options, io.StringIO(lines), answers)
    facts, refused, figure, no_json = map(json.loads, answers.getvalue().splitlines())
    assert facts == {"name": "scripted 1.0", "model": "x"}
    assert refused == {"error": "MemoryError: too little cache"}
    assert figure == {"ms_per_step": 2.5}
    assert no_json["error"].startswith("JSONDecodeError")


def test_rounds_give_everybody_the_same_work_and_each_round_starts_with_another(script: Path) -> None:
    told: list[str] = []
    pair = [entry(script, "a", "causerie", 1, 2, 3, 4), entry(script, "b", "other", 5, 6, 7, 8)]
    with started(pair) as contestants:
        assert contestants[1].facts == {"name": "scripted 1.0", "model": "b"}
        figures = contest(contestants, [DECODE, PREFILL], 2, told.append)
    assert figures == [{"a": [1, 3], "b": [5, 7]}, {"a": [2, 4], "b": [6, 8]}]
    assert told == ["round 1 of 2", "round 2 of 2"]
    assert script.with_name("log").read_text() == "a b a b b a b a "
    assert all(contestant.process.returncode is not None for contestant in contestants)


def test_who_cannot_do_a_piece_of_work_is_left_out_of_it_alone(script: Path) -> None:
    told: list[str] = []
    shy = entry(script, "shy", "other", 1, 10, 2, "too little cache", 3)
    absent = Entry("absent", "other", entry(script, "absent", "other").command, lambda work: False)
    with started([shy, absent]) as contestants:
        figures = contest(contestants, [DECODE, PREFILL], 3, told.append)
    assert figures == [{"shy": [1, 2, 3]}, {}], "half of the rounds would be compared with all of others'"
    told = [line for line in told if not line.startswith("round")]
    assert len(told) == 1
    assert "shy" in told[0] and "too little cache" in told[0]


def test_a_contestant_that_ends_is_out_with_its_last_words_and_the_others_go_on(script: Path) -> None:
    told: list[str] = []
    pair = [entry(script, "brief", "other", 1, 2, 3), entry(script, "long", "causerie", 1, 2, 3, 4, 5, 6)]
    with started(pair) as contestants:
        figures = contest(contestants, [DECODE, PREFILL], 3, told.append)
    assert figures == [{"long": [1, 3, 5]}, {"long": [2, 4, 6]}]
    last_words = "brief: ended with status 3: killed by the moon; it is out"
    assert told == ["round 1 of 3", "round 2 of 3", last_words, "round 3 of 3"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["/nowhere/python"], "x: /nowhere/python does not run: No such file or directory"),
        (
            [sys.executable, "-c", "print('Welcome!'); input()"],
            "x: says 'Welcome!', which is no JSON object",
        ),
        ([sys.executable, "-c", "print(7)"], "x: says '7', which is no JSON object"),
        ([sys.executable, "-c", ""], "x: ended with status 0"),
    ],
)
def test_a_program_that_is_no_contestant_is_one_line(command: list[str], message: str) -> None:
    with pytest.raises(PeerError) as error, started([Entry("x", "other", command)]):
        pytest.fail("it started")
    assert str(error.value) == message


def test_a_contestant_that_refuses_to_start_says_why(script: Path) -> None:
    with pytest.raises(PeerError, match="^x: ValueError: no such model$"):
        with started([entry(script, "x", "other", refuses=True)]):
            pytest.fail("it started")


def test_ratios_are_of_one_round_and_above_one_when_ours_is_faster() -> None:
    found = ratio(DECODE, {"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 4.0]}, "a", "b")
    assert found is not None
    assert (found.rounds, found.median) == ((3.0, 2.0, 1.0), 2.0)
    found = ratio(PREFILL, {"a": [600.0], "b": [300.0]}, "a", "b")
    assert found is not None and found.median == 2.0
    assert ratio(DECODE, {"a": [1.0]}, "a", "b") is None


def test_the_best_is_the_lowest_time_or_the_highest_rate() -> None:
    figures = {"a": [9.0, 2.0, 2.0], "b": [3.0, 3.0, 3.0], "c": [1.0, 9.0, 9.0]}
    assert best(DECODE, figures, ["a", "b", "c", "d"]) == "a"
    assert best(PREFILL, figures, ["a", "b", "c", "d"]) == "c"
    assert best(PREFILL, figures, ["d"]) is None


def test_the_table_has_figures_spreads_and_ratios_and_gaps_where_there_are_none() -> None:
    programs = {"auto": "causerie", "int8": "causerie", "eager": "eager", "llama.cpp Q8_0": "llama.cpp"}
    programs |= {"llama.cpp Q4_0": "llama.cpp"}
    decode = {"auto": [4.0, 4.0], "int8": [5.0, 5.0], "llama.cpp Q8_0": [10.0, 11.0]}
    decode |= {"llama.cpp Q4_0": [8.0, 9.0]}
    prefill = {"auto": [900.0], "int8": [1000.0], "eager": [250.0], "llama.cpp Q4_0": [500.0]}
    rows = [row(DECODE, decode, programs), row(PREFILL, prefill, programs)]
    assert rows[0]["ratios"] == {
        "best : llama.cpp": {
            "ours": "auto",
            "theirs": "llama.cpp Q4_0",
            "median": 2.125,
            "min": 2,
            "max": 2.25,
        },
        "int8 : llama.cpp Q8_0": {
            "ours": "int8",
            "theirs": "llama.cpp Q8_0",
            "median": 2.1,
            "min": 2,
            "max": 2.2,
        },
    }
    assert {title: r["median"] for title, r in rows[1]["ratios"].items()} == {
        "best : eager": 4.0,
        "best : llama.cpp": 2.0,
    }
    text = "\n".join(table(rows, list(programs)))
    assert "4.00 ±0%" in text and "10.50 ±5%" in text and "1000 ±0%" in text
    assert "2.12 (2.00–2.25)" in text
    figures = next(line for line in text.splitlines() if line.startswith("4 × context 64"))
    assert figures.count("–") == 1, "the eager runner had no four streams"
    json.dumps(rows)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--llama-python python3", "--llama-python and --llama-model need each other"),
        ("--eager --openvino-model .", "--openvino-python and --openvino-model need each other"),
        ("", "nobody to compare with: --llama-python, --openvino-python or --eager"),
        (
            "--llama-python p --llama-model a=. --llama-model a=.",
            "--llama-model: the names a, a are not distinct",
        ),
        ("--llama-python p --llama-model a=nowhere.gguf", "nowhere.gguf: no such file or folder"),
        ("--eager --contexts 64 --prefill 512", "--prefill 512, exceeds the model's 256 positions"),
        ("--eager --contexts 250 --steps 9 --prefill 1", "--contexts 250 with --steps 9, or"),
        ("--eager --checkpoint nowhere", "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    argv: str, message: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.main(["--checkpoint", str(tiny_folder), *argv.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "argv", ["--formats int9", "--llama-model q8.gguf", "--llama-model =x", "--rounds 0", "--threads two"]
)
def test_options_that_are_none_are_refused(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.parse(argv.split())
    assert "error: argument" in capsys.readouterr().err


def test_our_own_steps_follow_each_other_from_the_context_on(tiny_folder: Path) -> None:
    """Each stream's rows stand at positions context, context + 1, …, in blocks that nobody shares."""
    options = {"checkpoint": str(tiny_folder), "threads": 1, "streams": 3, "length": 64}
    facts, measure = peers_own.start(options | {"load": LOAD})
    assert facts["name"] == "causerie"
    own = measure.__self__
    seen: list[list[tuple[int, int, int]]] = []

    def run(batch: Any, real: Any = own.run) -> Any:
        blocks = [c.sequence.block_ids[c.start // own.steps.config.block_size] for c in batch.chunks]
        assert len(set(blocks)) == len(blocks)
        seen.append([(c.start, c.length, c.sequence.output[-1]) for c in batch.chunks])
        tokens = real(batch)
        assert tokens == own.steps.runner.run(batch).logits.argmax(-1).tolist()
        return tokens

    own.run = run
    assert measure({"work": "decode", "streams": 3, "context": 20, "steps": 4})["ms_per_step"] > 0
    assert [[(start, length) for start, length, _ in step] for step in seen] == [
        [(20 + i, 1)] * 3 for i in range(6)
    ]
    assert len({token for _, _, token in seen[0]}) == 3, "streams start with tokens of their own"
    own.run = type(own).run.__get__(own)
    assert measure({"work": "prefill", "tokens": 40})["tokens_per_s"] > 0


LOAD: dict[str, str] = {"runner": "eager", "quantization": "none"}


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="this environment has llama.cpp")
def test_a_peer_without_its_library_is_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    argv = ["--checkpoint", str(tiny_folder), "--formats", "", "--prefill", "9", "--contexts", "9"]
    argv += ["--llama-python", sys.executable, "--llama-model", f"Q8_0={model}"]
    assert peers.main(argv) == 2
    assert capsys.readouterr().err == "llama.cpp Q8_0: ModuleNotFoundError: No module named 'llama_cpp'\n"


def test_a_whole_comparison(
    script: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The eager runner beside a scripted program that stands where a peer's Python would."""
    scripted = entry(script, "", "", *[0.001] * 4).command
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nimport os\nos.execv({scripted[0]!r}, {scripted!r})\n")
    fake.chmod(0o755)
    file = tmp_path / "new" / "peers.json"
    argv = f"--checkpoint {tiny_folder} --llama-python {fake} --llama-model Q8_0={script} --eager --disturb"
    argv += f" --rounds 2 --threads 1 --streams 1 --contexts 8 --steps 2 --prefill 16 --json {file}"
    assert peers.main([*argv.split(), "--formats", ""]) == 0
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert json.loads(file.read_text()) == report
    assert (report["bench"], report["disturbed"], report["rounds"]) == ("peers", True, 2)
    assert list(report["contestants"]) == ["eager", "llama.cpp Q8_0"]
    assert report["contestants"]["eager"]["system"].startswith("eager runner")
    assert [r["work"]["work"] for r in report["rows"]] == ["decode", "prefill"]
    assert all(set(r["figures"]) == {"eager", "llama.cpp Q8_0"} for r in report["rows"])
    assert "scripted 1.0" in out
