"""The engine without HTTP, then its runner alone, with what the hardware would allow beside every figure.

    causerie bench --offline --checkpoint checkpoints/causette --streams 1,4,16 --json runs/offline.json

The engine: TTFT, gap and tokens/s by streams, and the host's share of a step, which is scheduling, sampling
and events. The runner: ms per decode step over streams and contexts, tokens/s of prefills. Greedy, every
reply as long as asked; rounds of all levels in turn, ceilings too; medians. Refuses to know what a server
adds (`causerie bench`) and what other programs do (`causerie bench --peers`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.bench import levels, positive
from llm.bench.ceiling import Machine, machine_of
from llm.bench.figures import Figures, Readings, decode_rows, engine_rows, fitted, prefill_rows, tables
from llm.bench.plot import draw
from llm.bench.steps import Steps
from llm.bench.streams import measure
from llm.checkpoint import Checkpoint, open_checkpoint
from llm.checkpoint.record import expected_shapes
from llm.config import EngineConfig, ModelConfig
from llm.errors import CauserieError, OptionError
from llm.hardware import describe
from llm.load import load_text_model
from llm.text import TextModel

CHOICES = {
    "runner": ("auto", "native", "eager"),
    "quantization": ("auto", "none", "int8", "int4"),
    "kv_cache_dtype": ("auto", "float16", "float32"),
    "isa": ("avx512", "avx2", "portable"),
}


@dataclass(slots=True)
class Plan:
    """What of the levels asked for this model and this memory allow.

    Attributes:
        decode: (streams, context) of the runner's decode steps.
        prefill: tokens of the runner's prompts.
        left_out: the others, and why, one line each.
    """

    decode: list[tuple[int, int]] = field(default_factory=list)
    prefill: list[int] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the engine without HTTP, and its runner alone.")
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)")
    add("--device", default="auto")
    add("--dtype", default="auto", help="of an eager runner")
    for name, choices in CHOICES.items():
        default = None if name == "isa" else "auto"
        about = "the native runner's instructions (default: this CPU's best)" if name == "isa" else None
        add(f"--{name.replace('_', '-')}", choices=choices, default=default, help=about)
    add("--threads", type=positive, help="default: every usable core")
    text = "comma-separated (default: %(default)s)"
    add("--streams", type=levels, default="1,4,16,64", help=f"sequences together, {text}")
    add("--contexts", type=levels, default="64,512,2048", help=f"tokens that a decode step sees, {text}")
    add("--prefill", type=levels, default="64,512,1024", help=f"tokens of the runner's prompts, {text}")
    half = "default: 64, or what half of the model's positions allow"
    add("--prompt-tokens", type=positive, help=f"of the engine's requests ({half})")
    add("--new-tokens", type=positive, help=f"of the engine's replies ({half})")
    add("--rounds", type=positive, default=5, help="of all levels in turn; medians are printed")
    add("--json", type=Path, help="also write the JSON line to this file")
    add("--png", type=Path, help="draw decode steps and prefills into this file")
    args = parser.parse_args(argv)
    if args.isa is not None and args.runner == "eager":
        parser.error("--isa is of the native runner, and --runner is eager")
    return args


def load(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    *,
    max_model_len: int | None = None,
    num_speculative_tokens: int = 0,
) -> TextModel:
    """The model that these options name, with a row for each stream.

    Args:
        num_speculative_tokens: none, for a small model that was given random tokens repeats itself, which is
            guessed.

    Raises:
        CauserieError: it cannot be loaded, or does not fit.
    """
    said = {name: getattr(args, name, None) for name in CHOICES}
    chosen: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    return load_text_model(
        checkpoint,
        devices=args.device,
        dtype=args.dtype,
        threads=args.threads,
        max_model_len=max_model_len,
        max_num_seqs=max(args.streams),
        max_num_batched_tokens=max(512, *args.streams),
        enable_prefix_caching=False,  # every round computes its prompts
        num_speculative_tokens=num_speculative_tokens,
        **chosen,
    )


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


def longest(args: argparse.Namespace, num_positions: int) -> int:
    """Tokens of the longest sequence that will be computed."""
    wanted = [args.prompt_tokens + args.new_tokens, *args.contexts, *args.prefill]
    fitting: list[int] = [n for n in wanted if n <= num_positions]
    return max(fitting)


def plan(args: argparse.Namespace, config: EngineConfig, num_positions: int) -> Plan:
    """Which levels can be measured."""
    found = Plan()

    def keep(name: str, num_streams: int, num_tokens: int) -> bool:
        needed = num_streams * -(-num_tokens // config.block_size)
        if num_tokens > num_positions:
            found.left_out.append(f"{name}: the model has {num_positions} positions")
        elif needed > config.total_blocks:
            found.left_out.append(f"{name}: {needed} KV blocks, memory holds {config.total_blocks}")
        else:
            return True
        return False

    for context in args.contexts:
        if context > num_positions:
            keep(f"context {context}", 1, context)
            continue
        found.decode += [
            (n, context) for n in args.streams if keep(f"{n} streams at context {context}", n, context)
        ]
    found.prefill = [n for n in args.prefill if keep(f"prefill of {n}", 1, n)]
    return found


def take(args: argparse.Namespace, model: TextModel, machine: Machine, levels: Plan) -> Readings:
    """All rounds. The first calls, which compile and allocate, are made before."""
    engine, readings = model.engines[0], Readings()
    lengths = (args.prompt_tokens, args.new_tokens, engine.vocab_size)
    steps = Steps(engine.runner, engine.config, engine.vocab_size)
    measure(engine, 1, args.prompt_tokens, min(4, args.new_tokens), engine.vocab_size)
    if levels.decode:
        steps.fill(max(steps.num_blocks(*level) for level in levels.decode))
    for _ in range(args.rounds):
        for n in args.streams:
            readings.runs[n].append(measure(engine, n, *lengths))
        readings.limits.append(machine.measure())
        for level in levels.decode:
            readings.decode[level].append(steps.time_decode(*level))
        for length in levels.prefill:
            readings.prefill[length].append(steps.time_prefill(length))
    return readings


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option or checkpoint that cannot be used."""
    args = parse(argv)
    try:
        for name in ("json", "png"):
            _check_file(name, getattr(args, name))
        checkpoint = open_checkpoint(args.checkpoint)
        positions = checkpoint.config.num_positions
        fit_work(args, positions)
        model = load(args, checkpoint, max_model_len=longest(args, positions))
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    machine = machine_of(model.engines[0].runner)
    size = f"{num_parameters(checkpoint) / 1e6:.1f} M parameters, {machine.weight_bytes / 1e6:.1f} MB a step"
    print(f"model      {model.name}: {size}")
    print(f"runner     {machine.name}")
    lengths = f"{args.prompt_tokens} prompt tokens, {args.new_tokens} new"
    print(f"work       {lengths}, greedy, median of {args.rounds} rounds", flush=True)
    found = plan(args, model.engines[0].config, positions)
    report = _report(args, model, machine, take(args, model, machine, found), checkpoint.config)
    report["left_out"] = found.left_out
    for line in tables(report):
        print(line)
    line = json.dumps(report)
    print(line)
    if args.json is not None:
        args.json.write_text(line + "\n")
    if args.png is not None:
        draw(report, args.png)
    return 0


def num_parameters(checkpoint: Checkpoint) -> int:
    """Numbers in the network, a tied head counted once."""
    return sum(math.prod(shape) for shape in expected_shapes(checkpoint.config).values())


def _report(
    args: argparse.Namespace, model: TextModel, machine: Machine, readings: Readings, config: ModelConfig
) -> Figures:
    """The JSON line."""
    middle = args.prompt_tokens + (args.new_tokens + 1) // 2
    decode = decode_rows(readings, machine, config)
    return {
        "bench": "offline",
        "hardware": describe(model.engines[0].runner.device),
        "read_gb_per_s": round(readings.ceilings.read_rate / 1e9, 2),
        "giga_ops_per_s": round(readings.ceilings.op_rate / 1e9, 1),
        "model": model.name,
        "runner": machine.name,
        "quantization": args.quantization,
        "kv_cache_dtype": args.kv_cache_dtype,
        "weights_mb": round(machine.weight_bytes / 1e6, 2),
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "rounds": args.rounds,
        "streams": engine_rows(readings, machine, config, middle),
        "decode": decode,
        "fitted": fitted(decode),
        "prefill": prefill_rows(readings, machine, config),
    }


def _check_file(option: str, path: Path | None) -> None:
    """Minutes of measuring should not end in a file that cannot be written.

    Raises:
        OptionError: it cannot.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise OptionError(f"--{option} {path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
