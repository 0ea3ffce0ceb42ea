"""What drafts bring: the same requests with and without them, in alternating rounds, without HTTP.

    causerie bench --speculation --checkpoint checkpoints/smollm2-135m-instruct --streams 1,4,16

Two kinds of work. `quote` asks for a text back with one word changed, which is mostly said already; `chat`
asks questions, whose answers are not. Every reply must be the same with drafts as without, token by token,
and the command fails if one is not. Greedy or sampled (--temperature). Refuses to know HTTP.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace

from llm.bench import levels, positive
from llm.bench.offline import load
from llm.chat.message import Message
from llm.chat.template import encode_prompt
from llm.checkpoint import open_checkpoint
from llm.config import SamplingParams
from llm.engine import Engine
from llm.errors import CauserieError
from llm.hardware import describe
from llm.load import NUM_GUESSES
from llm.sequence import Sequence, TokenEvent
from llm.text import TextModel

TEXT = (
    "The server loads a checkpoint once and answers requests with it. Each request's messages are written "
    "into the template that the model was trained on, cut into tokens, and computed together with those of "
    "other requests. Tokens leave as soon as they exist. When a client closes its connection, its blocks are "
    "free after one step. A prompt that begins like an earlier one is not computed again. Nothing of a "
    "request is kept in a log."
)
QUOTE = "Repeat this text exactly, but write 'program' instead of 'server', and nothing else:\n\n" + TEXT
QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "How do vaccines work?",
    "Plan a day in Rome for me.",
    "What makes bread rise?",
    "Explain gravity to a child.",
    "Give me three ideas for a birthday party.",
    "Why do leaves change their colour?",
)
KINDS = {"quote": (QUOTE,), "chat": QUESTIONS}
Replies = list[list[int]]


@dataclass(frozen=True, slots=True)
class Run:
    """One level of one round: tokens per second, and what was said."""

    tokens_per_s: float
    replies: Replies


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what drafts bring, and that they change nothing.")
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)")
    add("--device", default="auto")
    add("--dtype", default="auto", help="of an eager runner")
    add("--threads", type=positive, help="default: every usable core")
    add("--streams", type=levels, default="1,4,16", help="comma-separated (default: %(default)s)")
    add("--new-tokens", type=positive, default=96, help="of a reply at most (default: %(default)s)")
    add("--temperature", type=float, default=0.0)
    add(
        "--num-speculative-tokens",
        type=positive,
        default=NUM_GUESSES,
        help="of a draft (default: %(default)s)",
    )
    add("--rounds", type=positive, default=5, help="of all levels in turn; medians are printed")
    return parser.parse_args(argv)


def measure(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> Run:
    """Drive the engine's steps in this thread until every prompt has its reply."""
    sequences = [Sequence(prompt, replace(params, seed=i)) for i, prompt in enumerate(prompts)]
    first: list[float] = []

    def keep(events: list[TokenEvent]) -> None:
        if not first and any(event.token_id is not None for event in events):
            first.append(time.perf_counter())

    engine.emit = keep
    for sequence in sequences:
        engine.scheduler.add(sequence)
    while engine.step():
        pass
    seconds = time.perf_counter() - first[0]
    replies = [sequence.output for sequence in sequences]
    return Run(sum(map(len, replies)) / seconds, replies)


def prompts_of(model: TextModel, kind: str, num_streams: int) -> list[list[int]]:
    """As many of that kind, the same again when there are not so many."""
    texts = KINDS[kind]
    rendered = [encode_prompt(model.tokenizer, model.template, [Message("user", text)]) for text in texts]
    return [rendered[i % len(rendered)] for i in range(num_streams)]


def contest(
    args: argparse.Namespace, plain: TextModel, drafting: TextModel
) -> dict[str, dict[int, list[float]]]:
    """Kind → streams → each round's tokens per second with drafts by those without.

    Raises:
        AssertionError: a reply differs.
    """
    ratios: dict[str, dict[int, list[float]]] = {kind: defaultdict(list) for kind in KINDS}
    params = SamplingParams(
        max_tokens=args.new_tokens,
        temperature=args.temperature,
        stop_token_ids=plain.defaults.stop_token_ids,
    )
    for i in range(args.rounds + 1):  # the first warms up
        for kind, levels_of_kind in ratios.items():
            for n in args.streams:
                work = prompts_of(plain, kind, n)
                order = (plain, drafting) if i % 2 else (drafting, plain)
                runs = {model is drafting: measure(model.engines[0], work, params) for model in order}
                assert runs[True].replies == runs[False].replies, f"{kind}, {n} streams: a reply differs"
                if i:
                    levels_of_kind[n].append(runs[True].tokens_per_s / runs[False].tokens_per_s)
    return ratios


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option or checkpoint that cannot be used."""
    args = parse(argv)
    try:
        checkpoint = open_checkpoint(args.checkpoint)
        plain = load(args, checkpoint, num_speculative_tokens=0)
        drafting = load(args, checkpoint, num_speculative_tokens=args.num_speculative_tokens)
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    engine = drafting.engines[0]
    hardware = describe(engine.runner.device)
    print(f"hardware   {hardware}")
    print(f"model      {checkpoint.name}, {engine.runner.about}; drafts of {args.num_speculative_tokens}")
    ratios = contest(args, plain, drafting)
    print("tokens per second with drafts : without, median (least to most)")
    for kind, by_streams in ratios.items():
        for n, found in by_streams.items():
            spread = f"({min(found):.2f} to {max(found):.2f})"
            print(f"{kind:>8} {n:>3} streams  {statistics.median(found):.2f} {spread}")
    stats = engine.stats()
    print(f"every reply the same; {stats.num_accepted} of {stats.num_drafted} guesses came")
    medians = {
        kind: {str(n): round(statistics.median(found), 3) for n, found in by_streams.items()}
        for kind, by_streams in ratios.items()
    }
    line = {"bench": "speculation", "hardware": hardware, "temperature": args.temperature, "ratios": medians}
    print(json.dumps(line | {"drafted": stats.num_drafted, "accepted": stats.num_accepted}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
