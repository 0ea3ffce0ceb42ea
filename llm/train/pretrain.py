"""Pretraining: plain text in, a base model out that continues text.

    python -m llm.train.pretrain --data book.txt --out checkpoints/base --steps 2000

A .txt file is one document, a .jsonl file has one {"text": …} per line; documents are joined with end-of-text
and cut into windows of the model's positions. The result is no assistant yet: `llm.train.sft --init` makes it
one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llm.errors import DataError, OptionError
from llm.train.batches import Batch, TextBatches
from llm.train.data import Ids, join_documents, read_documents
from llm.train.options import add_run_flags, rows_per_step, run_command, share
from llm.train.run import read_card, run, start
from llm.train.shape import add_shape_flags


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a base model that continues text.")
    add = parser.add_argument
    add("--data", nargs="+", required=True, help='text files, or .jsonl with {"text": …} per line')
    add(
        "--validation-share",
        type=float,
        default=0.02,
        help="the text's end, not learned (default %(default)s)",
    )
    add("--window", type=int, help="tokens per row (default: the model's positions)")
    add_run_flags(parser, batch_size=8, epochs=1, lr=1e-3)
    add_shape_flags(parser)
    return run_command(parser, _train, argv)


def _train(options: argparse.Namespace) -> int:
    share(options.validation_share, "--validation-share")
    rows = rows_per_step(options)
    documents = [document for path in options.data for document in read_documents(path)]
    card = read_card(options)
    begin = start(options)
    limit = begin.model.config.num_positions
    window = limit if options.window is None else options.window
    if not 1 <= window <= limit:
        raise OptionError(f"--window must be from 1 to the model's {limit} positions, got {window}")
    ids = join_documents(begin.tokenizer, documents)
    learned, held = split(ids, options.validation_share, window)
    if len(learned) <= window:
        raise DataError(
            f"{len(learned)} tokens to learn, a window of {window} needs more: add text or lower --window"
        )
    batches = TextBatches(learned, window, rows, options.seed)
    return run(options, begin, batches, cut(held, window, options.batch_size), learned, [], card)


def split(ids: Ids, part: float, window: int) -> tuple[Ids, Ids]:
    """Training and validation ids; the last `part` of them validates when it fills a window."""
    count = int(len(ids) * part)
    return (ids[:-count], ids[-count:]) if count > window else (ids, ids[:0])


def cut(ids: Ids, window: int, batch_size: int) -> list[Batch]:
    """Windows of the ids in batches, every target trained; an incomplete last window is left out."""
    if len(ids) <= window:
        return []
    windows = TextBatches(ids[: (len(ids) - 1) // window * window + 1], window, batch_size, seed=0)
    return [windows[step] for step in range(windows.steps_per_epoch)]


if __name__ == "__main__":
    sys.exit(main())
