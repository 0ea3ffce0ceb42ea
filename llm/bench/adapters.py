"""What adapters cost in a batch: decode steps without any, with one for all rows, with several, in turn.

    causerie bench --adapters --checkpoint checkpoints/smollm2-135m-instruct --rank 8

The adapters are random ones of `--rank` on `--targets`: what they say does not matter for the time. They come
to the runner as a server's do. Each round times the same step three times, in an order that turns from round
to round; ratios are a round's own. Refuses to know HTTP.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from llm.adapt.adapter import Adapter
from llm.adapt.lora import new_adapter
from llm.adapt.peft import MAX_RANK
from llm.adapt.targets import ALL, choose, find_targets
from llm.bench import levels, positive
from llm.bench.steps import Steps
from llm.checkpoint import open_checkpoint
from llm.config import ModelConfig
from llm.errors import CauserieError, OptionError
from llm.hardware import describe
from llm.load import load_text_model
from llm.text import TextModel

MOST = 4
"""Adapters that differ in one batch."""
BASE = "no adapter"

Times = dict[tuple[int, str], list[float]]
"""(rows, whose adapters) → each round's seconds of a step."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what LoRA adapters cost in a batch.")
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)")
    add("--device", default="auto")
    add("--dtype", default="auto", help="of an eager runner")
    add("--runner", choices=("auto", "native", "eager"), default="auto")
    add("--threads", type=positive, help="default: every usable core")
    add("--rank", type=positive, default=8, help="of each adapter's matrices (default: %(default)s)")
    add("--targets", default=ALL, help="matrices, as train's --lora-targets (default: %(default)s)")
    add("--streams", type=levels, default="1,4,16", help="rows, comma-separated (default: %(default)s)")
    add("--context", type=positive, default=64, help="tokens that a row sees (default: %(default)s)")
    add("--rounds", type=positive, default=5, help="of all levels in turn; medians are printed")
    return parser.parse_args(argv)


def random_adapters(config: ModelConfig, rank: int, targets: str) -> dict[str, Adapter]:
    """MOST of them; B is drawn too, since a runner may one day pass over zeros."""
    made = {}
    for seed in range(MOST):
        adapter = new_adapter(choose(find_targets(config), targets), rank=rank, alpha=rank, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        parts = (replace(p, b=torch.randn(p.b.shape, generator=generator) * 1e-3) for p in adapter.parts)
        made[f"random-{seed}"] = replace(adapter, parts=tuple(parts))
    return made


def mixes(num_rows: int, keys: Sequence[str]) -> dict[str, Sequence[str]]:
    """What is compared at so many rows: a name, and the adapters that take turns in it."""
    several = min(num_rows, len(keys))
    found: dict[str, Sequence[str]] = {BASE: ("",), "one": keys[:1]}
    return found if several < 2 else found | {f"{several} different": keys[:several]}


def measure(args: argparse.Namespace, model: TextModel) -> Times:
    """Every level and mix in turn; the first round warms up and is not counted."""
    engine = model.engines[0]
    steps = Steps(engine.runner, engine.config, engine.vocab_size)
    steps.fill(steps.num_blocks(max(args.streams), args.context))
    keys = [placed.key for placed in model.shelves.on.values()]
    times: Times = defaultdict(list)
    for i in range(args.rounds + 1):
        for n in args.streams:
            found = list(mixes(n, keys).items())
            turn = i % len(found)
            for name, adapters in found[turn:] + found[:turn]:
                seconds = steps.time_decode(n, args.context, adapters=adapters)
                if i:
                    times[n, name].append(seconds)
    return times


def table(times: Mapping[tuple[int, str], Sequence[float]]) -> list[dict[str, object]]:
    """Medians, and those of the ratios within each round, with least and most."""
    rows: list[dict[str, object]] = []
    for (n, name), seconds in times.items():
        ratios = [one / base for one, base in zip(seconds, times[n, BASE], strict=True)]
        rows.append(
            {
                "rows": n,
                "adapters": name,
                "ms": round(statistics.median(seconds) * 1e3, 4),
                "ratio": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            }
        )
    return sorted(rows, key=lambda row: (row["rows"], row["adapters"] != BASE, row["adapters"] != "one"))


def load(args: argparse.Namespace) -> TextModel:
    """The checkpoint with random adapters on it.

    Raises:
        CauserieError: a checkpoint or an option that cannot be used.
    """
    checkpoint = open_checkpoint(args.checkpoint)
    if args.rank > MAX_RANK:
        raise OptionError(f"--rank {args.rank}: at most {MAX_RANK}")
    if args.context > checkpoint.config.num_positions:
        raise OptionError(
            f"--context {args.context} exceeds the model's {checkpoint.config.num_positions} positions"
        )
    return load_text_model(
        checkpoint,
        devices=args.device,
        dtype=args.dtype,
        runner=args.runner,
        threads=args.threads,
        max_num_seqs=max(args.streams),
        max_num_batched_tokens=max(512, *args.streams),
        adapters=random_adapters(checkpoint.config, args.rank, args.targets),
    )


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option or checkpoint that cannot be used."""
    args = parse(argv)
    try:
        model = load(args)
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    runner = model.engines[0].runner
    hardware = describe(runner.device)
    print(f"hardware   {hardware}")
    print(f"model      {model.name}, {runner.about}; adapters of rank {args.rank} on {args.targets}")
    rows = table(measure(args, model))
    print(f"decode step at {args.context} tokens, medians of {args.rounds} rounds in turn")
    print("rows  adapters          ms  × without (least to most)")
    for row in rows:
        spread = (
            ""
            if row["adapters"] == BASE
            else f"  {row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        )
        print(f"{row['rows']:>4}  {row['adapters']:<12} {row['ms']:>8.3f}{spread}")
    about = {"rank": args.rank, "targets": args.targets, "context": args.context, "rounds": args.rounds}
    print(
        json.dumps(
            {"bench": "adapters", "hardware": hardware, "runner": runner.about, **about, "steps": rows}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
