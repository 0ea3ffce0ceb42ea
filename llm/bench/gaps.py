"""What a long prompt does to those who are being answered: gaps between their tokens while it is computed.

    causerie bench --gaps --checkpoint checkpoints/smollm2-135m-instruct --decoders 8 --prompt-tokens 4000

Some replies are under way when the prompt arrives. With the bound of `--max-step-ms` it is computed in chunks
that fit, without in chunks as large as a step may be; rounds of both in turn, medians. The longest gap stands
beside the median step with a chunk, which no bound can be below, and the prompt's time to first token is the
price. A machine with others on it has steps of its own length: so the chunk halfway is computed again and
again, as often as there are chunks, and how far apart those are is what the machine does to the same work.
Refuses to know what a server adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from llm.batch import Batch
from llm.bench import positive
from llm.checkpoint import open_checkpoint
from llm.config import SamplingParams
from llm.engine import Engine
from llm.errors import CauserieError, OptionError
from llm.hardware import describe
from llm.load import load_text_model
from llm.pace import Pace
from llm.runner import Runner, StepOutput
from llm.sequence import Sequence

NUM_PROMPT = 64
"""Tokens of the prompts whose replies are under way."""
NUM_BEFORE = 8
"""Steps before the long prompt comes, from which a step beside it is told apart."""
MAX_STEPS = 1024
"""Steps that the long prompt may take, so that the others last."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A long prompt among decoders; milliseconds.

    Attributes:
        step_ms: a step before it came.
        chunk_ms: a step that computes a part of it; both are medians.
        longest_ms: between two tokens of a decoder, until the prompt's first token.
        ttft_ms: of the prompt.
        num_steps: that computed it.
        noise: the longest by the median, when one chunk is computed as often.
    """

    step_ms: float
    chunk_ms: float
    longest_ms: float
    ttft_ms: float
    num_steps: int
    noise: float

    @property
    def ratio(self) -> float:
        """The longest gap by the median step with a chunk."""
        return self.longest_ms / self.chunk_ms


class Recorder:
    """A runner that remembers what it computed."""

    def __init__(self, runner: Runner) -> None:
        self.device, self.about, self.shelf = runner.device, runner.about, runner.shelf
        self.run_plainly = runner.run
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> StepOutput:
        self.batches.append(batch)
        return self.run_plainly(batch)


def arrive(engine: Engine, num_decoders: int, num_prompt: int) -> Arrival:
    """One prompt of `num_prompt` tokens among decoders. When it has its first token, all are aborted."""
    generator = torch.Generator().manual_seed(num_prompt)
    ids = torch.randint(engine.vocab_size, (num_decoders, NUM_PROMPT), generator=generator).tolist()
    endless = SamplingParams(MAX_STEPS, temperature=0.0)
    decoders = [Sequence(prompt, endless) for prompt in ids]
    prompt = torch.randint(engine.vocab_size, (num_prompt,), generator=generator).tolist()
    long = Sequence(prompt, SamplingParams(2, temperature=0.0))
    scheduler = engine.scheduler
    for sequence in decoders:
        scheduler.add(sequence)
    while not all(sequence.output for sequence in decoders):
        engine.step()
    before = [_time(engine.step) for _ in range(NUM_BEFORE)]
    scheduler.add(long)
    runner = engine.runner
    engine.runner = recorder = Recorder(runner)
    chunks: list[float] = []
    while not long.output:
        chunks.append(_time(engine.step))
    engine.runner = runner
    halfway = recorder.batches[len(chunks) // 2]
    same = [_time(lambda: runner.run(halfway)) for _ in chunks]
    for sequence in (long, *decoders):
        scheduler.abort(sequence)
    middle = statistics.median(chunks)
    noise = max(same) / statistics.median(same)
    return Arrival(statistics.median(before), middle, max(chunks), sum(chunks), len(chunks), noise)


def _time(work: Callable[[], object]) -> float:
    """Milliseconds of it; of a step that is the gap that each decoder sees."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def median(arrivals: list[Arrival]) -> Arrival:
    """Of each figure."""
    columns = zip(*(asdict(arrival).values() for arrival in arrivals), strict=True)
    step, chunk, longest, ttft, num_steps, noise = (statistics.median(column) for column in columns)
    return Arrival(step, chunk, longest, ttft, round(num_steps), noise)


def measure(
    engine: Engine, num_decoders: int, num_prompt: int, bounds: list[int], rounds: int
) -> dict[int, list[Arrival]]:
    """Rounds under each bound in turn, after one of each in which it learns; 0 is none."""
    paces = {bound: Pace(bound / 1e3) for bound in bounds}
    found: dict[int, list[Arrival]] = {bound: [] for bound in bounds}
    for turn in range(rounds + 1):
        for bound in bounds:
            engine.scheduler.pace = paces[bound]
            arrival = arrive(engine, num_decoders, num_prompt)
            if turn:
                found[bound].append(arrival)
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option or checkpoint that cannot be used."""
    args = _parse(argv)
    try:
        engine = _load(args)
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"hardware   {describe(engine.runner.device)}")
    print(f"runner     {engine.runner.about}")
    work = f"{args.prompt_tokens} prompt tokens arrive among {args.decoders} replies of {NUM_PROMPT} and more"
    print(f"work       {work}; median of {args.rounds} rounds", flush=True)
    found = measure(engine, args.decoders, args.prompt_tokens, [args.max_step_ms, 0], args.rounds)
    rows = []
    print(
        "  bound  step before  with a chunk  longest gap  by a chunk  same chunk  chunks  TTFT of the prompt"
    )
    for bound, arrivals in found.items():
        row, ratio = median(arrivals), statistics.median(arrival.ratio for arrival in arrivals)
        rows.append({"max_step_ms": bound, "ratio": round(ratio, 3), **asdict(row)})
        end = f"{ratio:>11.2f} {row.noise:>11.2f} {row.num_steps:>7} {row.ttft_ms:>17.0f} ms"
        print(f"{bound or 'none':>7} {_line(row)} {end}")
    print(json.dumps({"bench": "gaps", "hardware": describe(engine.runner.device), "rows": rows}))
    return 0


def _line(row: Arrival) -> str:
    return f"{row.step_ms:>9.1f} ms {row.chunk_ms:>10.1f} ms {row.longest_ms:>9.1f} ms"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the gaps that a long prompt makes.")
    add = parser.add_argument
    add("--checkpoint", type=Path, default="checkpoints/causette", help="file or folder (%(default)s)")
    add("--decoders", type=positive, default=8, help="replies under way (default: %(default)s)")
    add("--prompt-tokens", type=positive, default=4000, help="of the long prompt (default: %(default)s)")
    add("--max-step-ms", type=positive, default=100, help="the bound (default: %(default)s)")
    add("--threads", type=positive, help="default: every usable core")
    add(
        "--rounds", type=positive, default=5, help="with the bound and without in turn (default: %(default)s)"
    )
    return parser.parse_args(argv)


def _load(args: argparse.Namespace) -> Engine:
    checkpoint = open_checkpoint(args.checkpoint)
    longest = max(args.prompt_tokens + 2, NUM_PROMPT + MAX_STEPS)
    if longest > checkpoint.config.num_positions:
        have = checkpoint.config.num_positions
        raise OptionError(
            f"--prompt-tokens {args.prompt_tokens}: {longest} positions are needed, there are {have}"
        )
    model = load_text_model(
        checkpoint,
        threads=args.threads,
        max_model_len=longest,
        max_num_seqs=args.decoders + 1,
        enable_prefix_caching=False,
    )
    return model.engines[0]


if __name__ == "__main__":
    sys.exit(main())
