"""A runner alone and an engine's requests: what is timed is the real thing, and the clock adds up."""

from __future__ import annotations

import pytest
import torch

from llm.bench.steps import FEWEST, MOST, Steps
from llm.bench.streams import Run, Stopwatch, measure
from llm.config import EngineConfig
from llm.kv.concat import ConcatCache
from llm.runner.eager import EagerRunner
from tests.fakes import tiny_model, tiny_text_model

CONFIG = EngineConfig(max_model_len=24, max_num_seqs=3, max_num_batched_tokens=8, block_size=4)


@pytest.fixture
def steps() -> Steps:
    """Of a runner in whose cache nothing was ever written: NaN."""
    runner = EagerRunner(tiny_model(dtype=torch.float64), CONFIG)
    runner.kv.pool.fill_(float("nan"))
    return Steps(runner, CONFIG, 257)


def runner_of(steps: Steps) -> EagerRunner:
    assert isinstance(steps.runner, EagerRunner)
    return steps.runner


def test_a_filled_pool_holds_a_prompt_for_every_stream(steps: Steps) -> None:
    """A decode step at the longest context is the last step of that prompt, in every stream."""
    steps.fill(steps.num_blocks(3, 24))
    batch = steps.decode(3, 24)
    logits = steps.runner.run(batch).logits
    ids = torch.tensor(batch.chunks[0].sequence.prompt)
    with torch.inference_mode():
        model = runner_of(steps).model
        oracle = model.logits(model(ids[None], torch.arange(24), ConcatCache()))[0, -1]
    assert logits.shape == (3, 257)
    assert all(torch.allclose(row, oracle, atol=1e-9) for row in logits)


@pytest.mark.parametrize("context", [1, 3, 4, 5, 23])
def test_every_level_computes_with_numbers(steps: Steps, context: int) -> None:
    steps.fill(steps.num_blocks(3, context))
    assert steps.runner.run(steps.decode(3, context)).logits.isfinite().all()


def test_no_block_has_two_owners(steps: Steps) -> None:
    tables = [chunk.sequence.block_ids for chunk in steps.decode(3, 23).chunks]
    blocks = [block for table in tables for block in table]
    assert [len(table) for table in tables] == [6, 6, 6]
    assert sorted(blocks) == list(range(CONFIG.total_blocks))
    assert blocks != sorted(blocks), "as they lie after hours of serving"


def test_a_prefill_is_the_engines_chunks(steps: Steps) -> None:
    batches = steps.prefill(19)
    chunks = [chunk for batch in batches for chunk in batch.chunks]
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 8), (8, 16), (16, 19)]
    assert [batch.rows for batch in batches] == [[], [], [2]]
    logits = [steps.runner.run(batch).logits for batch in batches][-1]
    assert logits.shape == (1, 257) and logits.isfinite().all()


def test_time_is_that_of_the_steps(steps: Steps) -> None:
    steps.fill(steps.num_blocks(2, 8))
    steps.runner = watch = Stopwatch(steps.runner)
    assert 0 < steps.time_decode(2, 8, span=0.0) < watch.seconds
    assert watch.num_steps == 1 + FEWEST
    steps.time_decode(2, 8, span=1e9)
    assert watch.num_steps == 1 + FEWEST + 1 + MOST
    before = watch.seconds
    assert steps.time_prefill(19) >= watch.seconds - before > 0
    assert watch.num_steps == 1 + FEWEST + 1 + MOST + 3


def test_a_run_knows_what_the_runner_had_of_it() -> None:
    engine = tiny_text_model().engines[0]
    runner = engine.runner
    run = measure(engine, 3, 5, 7, 257)
    assert engine.runner is runner, "the stopwatch has left"
    assert [len(times) for times in run.times] == [7, 7, 7]
    assert run.num_steps == 7, "three prompts fit into the first step, which draws the first tokens"
    assert 0 < run.runner_seconds < run.seconds
    assert max(times[-1] for times in run.times) <= run.seconds


def test_figures_of_a_run() -> None:
    run = Run([[1.0, 2.0, 5.0], [3.0, 4.0, 5.0]], seconds=6.0, runner_seconds=4.5, num_steps=5)
    assert run.tokens_per_s == 6 / 5
    assert (run.ttft_ms, run.gap_ms) == (2000.0, 1000.0)
    assert run.host_ms == pytest.approx(300.0)
    assert run.host_share == 0.25
    assert Run([[1.0]], 1.0, 0.5, 1).gap_ms == 0.0


def test_a_failed_run_gives_the_runner_back() -> None:
    engine = tiny_text_model().engines[0]
    runner = engine.runner
    with pytest.raises(AssertionError):
        measure(engine, 1, 65, 1, 257)
    assert engine.runner is runner
