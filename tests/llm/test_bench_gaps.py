"""The bench of gaps: it sees what the bound does, and refuses in one line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llm.batch import Batch
from llm.bench import gaps
from llm.bench.gaps import Arrival, arrive, median
from llm.config import EngineConfig
from llm.engine import Engine
from llm.pace import LEAST, Pace
from llm.runner import StepOutput
from llm.runner.eager import EagerRunner
from tests.fakes import tiny_model

CONFIG = EngineConfig(1200, max_num_seqs=3, enable_prefix_caching=False)


class Watched(EagerRunner):
    """Remembers the longest chunk of each step that has decoders."""

    longest: list[int]

    def run(self, batch: Batch) -> StepOutput:
        if batch.num_decoding:
            self.longest.append(max(chunk.length for chunk in batch.chunks))
        return super().run(batch)


@pytest.mark.parametrize(("token_seconds", "longest"), [(1.0, LEAST), (1e-9, CONFIG.max_num_batched_tokens)])
def test_a_long_prompt_comes_in_chunks_that_the_pace_allows(token_seconds: float, longest: int) -> None:
    class Fixed(Pace):
        def fits(self, start: int, seconds: float) -> float:
            return 0.1 / token_seconds

    model = tiny_model(num_positions=1200)
    runner = Watched(model, CONFIG)
    runner.longest = []
    engine = Engine(runner, CONFIG, 257, lambda events: None)
    engine.scheduler.pace = Fixed(0.1)
    begin = time.perf_counter()
    arrival = arrive(engine, 2, 1000)
    passed = (time.perf_counter() - begin) * 1e3
    assert max(runner.longest) in (longest, longest - 2)
    num_chunks = sum(n > 1 for n in runner.longest[gaps.NUM_BEFORE :])
    assert 2 * arrival.num_steps == num_chunks, "all chunks, and one of them as often"
    assert arrival.noise >= 1
    assert 0 < arrival.chunk_ms <= arrival.longest_ms <= arrival.ttft_ms <= passed
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_blocks


def test_medians_are_of_each_figure() -> None:
    rounds = [Arrival(1, 10, 30, 5, 4, 1), Arrival(3, 20, 20, 9, 2, 3), Arrival(2, 30, 60, 7, 3, 2)]
    assert median(rounds) == Arrival(2, 20, 30, 7, 3, 2)
    assert [one.ratio for one in rounds] == [3, 1, 2]


def test_the_command(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "MAX_STEPS", 100)
    argv = ["--checkpoint", str(tiny_folder), "--threads", "1", "--rounds", "1", "--decoders", "2"]
    assert gaps.main([*argv, "--prompt-tokens", "100"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["max_step_ms"] for row in report["rows"]] == [100, 0]
    assert all(row["longest_ms"] >= row["chunk_ms"] > 0 for row in report["rows"])
    assert gaps.main([*argv, "--prompt-tokens", "999"]) == 2
    assert "--prompt-tokens 999" in capsys.readouterr().err
