"""Command-line flags that `pretrain` and `sft` share, and how a command of this folder ends.

Bad input ends in one line on stderr and exit status 2. Refuses to know what a document or a conversation is,
and what the flags do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llm.errors import CauserieError, OptionError
from llm.train.adapter import add_lora_flags
from llm.train.loop import TrainConfig

LAYERS, HEADS, WIDTH, POSITIONS = 6, 6, 192, 512
SHAPE = ("layers", "heads", "kv_heads", "width", "ffn", "positions")
"""Names of the flags that shape a model from scratch; None where not given."""


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Parse and work; errors of the world become one line and status 2.

    Returns:
        The exit status.
    """
    options = parser.parse_args(argv)
    try:
        return work(options)
    except (CauserieError, OSError, ValueError) as error:
        print(f"{parser.prog}: error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2


def add_shape_flags(parser: argparse.ArgumentParser) -> None:
    """What a model from scratch looks like, or which checkpoint to start from."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--init", help="checkpoint to start from; without it, from scratch in the shape below")
    add("--layers", type=int, help=f"transformer blocks (default {LAYERS})")
    add("--heads", type=int, help=f"query heads (default {HEADS})")
    add("--kv-heads", type=int, help="key/value heads (default: as many as query heads)")
    add("--width", type=int, help=f"residual stream (default {WIDTH})")
    add("--ffn", type=int, help="feed-forward units (default: 4 × width)")
    add("--positions", type=int, help=f"longest context in tokens (default {POSITIONS})")
    add("--untied", action="store_true", help="a head of its own instead of the token embedding")
    add("--tokenizer", help='.tiktoken file, or "bytes" (default: the default checkpoint\'s)')
    add_lora_flags(parser)


def add_run_flags(parser: argparse.ArgumentParser, *, batch_size: int, epochs: float, lr: float) -> None:
    """Where the run goes, how long it takes, how it learns."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--out", type=Path, required=True, help="servable folder to write")
    add("--work", type=Path, help="folder for training.pt, log.jsonl and loss.png (default: OUT.run)")
    add("--card", type=Path, help="Markdown for the checkpoint's README.md")
    add("--resume", action="store_true", help="go on from the work folder's training.pt")
    add("--steps", type=int, help="optimiser steps (default: from --epochs)")
    add("--epochs", type=float, default=epochs, help="times through the data (default %(default)s)")
    add("--max-minutes", type=float, help="end by then, the learning rate having come down")
    add("--validate-every", type=int, default=200, help="steps; 0 only at the end (default %(default)s)")
    add("--save-every", type=int, default=500, help="steps; 0 only at the end (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default %(default)s)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of matrix products")
    add("--seed", type=int, default=1, help="of weights and shuffles (default %(default)s)")
    _add_learning_flags(parser, batch_size, lr)


def _add_learning_flags(parser: argparse.ArgumentParser, batch_size: int, lr: float) -> None:
    group = parser.add_argument_group("learning")
    add = group.add_argument
    add("--batch-size", type=int, default=batch_size, help="rows per step (default %(default)s)")
    add("--lr", type=float, default=lr, help="highest learning rate (default %(default)s)")
    add("--warmup", type=int, default=100, help="steps of rising learning rate (default %(default)s)")
    add("--weight-decay", type=float, default=0.1, help="on matrices (default %(default)s)")
    add("--clip", type=float, default=1.0, help="largest gradient norm (default %(default)s)")
    add(
        "--negatives",
        type=int,
        default=0,
        metavar="K",
        help="score the data's ids and K sampled others, not all",
    )
    add("--stop-after", type=int, help="end after so many steps of the schedule: the start of a next stage")
    add("--full-steps", type=int, default=0, help="last steps that score all ids, with --negatives")
    add(
        "--share-unseen",
        type=int,
        default=0,
        metavar="G",
        help="from scratch: ids not in the data share G rows",
    )


def train_config(options: argparse.Namespace, steps_per_epoch: int) -> TrainConfig:
    """The configuration the flags ask for.

    Raises:
        OptionError: a flag out of bounds.
    """
    steps = options.steps if options.steps is not None else round(options.epochs * steps_per_epoch)
    _at_least(1, **{"--steps (or --epochs)": steps, "--warmup": options.warmup})
    counts = ("negatives", "share_unseen", "full_steps", "validate_every", "save_every")
    _at_least(0, **{f"--{name.replace('_', '-')}": getattr(options, name) for name in counts})
    _at_least(0.0, **{"--weight-decay": options.weight_decay})
    for name in ("lr", "clip", "max_minutes"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise OptionError(f"--{name.replace('_', '-')} must be above 0, got {value}")
    return TrainConfig(
        steps=steps,
        lr=options.lr,
        warmup=min(options.warmup, steps),
        weight_decay=options.weight_decay,
        clip=options.clip,
        negatives=options.negatives,
        full_steps=options.full_steps,
        max_minutes=options.max_minutes,
        validate_every=options.validate_every,
        save_every=options.save_every,
        seed=options.seed,
        bf16=None if options.precision == "auto" else options.precision == "bf16",
        stop_after=options.stop_after,
    )


def _at_least(limit: float, **flags: float) -> None:
    for name, value in flags.items():
        if value < limit:
            raise OptionError(f"{name} must be at least {limit}, got {value}")


def check_batch_size(options: argparse.Namespace) -> int:
    """--batch-size, needed before the batches are cut."""
    _at_least(1, **{"--batch-size": options.batch_size})
    size: int = options.batch_size
    return size


def share(value: float, flag: str) -> float:
    """A share of the data: from 0 to below 1."""
    if not 0 <= value < 1:
        raise OptionError(f"{flag} must be from 0 to below 1, got {value}")
    return value
