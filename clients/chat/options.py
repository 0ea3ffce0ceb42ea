"""The command line of the chat. Refuses to know what is done with it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from clients.client import DEFAULT_URL
from clients.wire import KEY_VARIABLE, key_from_environment

STATUS = """\
Status: 0 when all was answered, 1 when a reply failed or no server was there, 2 for options that cannot be
used, 130 after a Ctrl-C, 141 when nobody reads on. Commands and keys: /help, or docs/chat.md."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; those that cannot be used end the program with status 2."""
    parser = argparse.ArgumentParser(description="Chat with a server in the terminal.", epilog=STATUS)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default=DEFAULT_URL, help="the server (default %(default)s)")
    where.add_argument(
        "--checkpoint", metavar="PATH", help="start a server for this checkpoint, stop it at the end"
    )
    add = parser.add_argument
    add("--api-key", default=key_from_environment(), help=f"bearer token (default: ${KEY_VARIABLE})")
    add("--model", help="model id (default: the server's first)")
    add("--system", metavar="TEXT", help="system message (default: the model's own)")
    _add_sampling(parser)
    add("--once", metavar="PROMPT", help="print one reply and leave; -: the prompt is all of standard input")
    add("--history", metavar="FILE", help="keep what is typed in this file (default: nothing is written)")
    return parser.parse_args(argv)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    for name, kind, what in (
        ("--temperature", _finite, "0 is greedy"),
        ("--top-p", _finite, "keep the most probable tokens whose mass reaches this"),
        ("--top-k", int, "keep this many of the most probable tokens, 0 keeps all"),
        ("--max-tokens", int, "longest reply, in tokens"),
        ("--seed", int, "same seed, same reply"),
    ):
        metavar = "INT" if kind is int else "FLOAT"
        parser.add_argument(name, type=kind, metavar=metavar, help=f"{what} (default: the server's)")


def _finite(text: str) -> float:
    """A number that JSON has."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no number that can be sent")
    return value
