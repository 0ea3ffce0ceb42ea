"""The command: `causerie SUBCOMMAND …` is a module's own `main`, so that each room keeps its own options.

    causerie serve --checkpoint checkpoints/causette
    causerie train sft --help

Refuses to know any option. A module is imported when its subcommand is called, so `--help` costs nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """A module with `main(argv) -> exit status`, and one line about it."""

    module: str
    about: str


COMMANDS = {
    "serve": Command("server.__main__", "answer OpenAI's API with a checkpoint"),
    "chat": Command("clients.chat.__main__", "talk to a server, or to a checkpoint, in the terminal"),
    "pull": Command("llm.pull.__main__", "fetch a checkpoint: a known name, or the hub's org/repo"),
    "inspect": Command("llm.checkpoint.inspect", "say what a checkpoint is, without serving it"),
    "train pretrain": Command("llm.train.pretrain", "train a model on text"),
    "train sft": Command("llm.train.sft", "train a model on conversations"),
    "train facts": Command("llm.train.facts", "write the default checkpoint's conversations"),
    "quantize": Command("llm.adapt.quantize", "write a checkpoint again with 8 or 4 bits a weight"),
    "merge": Command("llm.adapt.merge", "fold a LoRA adapter into its base: a folder that is served"),
    "build-kernel": Command("llm.runner.native.build", "compile what computes on a CPU, for this one or all"),
    "eval": Command("llm.eval.__main__", "score a checkpoint's answers and texts, alone or beside another"),
    "quality": Command("llm.quality", "compare formats of the weights with the unquantised model"),
    "invariance": Command("llm.invariance", "show that company changes no bit of a sequence's logits"),
    "bench": Command("clients.bench.__main__", "measure a server through HTTP"),
    "bench --offline": Command("llm.bench.offline", "measure the engine without HTTP, and its runner alone"),
    "bench --speculation": Command(
        "llm.bench.speculation", "measure what drafts bring, and that they change nothing"
    ),
    "bench --adapters": Command(
        "llm.bench.adapters", "measure what adapters cost in a batch, one and several"
    ),
    "bench --gaps": Command("llm.bench.gaps", "measure what a long prompt does to those being answered"),
    "bench --sampling": Command("llm.bench.sampling", "measure what drawing costs beside computing"),
    "bench --host": Command("llm.bench.host", "measure what a step costs beside model and sampler"),
    "bench --peers": Command("llm.bench.peers", "measure the runner beside other programs, in turn"),
    "bench-offline": Command("llm.bench.offline", "the same as bench --offline"),
    "bench-cache": Command("llm.bench.cache", "compare cached with naive generation"),
    "bench-grammar": Command("llm.bench.grammar", "measure what structured output costs"),
}


UNREAD = 141
"""As a shell has it for a program that SIGPIPE ends: who read its output left, as `| head` does."""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; its exit status, or 2 when there is no such subcommand."""
    args = sys.argv[1:] if argv is None else list(argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name = _name(args)
    if name is None:
        known = ", ".join(COMMANDS)
        print(f"causerie: no subcommand {' '.join(args[:2])!r}, there are: {known}", file=sys.stderr)
        return 2
    sys.argv[0] = f"causerie {name}"  # what argparse calls the program in its help and errors
    module = importlib.import_module(COMMANDS[name].module)
    try:
        status: int = module.main(args[len(name.split()) :])
        print(end="", flush=True)  # which bears a stdout that is closed, as by >&-
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return UNREAD
    return status


def _name(args: list[str]) -> str | None:
    """The subcommand they begin with; in `bench --offline FILE` the option is the load test's own."""
    if args[:2] == ["bench", "--offline"] and args[2:] and not args[2].startswith("-"):
        return "bench"
    return next((name for name in (" ".join(args[:2]), args[0]) if name in COMMANDS), None)


def _help() -> str:
    lines = [f"  {name:<15} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: causerie SUBCOMMAND …", "", *lines, "", "causerie SUBCOMMAND --help says more."]
    )


if __name__ == "__main__":
    sys.exit(main())
