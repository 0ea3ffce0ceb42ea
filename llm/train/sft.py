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

from llm.chat.template import ChatTemplate, Message
from llm.checkpoint import Sample
from llm.errors import DataError, OptionError
from llm.tokenizer import Tokenizer
from llm.train.data import Batch, ChatBatches, Example, collate, encode_chat, read_chats
from llm.train.options import add_run_flags, add_shape_flags, check_batch_size, run_command, share
from llm.train.run import Start, read_card, run, start

NUM_SAMPLES = 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fine-tune on conversations; the loss covers the replies.")
    add = parser.add_argument
    add(
        "--data", nargs="+", required=True, help='chat JSONL: {"messages": [{"role", "content"}, …]} per line'
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
    add_run_flags(parser, batch_size=32, epochs=3, lr=1e-3)
    add_shape_flags(parser)
    return run_command(parser, _train, argv)


def _train(options: argparse.Namespace) -> int:
    if not 0 <= options.prompt_loss <= 1:
        raise OptionError(f"--prompt-loss must be from 0 to 1, got {options.prompt_loss}")
    share(options.validation_share, "--validation-share")
    batch_size = check_batch_size(options)
    chats = [chat for path in options.data for chat in read_chats(path)]
    held_chats = [chat for path in options.validation for chat in read_chats(path)]
    card = read_card(options)
    begin = start(options)
    examples = _encode(begin, chats, "training")
    if held_chats:
        held = _encode(begin, held_chats, "validation")
    else:
        examples, held = split(examples, options.validation_share, options.seed)
    batches = ChatBatches(examples, batch_size, options.seed, options.prompt_loss)
    samples = pick_samples(chats, begin.tokenizer, begin.template, begin.model.config.num_positions)
    seen = np.concatenate([example.ids for example in examples])
    return run(options, begin, batches, cut(held, batch_size), seen, samples, card)


def _encode(begin: Start, chats: Sequence[Sequence[Message]], what: str) -> list[Example]:
    """Conversations that fit the model's positions; how many do not is printed."""
    limit = begin.model.config.num_positions
    examples = [encode_chat(begin.tokenizer, begin.template, chat) for chat in chats]
    fitting = [example for example in examples if len(example.ids) <= limit]
    if len(fitting) < len(examples):
        left = len(examples) - len(fitting)
        print(f"{left} of {len(examples)} {what} conversations left out: longer than {limit} tokens")
    if not fitting:
        raise DataError(f"no {what} conversation fits the model's {limit} positions")
    return fitting


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
    chats: Sequence[Sequence[Message]], tokenizer: Tokenizer, template: ChatTemplate, limit: int
) -> list[Sample]:
    """A few conversations as the model saw them, evenly from the file: the evidence of the prompt proof."""
    samples = []
    for chat in chats[:: max(1, len(chats) // NUM_SAMPLES)][:NUM_SAMPLES]:
        example = encode_chat(tokenizer, template, chat)
        if len(example.ids) <= limit:
            samples.append(Sample(list(chat), example.ids.tolist(), example.trained.tolist()))
    return samples


if __name__ == "__main__":
    sys.exit(main())
