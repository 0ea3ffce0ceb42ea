"""What drawing costs: a runner's step and the draw behind it, by its own sampler and by torch's in turn.

    causerie bench --sampling --checkpoint checkpoints/smollm2-135m-instruct --streams 1,16

A draw is everything between logits and what the scheduler is told, Python included: tokens, log
probabilities. Streams continue a text, since what a draw costs hangs on how sure the model is. A share is a
draw's time by that of the step before it. Medians of a run's steps, then of the rounds. Refuses to know what
scheduling and a server add.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llm.bench import levels, positive
from llm.bench.offline import load
from llm.bench.streams import finish
from llm.checkpoint import open_checkpoint
from llm.config import SamplingParams
from llm.drawing import draw
from llm.engine import Engine
from llm.errors import CauserieError, OptionError
from llm.hardware import describe
from llm.sampler import Sampler
from llm.sampler.eager import EagerSampler
from llm.scheduler import Scheduler
from llm.sequence import Sequence

TEXT = (
    "A language model reads a text token by token and says of every token in its vocabulary how probable it "
    "is to come next. One of them is drawn, put behind the text, and the model reads on. Sometimes only one "
    "word can follow, and sometimes thousands could; nobody knows before the model has looked. "
)
MIXES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "0.8, top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "1, nothing cut": {},
    "1, top-p 0.9": {"top_p": 0.9},
    "1, min-p 0.05": {"min_p": 0.05},
    "2, top-p 0.98": {"temperature": 2.0, "top_p": 0.98},
    "penalties": {"temperature": 0.8, "top_k": 50, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "greedy, 20 logprobs": {"temperature": 0.0, "logprobs": 20},
    "penalties, 20 logprobs": {
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "logprobs": 20,
    },
}


SLOW = 8
"""Tokens of torch's runs at most: it needs up to a second for a step's sixteen."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Median seconds of a run's steps of decoders alone."""

    step: float
    draw: float


Readings = dict[tuple[int, str, bool], list[Reading]]
"""(streams, mix, whether torch draws) → a reading per round."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what drawing costs beside computing a step.")
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)")
    add("--device", default="auto")
    add("--dtype", default="auto", help="of an eager runner")
    add("--threads", type=positive, help="default: every usable core")
    add("--streams", type=levels, default="1,16", help="comma-separated (default: %(default)s)")
    add("--prompt-tokens", type=positive, default=64, help="of each stream (default: %(default)s)")
    add(
        "--new-tokens", type=positive, default=32, help="drawn by each stream of a run (default: %(default)s)"
    )
    add("--rounds", type=positive, default=5, help="of all mixes in turn; medians are printed")
    return parser.parse_args(argv)


def run(engine: Engine, prompt: list[int], params: list[SamplingParams], sampler: Sampler | None) -> Reading:
    """As many streams as parameters, until each has its tokens.

    Args:
        sampler: what draws; None for the runner's own.
    """
    scheduler, runner = Scheduler(engine.config), engine.runner
    for own in params:
        scheduler.add(Sequence(prompt, own))
    steps, draws = [], []
    while (batch := scheduler.schedule()) is not None:
        start = time.perf_counter()
        output = runner.run(batch)
        finish(runner.device)
        computed = time.perf_counter()
        drawn = draw(
            output if sampler is None else replace(output, sampler=sampler), batch, engine.vocab_size
        )
        end = time.perf_counter()
        scheduler.commit(batch, drawn)
        if batch.num_tokens == len(params) == len(batch.asking):  # nobody reads a prompt
            steps.append(computed - start)
            draws.append(end - computed)
    return Reading(statistics.median(steps), statistics.median(draws))


def take(args: argparse.Namespace, engine: Engine, prompt: list[int]) -> Readings:
    """All rounds; whose sampler is first changes with the round."""
    readings: Readings = defaultdict(list)
    for number in range(-1, args.rounds):
        for count in args.streams:
            for name, mix in MIXES.items():
                for by_torch in (number % 2 == 0, number % 2 != 0):
                    new = min(args.new_tokens, SLOW) if by_torch or number < 0 else args.new_tokens
                    params = [SamplingParams(new, seed=seed, **mix) for seed in range(count)]
                    reading = run(engine, prompt, params, EagerSampler() if by_torch else None)
                    if number >= 0:  # the first of all compiles and allocates
                        readings[count, name, by_torch].append(reading)
    return readings


def rows(args: argparse.Namespace, readings: Readings) -> Iterator[dict[str, Any]]:
    """One for each level and mix."""
    for count in args.streams:
        for name in MIXES:
            own, eager = readings[count, name, False], readings[count, name, True]
            yield {
                "streams": count,
                "mix": name,
                "step_us": round(1e6 * statistics.median(r.step for r in own), 1),
                "draw_us": round(1e6 * statistics.median(r.draw for r in own), 1),
                "share": round(statistics.median(r.draw / r.step for r in own), 4),
                "torch_draw_us": round(1e6 * statistics.median(r.draw for r in eager), 1),
                "torch_share": round(statistics.median(r.draw / r.step for r in eager), 4),
            }


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option or checkpoint that cannot be used."""
    args = parse(argv)
    try:
        checkpoint = open_checkpoint(args.checkpoint)
        needed, limit = args.prompt_tokens + args.new_tokens, checkpoint.config.num_positions
        if needed > limit or args.new_tokens < 2:
            raise OptionError(
                f"--prompt-tokens {args.prompt_tokens} and --new-tokens {args.new_tokens}: 2 new tokens at "
                f"least, and at most the model's {limit} positions together"
            )
        model = load(args, checkpoint, max_model_len=needed)
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    engine = model.engines[0]
    ids = model.tokenizer.encode(TEXT)
    prompt = (ids * -(-args.prompt_tokens // len(ids)))[: args.prompt_tokens]
    hardware = describe(engine.runner.device)
    print(f"hardware   {hardware}")
    print(f"runner     {engine.runner.about}; {engine.vocab_size} ids")
    print(f"work       {args.prompt_tokens} tokens, {args.new_tokens} new, {args.rounds} rounds", flush=True)
    report = list(rows(args, take(args, engine, prompt)))
    print(
        f"{'streams':>7} {'mix':<26} {'step µs':>9} {'draw µs':>9} {'share':>7} {'torch µs':>9} {'share':>7}"
    )
    for row in report:
        print(
            f"{row['streams']:>7} {row['mix']:<26} {row['step_us']:>9.0f} {row['draw_us']:>9.0f} "
            f"{row['share']:>7.1%} {row['torch_draw_us']:>9.0f} {row['torch_share']:>7.1%}"
        )
    print(json.dumps({"bench": "sampling", "hardware": hardware, "model": model.name, "rows": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
