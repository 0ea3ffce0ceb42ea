"""A run's file: the flags' names, flags win, and what is saved can be run again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from llm.errors import OptionError
from llm.train.config_file import add_config_flag, parse, write_config


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_config_flag(made)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--data", nargs="+", required=True)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--keep", choices=("best", "last"), default="best")
    made.add_argument("--pack", action="store_true")
    made.add_argument("--steps", type=int)
    made.add_argument("--resume", action="store_true")
    return made


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_the_file_is_under_the_flags_and_over_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "out: m\ndata: [a.jsonl, b.jsonl]\nbatch-size: 4\nlr: 1e-3\npack: true\nsteps:\n")
    options = parse(parser(), ["--config", file, "--batch-size", "2"])
    assert (options.out, options.data) == (Path("m"), ["a.jsonl", "b.jsonl"])
    assert (options.batch_size, options.lr, options.pack) == (2, 0.001, True)
    assert (options.keep, options.steps) == ("best", None)
    assert parse(parser(), [f"--config={file}", "--data", "c"]).data == ["c"]


def test_what_is_saved_is_such_a_file(tmp_path: Path) -> None:
    options = parse(parser(), ["--out", "m", "--data", "a", "b", "--pack", "--resume"])
    write_config(tmp_path / "training.json", options, steps=7)
    saved = json.loads((tmp_path / "training.json").read_text())
    assert saved == {
        "out": "m", "data": ["a", "b"], "batch_size": 8, "lr": 0.1, "keep": "best", "pack": True, "steps": 7
    }  # fmt: skip
    again = parse(parser(), ["--config", str(tmp_path / "training.json")])
    assert vars(again) | {"config": None} == vars(options) | {"steps": 7, "resume": False, "config": None}
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 4", "no option 'batchsize', the nearest is 'batch-size'"),
        ("resume: true", "no option 'resume'"),
        ("batch_size: four", "batch_size: 'four' is no int"),
        ("batch_size: 1.5", "batch_size: 1.5 is no int"),
        ("batch_size: true", "batch_size: True is no int"),
        ("lr: [1]", r"lr: \[1\] is no float"),
        ("data: [{a: 1}]", r"data: {'a': 1} is no str"),
        ("pack: 1", "pack must be true or false, got 1"),
        ("keep: first", "keep must be best, last, got 'first'"),
        ("- a", "expected names and values, got list"),
        ("a: [", "not YAML: "),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(OptionError, match=f"^{file}: {message}") as caught:
        parse(parser(), ["--out", "m", "--data", "a", "--config", file])
    assert "\n" not in str(caught.value)


def test_no_such_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none.yaml: cannot read: No such file"):
        parse(parser(), ["--config", str(tmp_path / "none.yaml")])
