"""The proof by trial finds what it should find, and finds nothing in the native runner."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import llm.invariance as invariance
from llm.batch import Batch, Chunk
from llm.config import EngineConfig
from llm.errors import StepFailed
from llm.invariance import REPLY, Report, check, main
from llm.runner import Runner, StepOutput
from llm.runner.eager import EagerRunner
from llm.runner.native.weights import Quantization
from tests.llm.native_models import BLOCK, CONFIGS, isas, native, random_model

needs_native = pytest.mark.skipif(not isas(), reason="needs a CPU with AVX2 and a C compiler")
CONFIG = EngineConfig(160, max_num_seqs=64, max_num_batched_tokens=256, block_size=BLOCK, num_blocks=160)
VOCAB = 37


def trials_of(make_runner: Callable[[int], Runner], trials: int, seed: int = 0, threads: int = 2) -> Report:
    return check(make_runner, CONFIG, trials, seed, vocab_size=VOCAB, threads=threads)


@needs_native
@pytest.mark.parametrize(
    ("name", "quantization", "half_kv"),
    [
        ("window", "none", False),
        ("qwen3", "int8", True),
        ("gpt2", "int4", True),
        ("groups of 7", "int8", False),
    ],
)
def test_company_changes_no_bit(name: str, quantization: Quantization, half_kv: bool) -> None:
    """Law 2 of the native runner."""

    def make_runner(threads: int) -> Runner:
        return native(name, CONFIG, quantization=quantization, half_kv=half_kv, num_threads=threads)

    report = trials_of(make_runner, 50)
    assert (report.num_mismatches, report.num_wrong_rows, report.first) == (0, 0, "")
    assert report.num_trials == 50 and report.num_rows > 50 * REPLY
    # The law would be empty if nothing happened.
    assert report.num_needle_preemptions > 5 and report.num_preemptions > 40
    assert report.num_aborts > 10 and report.num_copies > 10
    assert report.num_parts > 100 and report.largest_batch > 40 and report.num_found > 100


def test_the_same_seed_is_the_same_trials() -> None:
    first, second, other = (trials_of(lambda _: Leaning(), 6, seed, threads=1) for seed in (1, 1, 2))
    assert first == second != other


@dataclass
class Leaning:
    """A model that is a hash, with one fault; no fault, no mismatch.

    A row's logits are a function of its sequence's tokens up to it.
    """

    fault: Callable[[Leaning, Batch, int, int], bool] = lambda self, batch, index, row: False
    threads: int = 1
    steps: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    about: str = "a runner for tests"

    def run(self, batch: Batch) -> StepOutput:
        self.steps += 1
        where = [(c, p) for c in batch.chunks for p in range(c.start, c.stop)]
        logits = torch.tensor([self.hash(*where[row]) for row in batch.rows])[:, None] + torch.arange(VOCAB)
        for i, row in enumerate(batch.rows):
            if self.fault(self, batch, i, row):
                logits[i, 5] = logits[i, 5].nextafter(torch.tensor(1e9))  # the last bit
        embedded = sum(c.length for c in batch.chunks if c.sequence.embeds)
        return StepOutput(logits, torch.zeros(embedded, 4))

    def hash(self, chunk: Chunk, position: int) -> float:
        """Of the tokens up to there."""
        return float(hash(tuple(chunk.sequence.tokens(0, position + 1))) % 1000)


def chunk_of(batch: Batch, row: int) -> Chunk:
    """Whose row it is."""
    for chunk in batch.chunks:
        if row < chunk.length:
            return chunk
        row -= chunk.length
    raise AssertionError(row)


FAULTS: dict[str, Callable[[Leaning, Batch, int, int], bool]] = {
    "the number of sequences": lambda self, batch, i, row: len(batch.chunks) > 8,
    "the number of tokens": lambda self, batch, i, row: batch.num_tokens > 48,
    "a row's place": lambda self, batch, i, row: row % 16 == 15,
    "a row's place among those asked for": lambda self, batch, i, row: i == 8,
    "the number of threads": lambda self, batch, i, row: self.threads > 1,
    "where a prompt is cut": lambda self, batch, i, row: (
        0 < chunk_of(batch, row).start < 40 and chunk_of(batch, row).length > 1
    ),
    "a second prefill": lambda self, batch, i, row: chunk_of(batch, row).sequence.num_preemptions > 0,
    "which blocks": lambda self, batch, i, row: chunk_of(batch, row).sequence.block_ids[0] > 99,
    "a step in which blocks are copied": lambda self, batch, i, row: bool(batch.copies),
    "who computed the prompt": lambda self, batch, i, row: chunk_of(batch, row).sequence.num_cached > 0,
}


def test_a_runner_without_a_fault_passes() -> None:
    report = trials_of(lambda threads: Leaning(threads=threads), 12)
    assert report.num_mismatches == 0 and report.num_rows > 500


@pytest.mark.parametrize("what", FAULTS)
def test_one_bit_that_depends_on_company_is_found(what: str) -> None:
    """A check that cannot fail proves nothing."""
    report = trials_of(lambda threads: Leaning(FAULTS[what], threads), 16)
    assert 0 < report.num_mismatches <= report.num_wrong_rows
    assert report.first.startswith("trial ") and "position" in report.first


def test_keys_that_are_not_copied_are_found() -> None:
    """A real fault of a real runner: forks that write into each other's blocks."""
    model = copy.deepcopy(random_model("course")).double()

    class Forgetful(EagerRunner):
        def run(self, batch: Batch) -> StepOutput:
            batch.copies.clear()
            return super().run(batch)

    assert trials_of(lambda _: Coarse(EagerRunner(model, CONFIG)), 10, threads=1).num_mismatches == 0
    assert trials_of(lambda _: Coarse(Forgetful(model, CONFIG)), 10, threads=1).num_mismatches > 0


@dataclass
class Coarse:
    """A runner's logits in steps of 1/8, which hide the last bits of float64."""

    runner: EagerRunner
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    about: str = "a runner for tests"

    def run(self, batch: Batch) -> StepOutput:
        output = self.runner.run(batch)
        return StepOutput((output.logits * 8).round() / 8, output.hidden)


def test_logits_that_are_no_numbers_prove_nothing() -> None:
    class Broken(Leaning):
        def hash(self, chunk: Chunk, position: int) -> float:
            return math.nan

    with pytest.raises(StepFailed):
        trials_of(lambda _: Broken(), 1)


@needs_native
def test_the_command(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tiny_folder), "--trials", "4", "--threads", "2"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert "4 trials, 0 mismatches" in lines
    found = json.loads(last)
    assert (found["num_trials"], found["num_mismatches"], found["threads"]) == (4, 0, 2)


def test_a_mismatch_is_status_1(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaning(*_: object, **__: object) -> Runner:
        return Leaning(FAULTS["the number of sequences"])

    monkeypatch.setattr(invariance, "make_runner", leaning)
    assert main(["--checkpoint", str(tiny_folder), "--trials", "12", "--runner", "eager"]) == 1
    out = capsys.readouterr().out
    assert "first      trial " in out and "\n12 trials, " in out
    assert json.loads(out.splitlines()[-1])["num_mismatches"] > 0


@pytest.mark.parametrize(
    "argv", [["--trials", "0"], ["--threads", "0"], ["--checkpoint", "/nowhere"], ["--threads", "-1"]]
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    argv: list[str], tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*(["--checkpoint", str(tiny_folder)] if "--checkpoint" not in argv else []), *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@needs_native
def test_a_real_assistant(smollm2_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A minute: some trials of SmolLM2 as it is served; the command does 200 unless told otherwise."""
    assert main(["--checkpoint", str(smollm2_folder), "--threads", "2", "--trials", "30"]) == 0
    assert "30 trials, 0 mismatches" in capsys.readouterr().out


def test_every_config_here_has_the_vocabulary_of_the_trials() -> None:
    assert {CONFIGS[name].vocab_size for name in ("window", "qwen3", "gpt2", "groups of 7")} == {VOCAB}
