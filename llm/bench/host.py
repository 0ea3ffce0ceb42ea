"""What a step costs beside the model and the sampler: choose its tokens, write them into arrays, record them.

    causerie bench --host --streams 1,4,16,64

Scheduler, staging of the native runner, and commit, with nothing computed in between; any token is drawn.
Then how that grows: with ten times the tokens of history, waiting requests and cached blocks. Beds of both
sizes are stepped in turn, so a busy machine slows both; medians. Decoding alone for history; for the others
replies end all the time, and the next in line start. Refuses to know models.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from llm.batch import Drawn
from llm.bench import levels, positive
from llm.config import EngineConfig, ModelConfig, SamplingParams
from llm.hardware import describe
from llm.runner.native.binding import BLOCK_TOKENS
from llm.runner.native.runner import Staging
from llm.scheduler import Scheduler
from llm.sequence import Sequence

VOCAB = 49152
MODEL = ModelConfig(VOCAB, 8192, num_layers=1, num_heads=1, num_kv_heads=1, width=64, ffn_width=256)
"""What the arrays are as wide as; no weights."""
NUM_STEPS = 64
"""Steps of one bed before it is the other's turn."""
GROWTH = 10


@dataclass(frozen=True, slots=True)
class Situation:
    """What an engine has to do with.

    Attributes:
        streams: sequences that decode together.
        history: tokens of each before the first step.
        reply: tokens after which one ends and the next in line starts.
        waiting: sequences in line, at every step.
        cached: blocks of the pool, all of which hold something when the first sequence starts; None for a
            pool that is empty and large enough.
    """

    streams: int = 16
    history: int = 128
    reply: int = 1 << 20
    waiting: int = 0
    cached: int | None = None


class Bed:
    """A scheduler, and arrays for what it chooses.

    Args:
        situation: as it is at the first step.
        num_steps: how many there will be at most.
    """

    def __init__(self, situation: Situation, num_steps: int) -> None:
        before = (
            situation.streams * situation.history // 256 + 2
        )  # steps in which the first ones already reply
        longest = situation.history + min(situation.reply, before + num_steps)
        blocks = situation.cached or situation.streams * -(-longest // BLOCK_TOKENS)
        config = EngineConfig(longest, max_num_seqs=situation.streams, num_blocks=blocks)
        self.situation = situation
        self.scheduler = Scheduler(config)
        self.staging = Staging(MODEL, config)
        self._sequences = _sequences(situation)
        if situation.cached is not None:
            self._fill()
        for _ in range(situation.streams + situation.waiting):
            self.scheduler.add(next(self._sequences))
        while (
            len(self.scheduler.running) < situation.streams or self.scheduler.running[-1].num_uncomputed > 1
        ):
            self.step()

    def step(self) -> tuple[float, float, float]:
        """Seconds to schedule, to write and to commit a step."""
        start = time.perf_counter()
        batch = self.scheduler.schedule()
        chosen = time.perf_counter()
        assert batch is not None
        self.staging.fill(batch)
        written = time.perf_counter()
        self.scheduler.commit(batch, Drawn([7] * len(batch.asking)))
        done = time.perf_counter()
        while len(self.scheduler.waiting) < self.situation.waiting:
            self.scheduler.add(next(self._sequences))
        return chosen - start, written - chosen, done - written

    def _fill(self) -> None:
        """Leave prompts until every block of the pool holds one's tokens."""
        pool = self.scheduler.blocks
        prompts = _sequences(Situation(history=self.scheduler.config.max_model_len - 1, reply=1), seed=1)
        while pool.num_cached < pool.num_blocks:
            self.scheduler.add(next(prompts))
            while (batch := self.scheduler.schedule()) is not None:
                self.scheduler.commit(batch, Drawn([7] * len(batch.asking)))


def _sequences(situation: Situation, seed: int = 0) -> Iterator[Sequence]:
    """Prompts that have nothing in common."""
    rng = random.Random(seed)
    while True:
        prompt = [rng.randrange(VOCAB) for _ in range(situation.history)]
        yield Sequence(prompt, SamplingParams(situation.reply))


def measure(situations: list[Situation], rounds: int) -> list[list[list[float]]]:
    """Of each situation the microseconds of a step's three parts, a list for each round, all in turn. They
    are means, since what happens in a few steps, a block that is full or a reply that ends, counts too.
    """
    beds = [Bed(situation, rounds * NUM_STEPS) for situation in situations]
    found: list[list[list[float]]] = [[] for _ in beds]
    for _ in range(rounds):
        for bed, rows in zip(beds, found, strict=True):
            parts = zip(*(bed.step() for _ in range(NUM_STEPS)), strict=True)
            rows.append([statistics.fmean(part) * 1e6 for part in parts])
    return found


def growths(streams: int) -> dict[str, tuple[Situation, Situation]]:
    """What grows, and the two situations that are told apart by it."""
    decoding = Situation(streams, history=200)
    coming = Situation(streams, history=48, reply=16, waiting=16, cached=max(256, 16 * streams))
    assert coming.cached is not None
    return {
        "tokens of history": (decoding, replace(decoding, history=GROWTH * decoding.history)),
        "waiting requests": (coming, replace(coming, waiting=GROWTH * coming.waiting)),
        "cached blocks": (coming, replace(coming, cached=GROWTH * coming.cached)),
    }


def growth(pair: tuple[Situation, Situation], rounds: int) -> float:
    """How many times as much a step of the second costs: the median of the rounds' ratios."""
    small, large = measure(list(pair), rounds)
    return statistics.median(sum(b) / sum(a) for a, b in zip(small, large, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Measure a step's cost beside the model and the sampler.")
    text = "sequences that decode together, comma-separated (default: %(default)s)"
    parser.add_argument("--streams", type=levels, default="1,4,16,64", help=text)
    parser.add_argument(
        "--rounds", type=positive, default=15, help=f"of {NUM_STEPS} steps (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    print(f"hardware   {describe(torch.device('cpu'))}")
    print(f"work       microseconds of a step, means of {NUM_STEPS}, medians of {args.rounds} rounds")
    print("streams   schedule   write   commit   a step   a stream")
    rows = []
    found = measure([Situation(streams) for streams in args.streams], args.rounds)
    for streams, rounds in zip(args.streams, found, strict=True):
        parts = [statistics.median(column) for column in zip(*rounds, strict=True)]
        rows.append(
            {"streams": streams, "schedule_us": parts[0], "write_us": parts[1], "commit_us": parts[2]}
        )
        numbers = "".join(f"{part:>9.1f}" for part in (*parts, sum(parts), sum(parts) / streams))
        print(f"{streams:>7}{numbers}", flush=True)
    ratios = {}
    for streams in (args.streams[0], args.streams[-1]):
        for what, pair in growths(streams).items():
            ratios[f"{what}, {streams} streams"] = ratio = growth(pair, args.rounds)
            print(f"{GROWTH} times the {what}, {streams} streams: {ratio:.2f} times the cost", flush=True)
    print(
        json.dumps(
            {"bench": "host", "hardware": describe(torch.device("cpu")), "rows": rows, "growth": ratios}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
