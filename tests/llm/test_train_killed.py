"""A run killed without warning, at any step, goes on to the same losses and the same weights."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint import open_checkpoint
from llm.train.report import read_log

ROOT = Path(__file__).parents[2]
STEPS = 120
FLAGS = (
    "--tokenizer bytes --layers 2 --heads 2 --width 32 --positions 128 --device cpu --batch-size 2 --pack "
    f"--warmup 5 --steps {STEPS} --lr 0.01 --validation-share 0.2 --validate-every 4 --save-every 7 "
    "--log-every 1 --accumulate 2 --window 120 --keep best"
).split()


def command(folder: Path, out: str, *more: str) -> list[str]:
    data = folder / "chat.jsonl"
    if not data.exists():
        data.write_text(
            "".join(f'{{"prompt": "what is {n}?", "completion": "{n * n}"}}\n' for n in range(30))
        )
    run = ["--data", str(data), "--out", str(folder / out), *FLAGS, *more]
    return [sys.executable, "-m", "llm.train.sft", *run]


def run_and_kill(arguments: list[str], step: int) -> None:
    """Start, and kill -9 as soon as it says it has done that step."""
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
                process.kill()
                break
    assert process.returncode == -9


def losses(folder: Path, out: str) -> list[dict[str, Any]]:
    rows = read_log(folder / f"{out}.run" / "log.jsonl")
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.mark.slow
def test_killed_twice_and_resumed(tmp_path: Path) -> None:
    subprocess.run(command(tmp_path, "whole"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    first, second = random.randrange(1, 40), random.randrange(60, 100)
    run_and_kill(command(tmp_path, "parts"), first)
    run_and_kill(command(tmp_path, "parts", "--resume"), second)
    resumed = command(tmp_path, "parts", "--resume")
    subprocess.run(resumed, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    where = f"killed at steps {first} and {second}"
    assert losses(tmp_path, "parts") == losses(tmp_path, "whole"), where
    assert [row["step"] for row in losses(tmp_path, "whole") if "loss" in row] == list(range(1, STEPS + 1))
    whole, parts = (open_checkpoint(tmp_path / out).weights() for out in ("whole", "parts"))
    for (name, one), (_, two) in zip(whole, parts, strict=True):
        assert torch.equal(one, two), f"{name}, {where}"
