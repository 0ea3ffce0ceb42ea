"""Whether company changes a sequence's logits: a needle alone, and the same needle in random batches.

    causerie invariance --checkpoint checkpoints/causette --trials 200

A needle is a prompt and a reply. Alone, the prompt is computed in one step, the reply token by token. A trial
computes the same tokens among 1 to 63 others that come, fork and are aborted, in blocks dealt at random and
too few for all, so that sequences, the needle too, lose theirs and are computed anew; the budget of a step,
and with it where the prompt is cut, is random as well; by one thread or by several. Some of the others begin
like the needle, and what the first has computed the next takes from the prefix cache. It is the real
scheduler that makes the batches. Compared are the bytes of the logits at every position, or, of a needle that
may take its prompt from the cache, of its reply. A runner that promises nothing (`--runner eager`) shows what
a mismatch looks like.

Refuses to know how logits are computed; the tokens of a reply are the needle's own whatever the logits say,
so that one wrong row is one mismatch.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from llm.batch import Batch, Chunk, Drawn
from llm.checkpoint import Checkpoint, locate_checkpoint, open_checkpoint
from llm.config import EngineConfig, SamplingParams
from llm.errors import OptionError, StepFailed
from llm.hardware import describe, usable_cores
from llm.load import make_runner
from llm.placement import Place, resolve_places
from llm.runner import Runner, StepOutput
from llm.scheduler import Scheduler
from llm.sequence import Logprob, Status
from llm.sequence import Sequence as Tokens
from llm.train.options import run_command

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = EngineConfig(max_model_len=176, max_num_seqs=64, max_num_batched_tokens=512, num_blocks=256)
"""Of a checkpoint's trials: the longest needle is longer than any tile of keys."""
REPLY = 16
"""New tokens of a needle, and of a companion at most twice as many."""
PACES = (1, 4, 64)
"""Sequences that may join before a step."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A sequence and what a runner says of it alone.

    Attributes:
        prompt, reply: its tokens.
        rows: bytes of the logits of every position but the last, which nobody asks for.
    """

    prompt: list[int]
    reply: list[int]
    rows: list[Tensor]


@dataclass(slots=True)
class Report:
    """What happened in the trials.

    Attributes:
        num_trials: done.
        num_mismatches: trials with a row that had other bits than alone.
        num_rows: logits compared, positions of needles.
        num_wrong_rows: of these, how many had other bits.
        num_needle_preemptions: how often a needle lost its blocks and was computed anew.
        num_preemptions: the same, of all sequences.
        num_copies: blocks copied because a fork wrote to them, or because they began like a prompt.
        num_found: tokens of needles' prompts that others had computed.
        num_aborts: companions that left early.
        num_parts: chunks in which needles' prompts were computed.
        largest_batch: sequences in one step.
        first: where the first mismatch was; empty if there is none.
    """

    num_trials: int = 0
    num_mismatches: int = 0
    num_rows: int = 0
    num_wrong_rows: int = 0
    num_needle_preemptions: int = 0
    num_preemptions: int = 0
    num_copies: int = 0
    num_found: int = 0
    num_aborts: int = 0
    num_parts: int = 0
    largest_batch: int = 0
    first: str = ""


def check(
    make_runner: Callable[[int], Runner],
    config: EngineConfig,
    trials: int,
    seed: int,
    *,
    vocab_size: int,
    threads: int = 2,
    told: Callable[[int], None] = lambda done: None,
) -> Report:
    """Needles alone on one thread, then trials by one thread and by several in turn.

    Args:
        make_runner: number of threads → a runner with the bounds of `config`.
        config: the largest batch, step and pool of the trials.
        trials: how many.
        seed: of every random choice.
        vocab_size: ids are drawn from 0 to below it.
        threads: of the second runner; 1 for none.
        told: called with the number of trials done, after each.

    Raises:
        StepFailed: logits that are not finite.
    """
    rng = random.Random(seed)
    runners = {count: make_runner(count) for count in (1, threads)}
    longest = config.max_model_len - REPLY
    lengths = [1, min(17, longest), max(1, longest // 3), longest]
    needles = [alone(runners[1], config, _ids(rng, length, vocab_size)) for length in lengths]
    report = Report()
    for number in range(trials):
        count = (1, threads)[number % 2]
        trial = Trial(runners[count], config, rng.choice(needles), rng, vocab_size, report)
        wrong_before = report.num_wrong_rows
        where = trial.run()
        report.num_trials += 1
        report.num_mismatches += report.num_wrong_rows > wrong_before
        if where and not report.first:
            report.first = f"trial {number}, {count} threads: {where}"
        told(report.num_trials)
    return report


def alone(runner: Runner, config: EngineConfig, prompt: list[int]) -> Needle:
    """The prompt in as few steps as the config allows, then REPLY greedy tokens, nobody else in the batch."""
    scheduler = Scheduler(config)
    sequence = Tokens(prompt, SamplingParams(max_tokens=REPLY, temperature=0.0, prompt_logprobs=0))
    scheduler.add(sequence)
    rows: list[Tensor] = []
    while (batch := scheduler.schedule()) is not None:
        logits = runner.run(batch).logits
        if not bool(logits.isfinite().all()):
            raise StepFailed("the model produced logits that are not finite")
        rows.extend(_bytes(logits))
        scheduler.commit(batch, Drawn([int(logits[-1].argmax())] * len(batch.asking), scores=_scores(batch)))
    assert len(rows) == len(prompt) + REPLY - 1, len(rows)
    return Needle(prompt, sequence.output, rows)


@dataclass(slots=True)
class Trial:
    """One needle among others, until its replies have ended. What happens goes into `report`."""

    runner: Runner
    config: EngineConfig
    needle: Needle
    rng: random.Random
    vocab_size: int
    report: Report
    scheduler: Scheduler = field(init=False)
    mine: dict[int, Tokens] = field(init=False, default_factory=dict)

    def run(self) -> str:
        """Where the first row with other bits was; empty if there is none."""
        self.scheduler = Scheduler(self._bounds())
        num_companions = self.scheduler.config.max_num_seqs - 1 + self.rng.randint(0, 3)
        coming = self._arrivals([self._companion() for _ in range(num_companions)])
        self._deal_blocks(coming)
        pace = self.rng.choice(PACES)
        first = ""
        while any(s.status is not Status.FINISHED for s in self.mine.values()):
            for _ in range(min(len(coming), self.rng.randint(1, pace))):
                self.scheduler.add(coming.pop())
            self._abort()
            batch = self.scheduler.schedule()
            if batch is None:
                continue
            where = self._step(batch)
            first = first or where
        self.report.num_preemptions += self.scheduler.num_preemptions
        self.report.num_needle_preemptions += sum(s.num_preemptions for s in self.mine.values())
        self.report.num_found += next(iter(self.mine.values())).num_cached
        return first

    def _bounds(self) -> EngineConfig:
        """2 to all sequences in a step; often hardly more tokens, so that prompts come in small parts."""
        rng, most = self.rng, self.config.max_num_batched_tokens
        num_seqs = rng.randint(2, self.config.max_num_seqs)
        more = rng.choice([0, rng.randint(0, 16), rng.randint(0, most)])
        return replace(self.config, max_num_seqs=num_seqs, max_num_batched_tokens=min(num_seqs + more, most))

    def _companion(self) -> Tokens:
        rng = self.rng
        new = rng.randint(1, min(2 * REPLY, self.config.max_model_len - 1))
        length = rng.randint(1, min(3 * REPLY, self.config.max_model_len - new))
        params = SamplingParams(max_tokens=new, prompt_logprobs=0 if rng.random() < 0.2 else None)
        begins_alike = rng.randint(0, length) if rng.random() < 0.4 else 0
        begin = self.needle.prompt[:begins_alike]
        prompt = begin + _ids(rng, length - len(begin), self.vocab_size)
        companion = Tokens(prompt, params, embeds=rng.random() < 0.1)
        if not companion.embeds and rng.random() < 0.2:
            _fork(companion, rng.randint(1, 3))
        return companion

    def _arrivals(self, companions: list[Tokens]) -> list[Tokens]:
        """In the order of `pop`. The needle, sometimes forked, comes anywhere, but mostly last: it is the
        youngest who gives up its blocks. Where its prompt is not scored, it may be found computed.
        """
        params = SamplingParams(max_tokens=REPLY, prompt_logprobs=self.rng.choice([0, 0, None]))
        needle = Tokens(self.needle.prompt, params)
        _fork(needle, self.rng.choice([0, 0, 0, 1, 2]))
        self.mine = {s.id: s for s in (needle, *needle.forks)}
        place = 0 if self.rng.random() < 0.6 else self.rng.randint(0, len(companions))
        return [*companions[:place], needle, *companions[place:]]

    def _deal_blocks(self, coming: list[Tokens]) -> None:
        """Shuffle the pool, and keep from it what is more than a share of what the sequences will want."""
        size, pool = self.config.block_size, self.scheduler.blocks
        blocks = pool.take(pool.num_blocks)
        self.rng.shuffle(blocks)
        wanted = sum(-(-(len(s) + s.params.max_tokens) // size) * (1 + len(s.forks)) for s in coming)
        share = int(wanted * self.rng.uniform(0.15, 0.6))
        pool.give_back(blocks[: max(self.config.blocks_per_sequence, share)])

    def _abort(self) -> None:
        others = [s for s in self.scheduler.sequences() if s.id not in self.mine]
        if others and self.rng.random() < 0.05:
            self.scheduler.abort(self.rng.choice(others))
            self.report.num_aborts += 1

    def _step(self, batch: Batch) -> str:
        """Compute, compare, commit; where the first row with other bits was."""
        output = self.runner.run(batch)
        rows, first = _bytes(output.logits), ""
        for position, row in self._expected(batch):
            self.report.num_rows += 1
            if not torch.equal(rows[row], self.needle.rows[position]):
                self.report.num_wrong_rows += 1
                first = first or (
                    f"position {position} of {len(self.needle.rows)}, "
                    f"{len(batch.chunks)} sequences and {batch.num_tokens} tokens in the step"
                )
        self._count(batch)
        self.scheduler.commit(batch, self._drawn(batch, output))
        return first

    def _expected(self, batch: Batch) -> list[tuple[int, int]]:
        """(position of the needle, row of the logits)."""
        scored = [
            (position, row + i)
            for chunk, row in batch.scores
            if chunk.sequence.id in self.mine
            for i, position in enumerate(chunk.scored)
        ]
        drawn = zip(batch.asking, batch.draws, strict=True)
        return scored + [(len(s) - 1, row) for s, row in drawn if s.id in self.mine]

    def _drawn(self, batch: Batch, output: StepOutput) -> Drawn:
        """The needle's own tokens; any for the others."""
        tokens = [
            self.needle.reply[len(s.output)] if s.id in self.mine else self.rng.randrange(self.vocab_size)
            for s in batch.asking
        ]
        hidden = [[0.0] for chunk in batch.chunks if chunk.sequence.embeds]
        assert len(output.hidden) == sum(c.length for c in batch.chunks if c.sequence.embeds)
        return Drawn(tokens, scores=_scores(batch), hidden=hidden)

    def _count(self, batch: Batch) -> None:
        report = self.report
        report.num_copies += len(batch.copies)
        report.largest_batch = max(report.largest_batch, len(batch.chunks))
        report.num_parts += sum(self._is_part(chunk) for chunk in batch.chunks)

    def _is_part(self, chunk: Chunk) -> bool:
        return chunk.sequence.id in self.mine and chunk.start < len(chunk.sequence.prompt)


def _fork(leader: Tokens, count: int) -> None:
    """More replies to the same prompt, which start from its blocks."""
    params = replace(leader.params, prompt_logprobs=None)
    leader.forks = [Tokens(leader.prompt, params, leader=leader) for _ in range(count)]


def _ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]


def _bytes(logits: Tensor) -> Tensor:
    """A copy, (rows, bytes): a runner's logits last until its next step."""
    copy = torch.empty(logits.shape, dtype=logits.dtype).copy_(logits)
    return copy.view(torch.uint8)


def _scores(batch: Batch) -> list[tuple[Logprob, ...]]:
    """Nobody here reads log probabilities."""
    return [()] * len(batch.scores)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; exit status 1 for a mismatch, 2 for an option or checkpoint that cannot be used."""
    parser = argparse.ArgumentParser(
        description="Show that company changes no bit of a sequence's logits, or where it does."
    )
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)")
    add("--trials", type=int, default=200, help="random batches (default: %(default)s)")
    add(
        "--runner", choices=("native", "eager"), default="native", help="what computes (default: %(default)s)"
    )
    add("--quantization", choices=("auto", "none", "int8", "int4"), default="auto", help="of the weights")
    add("--kv-cache-dtype", choices=("auto", "float16", "float32"), default="auto", help="of keys and values")
    add(
        "--isa",
        choices=("avx512", "avx2", "portable"),
        help="of the native runner (default: this CPU's best)",
    )
    add("--threads", type=int, help="of every other trial (default: every usable core)")
    add("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")
    return run_command(parser, _measure, argv)


def _measure(options: argparse.Namespace) -> int:
    threads = usable_cores() if options.threads is None else options.threads
    for name, value in (("trials", options.trials), ("threads", threads)):
        if value < 1:
            raise OptionError(f"--{name} must be at least 1, got {value}")
    checkpoint = open_checkpoint(locate_checkpoint(Path(options.checkpoint), ROOT))
    place = _place(checkpoint, options)
    longest = min(BOUNDS.max_model_len, checkpoint.config.num_positions)
    if longest <= REPLY:
        raise OptionError(f"{checkpoint.name} has {longest} positions, more than {REPLY} are needed")
    config = replace(BOUNDS, max_model_len=longest)
    print(f"hardware   {describe(place.device)}")
    print(f"model      {checkpoint.name}, {place.label}", flush=True)
    report = check(
        lambda count: make_runner(checkpoint, config, place, threads=count),
        config,
        options.trials,
        options.seed,
        vocab_size=min(checkpoint.config.vocab_size, checkpoint.tokenizer.vocab_size),
        threads=threads,
        told=lambda done: print(f"\r{done} of {options.trials}", end="", file=sys.stderr, flush=True),
    )
    print(file=sys.stderr)
    print(f"compared   {report.num_rows} rows of logits; batches of up to {report.largest_batch}")
    print(
        f"happened   {report.num_preemptions} preemptions, {report.num_needle_preemptions} of the needle; "
        f"{report.num_aborts} aborts, {report.num_copies} copies, {report.num_parts} parts of prompts, "
        f"{report.num_found} tokens found computed"
    )
    if report.first:
        print(f"first      {report.first}")
    print(f"{report.num_trials} trials, {report.num_mismatches} mismatches")
    asked = {"checkpoint": checkpoint.name, "runner": place.label, "threads": threads, "seed": options.seed}
    print(json.dumps({"bench": "invariance", **asked, **asdict(report)}))
    return 1 if report.num_mismatches else 0


def _place(checkpoint: Checkpoint, options: argparse.Namespace) -> Place:
    (place,) = resolve_places(
        checkpoint,
        "cpu",
        "auto",
        runner=options.runner,
        quantization=options.quantization,
        kv_cache_dtype=options.kv_cache_dtype,
        isa=options.isa,
    )
    return place


if __name__ == "__main__":
    sys.exit(main())
