"""The engine without HTTP: TTFT, inter-token gap and tokens/s at several numbers of streams.

    python -m llm.bench --checkpoint checkpoints/causette --streams 1,4,16

Greedy, every reply as long as asked (nothing stops it), rounds of all levels in turn, medians. Beside the
figures stands the ceiling: one stream reads every weight once per token, so bandwidth / bytes of weights
bounds it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from llm.checkpoint import open_checkpoint
from llm.config import SamplingParams
from llm.engine import Engine
from llm.errors import CauserieError, OptionError
from llm.grammar import Grammar
from llm.hardware import describe, read_bandwidth
from llm.load import load_text_model
from llm.runner.eager import EagerRunner
from llm.sequence import Sequence, TokenEvent
from llm.text import TextModel


@dataclass(frozen=True, slots=True)
class Run:
    """One level of one round: when each stream's tokens came, in seconds since the submission."""

    times: list[list[float]]

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.times)) / max(t[-1] for t in self.times)

    @property
    def ttft_ms(self) -> float:
        return statistics.median(t[0] for t in self.times) * 1e3

    @property
    def gap_ms(self) -> float:
        """0 when replies of one token have none."""
        gaps = [b - a for t in self.times for a, b in zip(t, t[1:], strict=False)]
        return statistics.median(gaps) * 1e3 if gaps else 0.0


def measure(
    engine: Engine,
    num_streams: int,
    num_prompt: int,
    num_new: int,
    vocab_size: int,
    grammar: Grammar | None = None,
) -> Run:
    """Drive the engine's steps in this thread until `num_streams` equal requests are done.

    Args:
        grammar: what every reply follows; it must not end one early.
    """
    times: dict[int, list[float]] = defaultdict(list)

    def keep(events: list[TokenEvent]) -> None:
        now = time.perf_counter() - start
        for event in events:
            times[event.sequence_id].append(now)

    engine.emit = keep
    generator = torch.Generator().manual_seed(num_streams)
    prompts = torch.randint(vocab_size, (num_streams, num_prompt), generator=generator).tolist()
    params = SamplingParams(max_tokens=num_new, temperature=0.0)
    start = time.perf_counter()
    for prompt in prompts:
        matcher = None if grammar is None else grammar.matcher()
        engine.scheduler.add(Sequence(prompt, params, matcher=matcher))
    while engine.step():
        pass
    assert all(len(t) == num_new for t in times.values()), "a stream ended early"
    return Run(list(times.values()))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the engine without HTTP.")
    parser.add_argument(
        "--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--streams", type=levels, default="1,4,16", help="levels, comma-separated (default: %(default)s)"
    )
    half = "default: 64, or what half of the model's positions allow"
    parser.add_argument("--prompt-tokens", type=positive, help=half)
    parser.add_argument("--new-tokens", type=positive, help=half)
    parser.add_argument(
        "--rounds", type=positive, default=3, help="rounds of all levels in turn; medians are printed"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    return parser.parse_args(argv)


def load(args: argparse.Namespace, threads: int | None = None) -> TextModel:
    """The model that these options name, with a row for each stream, and the lengths that were not given.

    Raises:
        CauserieError: it cannot be loaded, or the work does not fit it.
    """
    model = load_text_model(
        open_checkpoint(args.checkpoint),
        devices=args.device,
        dtype=args.dtype,
        threads=threads,
        max_num_seqs=max(args.streams),
        max_num_batched_tokens=max(512, *args.streams),
    )
    fit_work(args, model.max_model_len)
    return model


def positive(text: str) -> int:
    """A command line's whole number from 1; argparse turns the ValueError into its own message."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def levels(text: str) -> list[int]:
    """Numbers of streams, ascending: "16,1,4" → [1, 4, 16]."""
    return sorted({positive(n) for n in text.split(",")})


def fit_work(args: argparse.Namespace, limit: int) -> None:
    """Fill in the lengths that were not given.

    Raises:
        OptionError: together they exceed the model's positions.
    """
    for name in ("prompt_tokens", "new_tokens"):
        if getattr(args, name) is None:
            setattr(args, name, min(64, limit // 2))
    if args.prompt_tokens + args.new_tokens > limit:
        raise OptionError(
            f"--prompt-tokens {args.prompt_tokens} and --new-tokens {args.new_tokens} together exceed "
            f"the model's {limit} positions"
        )


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option or checkpoint that cannot be used."""
    args = parse(argv)
    try:
        model = load(args)
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    engine = model.engines[0]
    assert isinstance(engine.runner, EagerRunner)
    decoder = engine.runner.model
    weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
    bandwidth = read_bandwidth(decoder.device)
    print(f"hardware   {describe(decoder.device)}; reads {bandwidth / 1e9:.1f} GB/s")
    millions = decoder.num_parameters() / 1e6
    print(f"model      {model.name}: {millions:.1f} M parameters, {weights / 1e6:.1f} MB in memory")
    work = f"{args.prompt_tokens} prompt tokens, {args.new_tokens} new"
    print(f"work       {work}, greedy, median of {args.rounds} rounds")
    # The first calls compile and allocate.
    measure(engine, 1, args.prompt_tokens, min(4, args.new_tokens), engine.vocab_size)
    runs: dict[int, list[Run]] = defaultdict(list)
    for _ in range(args.rounds):
        for n in args.streams:
            runs[n].append(measure(engine, n, args.prompt_tokens, args.new_tokens, engine.vocab_size))
    report = {n: _medians(of_level) for n, of_level in runs.items()}
    _print(report, bandwidth / weights)
    line = json.dumps(
        {
            "bench": "offline",
            "hardware": describe(decoder.device),
            "read_gb_per_s": round(bandwidth / 1e9, 2),
            "weights_mb": round(weights / 1e6, 2),
            "prompt_tokens": args.prompt_tokens,
            "new_tokens": args.new_tokens,
            "streams": {str(n): row for n, row in report.items()},
        }
    )
    print(line)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(line + "\n")
    return 0


def _medians(runs: list[Run]) -> dict[str, float]:
    return {
        "ttft_ms": round(statistics.median(r.ttft_ms for r in runs), 2),
        "gap_ms": round(statistics.median(r.gap_ms for r in runs), 3),
        "tokens_per_s": round(statistics.median(r.tokens_per_s for r in runs), 1),
    }


def _print(report: dict[int, dict[str, float]], ceiling: float) -> None:
    print(f"{'streams':>8} {'TTFT ms':>9} {'gap ms':>8} {'tokens/s':>9} {'× 1':>6}")
    first = next(iter(report.values()))["tokens_per_s"]
    for n, row in report.items():
        times = row["tokens_per_s"] / first
        print(
            f"{n:>8} {row['ttft_ms']:>9.1f} {row['gap_ms']:>8.2f} {row['tokens_per_s']:>9.1f} {times:>6.2f}"
        )
    print(f"ceiling    one stream: {ceiling:.0f} tokens/s, were reading the weights once all the work")


if __name__ == "__main__":
    sys.exit(main())
