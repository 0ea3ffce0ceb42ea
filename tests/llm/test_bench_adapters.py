"""What adapters cost: each row gets the adapter it should, and figures are those of the times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.bench.adapters import BASE, main, mixes, parse, random_adapters, table
from llm.bench.steps import Steps
from llm.config import EngineConfig
from llm.runner.eager import EagerRunner
from tests.fakes import TINY, tiny_model


def test_the_adapters_of_a_batch_take_turns() -> None:
    config = EngineConfig(max_model_len=64)
    steps = Steps(EagerRunner(tiny_model(), config), config, 257)
    owners = [chunk.sequence.adapter for chunk in steps.decode(5, 8, ("a", "b")).chunks]
    assert owners == ["a", "b", "a", "b", "a"]
    assert {chunk.sequence.adapter for chunk in steps.decode(3, 8).chunks} == {""}


def test_what_is_compared() -> None:
    keys = list("abcd")
    assert mixes(1, keys) == {BASE: ("",), "one": ["a"]}
    assert list(mixes(2, keys)) == [BASE, "one", "2 different"]
    assert mixes(16, keys)["4 different"] == keys


def test_ratios_are_those_within_a_round() -> None:
    times = {(4, BASE): [0.001, 0.002, 0.004], (4, "one"): [0.002, 0.003, 0.004]}
    base, one = table(times)
    assert (base["ms"], base["ratio"], one["ms"]) == (2.0, 1.0, 3.0)
    assert (one["ratio"], one["least"], one["most"]) == (1.5, 1.0, 2.0)


def test_adapters_have_something_to_compute() -> None:
    made = random_adapters(TINY, 3, "c_attn")
    assert len(made) == 4 and all(part.rank == 3 and part.b.any() for a in made.values() for part in a.parts)
    assert not made["random-0"].parts[0].a.equal(made["random-1"].parts[0].a)


def test_the_command(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--runner", "eager", "--threads", "1", "--rounds", "1", "--context", "8"]
    assert main(["--checkpoint", str(tiny_folder), *options, "--streams", "1,2", "--rank", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("hardware ") and "eager runner" in lines[1]
    steps = json.loads(lines[-1])["steps"]
    assert [(step["rows"], step["adapters"]) for step in steps] == [
        (1, BASE),
        (1, "one"),
        (2, BASE),
        (2, "one"),
        (2, "2 different"),
    ]
    assert all(step["ms"] > 0 for step in steps) and parse([]).streams == [1, 4, 16]
    for wrong in (["--context", "9999"], ["--rank", "5000"], ["--targets", "nothing"]):
        assert main(["--checkpoint", str(tiny_folder), *options, *wrong]) == 2
        assert wrong[0].strip("-") in capsys.readouterr().err
