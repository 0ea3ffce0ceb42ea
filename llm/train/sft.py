"""Supervised fine-tuning: conversations in, a servable assistant out.

    python -m llm.train.sft --data chat.jsonl --out checkpoints/mine --init checkpoints/base
    python -m llm.train.sft --data chat.jsonl --out checkpoints/mine --layers 4 --width 128 --heads 4

The loss covers the replies only, unless --prompt-loss gives the rest a share. The template that renders the
training text is the one that serves, and a few conversations are saved with their ids as the proof. Refuses
to know how the conversations came about.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from llm.chat.template import ChatTemplate, Message
from llm.checkpoint import Sample
from llm.errors import DataError, OptionError
from llm.tokenizer import Tokenizer
from llm.train.batches import Batch, Batches, ChatBatches, collate
from llm.train.data import Chat, Example, encode_examples, read_chats
from llm.train.options import add_run_flags, rows_per_step, run_command, share
from llm.train.packing import PackedBatches
from llm.train.run import Start, read_card, run, start
from llm.train.shape import add_shape_flags
from llm.train.shown import marked

NUM_SAMPLES = 8
ROW = 512


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fine-tune on conversations; the loss covers the replies.")
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        required=True,
        help='JSONL: {"messages": [{"role", "content"}, …]} or {"prompt", "completion"} per line',
    )
    add("--validation", nargs="+", default=[], help="chat JSONL to measure the loss on")
    add(
        "--validation-share",
        type=float,
        default=0.02,
        help="without it: share of the data (default %(default)s)",
    )
    add(
        "--prompt-loss",
        type=float,
        default=0.0,
        metavar="W",
        help="weight of the prompt's tokens in the loss",
    )
    add("--pack", action="store_true", help="several conversations per row, each seeing only itself")
    add(
        "--window",
        type=int,
        help="tokens per row of --pack (default: the longest conversation's, at least 512)",
    )
    add_run_flags(parser, batch_size=32, epochs=3, lr=1e-3)
    add_shape_flags(parser)
    return run_command(parser, _train, argv)


def _train(options: argparse.Namespace) -> int:
    if not 0 <= options.prompt_loss <= 1:
        raise OptionError(f"--prompt-loss must be from 0 to 1, got {options.prompt_loss}")
    share(options.validation_share, "--validation-share")
    rows = rows_per_step(options)
    chats = [chat for path in options.data for chat in read_chats(path)]
    held_chats = [chat for path in options.validation for chat in read_chats(path)]
    card = read_card(options)
    begin = start(options)
    limit = _longest(options, begin)
    examples = _encode(begin, chats, limit, "training")
    _show(begin, examples[0])
    if held_chats:
        held = _encode(begin, held_chats, limit, "validation")
    else:
        examples, held = split(examples, options.validation_share, options.seed)
    batches: Batches = ChatBatches(examples, rows, options.seed, options.prompt_loss)
    if options.pack:
        window = limit if options.window is not None else _row(examples, limit)
        batches = PackedBatches(examples, window, rows, options.seed, options.prompt_loss)
    samples = pick_samples(chats, begin.tokenizer, begin.template, limit)
    seen = np.concatenate([example.ids for example in examples])
    return run(options, begin, batches, cut(held, options.batch_size), seen, samples, card)


def _longest(options: argparse.Namespace, begin: Start) -> int:
    """Tokens of the longest conversation that is learned from."""
    positions = begin.model.config.num_positions
    if options.window is None:
        return positions
    if not options.pack:
        raise OptionError(
            f"--window {options.window} is for --pack; a row is else as long as its conversation"
        )
    if not 2 <= options.window <= positions:
        raise OptionError(
            f"--window must be from 2 to the model's {positions} positions, got {options.window}"
        )
    return int(options.window)


def _row(examples: Sequence[Example], limit: int) -> int:
    """Tokens of a packed row: all of 8,192 positions would be 67 million scores a head."""
    return max(min(ROW, limit), *(len(example.ids) for example in examples))


def _encode(begin: Start, chats: Sequence[Chat], limit: int, what: str) -> list[Example]:
    """What fits the model's positions or the window; how many conversations do not is printed."""
    parts = [encode_examples(begin.tokenizer, begin.template, chat) for chat in chats]
    fitting = [[example for example in part if len(example.ids) <= limit] for part in parts]
    if left := sum(not part for part in fitting):
        print(f"{left} of {len(chats)} {what} conversations left out: longer than {limit} tokens")
    if left == len(chats):
        raise DataError(f"no {what} conversation fits in {limit} tokens")
    return [example for part in fitting for example in part]


def _show(begin: Start, example: Example) -> None:
    """The first example, before hours are spent on a wrong one."""
    console = Console(highlight=False, soft_wrap=True)
    console.print("The first example; marked is what the model is taught to write:", style="dim")
    console.print(marked(begin.tokenizer, example, colour=console.is_terminal))


def split(examples: Sequence[Example], part: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation examples; at least one stays for training."""
    order = np.random.default_rng([seed, 0]).permutation(len(examples))
    count = min(int(len(examples) * part), len(examples) - 1)
    return [examples[i] for i in order[count:]], [examples[i] for i in order[:count]]


def cut(examples: Sequence[Example], batch_size: int) -> list[Batch]:
    """Examples in batches of like length, the loss on replies only."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    return [collate(ordered[i : i + batch_size]) for i in range(0, len(ordered), batch_size)]


def pick_samples(
    chats: Sequence[Chat], tokenizer: Tokenizer, template: ChatTemplate, limit: int
) -> list[Sample]:
    """A few conversations as the model saw them, evenly from the file: the evidence of the prompt proof.

    Those without functions, which samples.jsonl cannot hold, and in one stretch.
    """
    plain = [chat for chat in chats if not chat.tools and all(_is_plain(m) for m in chat.messages)]
    samples = []
    for chat in plain[:: max(1, len(plain) // NUM_SAMPLES)][:NUM_SAMPLES]:
        examples = encode_examples(tokenizer, template, chat)
        if len(examples) == 1 and len(examples[0].ids) <= limit:
            ids, trained = examples[0].ids.tolist(), examples[0].trained.tolist()
            samples.append(Sample(list(chat.messages), ids, trained))
    return samples


def _is_plain(message: Message) -> bool:
    return message.role != "tool" and not message.tool_calls and message.name is None


if __name__ == "__main__":
    sys.exit(main())
