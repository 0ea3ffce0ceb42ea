"""`causerie chat`: a conversation in the terminal, or one prompt a line through a pipe.

    python -m clients.chat                                       # with the server at http://127.0.0.1:8000
    python -m clients.chat --url http://host:11434               # with any server that speaks OpenAI's API
    python -m clients.chat --checkpoint checkpoints/model_sft.pt # starts a server, and stops it afterwards
    echo "what is a token?" | python -m clients.chat             # one prompt a line, replies on stdout
    python -m clients.chat --once - < question.txt               # one prompt, all of standard input

Nothing typed is written to disk except by /save, and by --history where it is given. Refuses to know
anything but who talks to whom, and what the exit status is.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from clients.chat import commands, loop
from clients.chat.dialogue import Dialogue, advice
from clients.chat.lines import Lines, Reader
from clients.chat.options import parse
from clients.chat.peer import Peer
from clients.chat.safe_text import harmless, one_line
from clients.chat.screen import Screen, is_dumb, is_plain
from clients.child import ChildServer, ServerDied
from clients.client import Client
from clients.unwinding import unwound_by_signals
from clients.wire import KEY_VARIABLE, ClientError

PARAMS = ("model", "temperature", "top_p", "top_k", "max_tokens", "seed")
INTERRUPTED, UNREAD = 130, 141
"""128 and the signal's number, as a shell has it for a program that SIGINT or SIGPIPE ends."""


def main(argv: list[str] | None = None) -> int:
    """Chat until the input ends; the exit status, as `--help` lists it."""
    args = parse(argv)
    _tolerate_any_stream()
    try:
        with unwound_by_signals(), _server(args) as url, Client(url, args.api_key) as client:
            return _converse(client, args)
    except ServerDied as error:
        print(harmless(str(error)), file=sys.stderr)  # the last lines it wrote
        return 1
    except ClientError as error:
        print(advice(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _unwritten(error)


def _converse(client: Client, args: argparse.Namespace) -> int:
    is_terminal = args.once is None and sys.stdin.isatty() and sys.stdout.isatty()
    reader = _reader(args, is_terminal)
    if reader is None:
        return 2
    screen = Screen(is_terminal)
    peer = Peer(client, {name: getattr(args, name) for name in PARAMS}, screen.note)
    dialogue = Dialogue(peer, screen, args.system)
    peer.greet()  # says at once when no server is there, or the key is wrong
    if args.once is not None:
        dialogue.ask(sys.stdin.read().rstrip("\n") if args.once == "-" else args.once)
    else:
        if is_terminal:
            screen.note(f"{one_line(peer.model or 'no model named')} at {peer.url}; /help for commands")
        loop.run(dialogue, reader)
    return 1 if dialogue.num_failures else 0


def _reader(args: argparse.Namespace, is_terminal: bool) -> Reader | None:
    """Where lines come from; None when a history was asked for that cannot be kept."""
    if not is_terminal or is_dumb():
        return Lines(is_terminal)
    try:
        from clients.chat.keyboard import Keyboard, NoHistory  # 0.2 s that a pipe need not wait
    except ModuleNotFoundError:  # as in the image for serving, which has no editor
        return Lines(is_terminal)
    try:
        return Keyboard((*commands.COMMANDS, *commands.LEAVE), args.history, is_plain(sys.stdout))
    except NoHistory as error:
        print(f"--history {one_line(str(error))}", file=sys.stderr)
        return None


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """The URL to talk to: the one given, or that of a server of our own."""
    if args.checkpoint is None:
        yield args.url
        return
    print(f"starting a server for {one_line(args.checkpoint)} …", file=sys.stderr)
    key = {} if args.api_key is None else {KEY_VARIABLE: args.api_key}
    with ChildServer(["--checkpoint", args.checkpoint], environment=key) as server:
        yield server.url


def _tolerate_any_stream() -> None:
    """Bytes that are no text, text that an encoding lacks, and ends that are closed, as by `2>&-`."""
    for name, errors in (("stdin", "surrogateescape"), ("stdout", "replace"), ("stderr", "replace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _unwritten(error: OSError) -> int:
    """Stdout takes no more: quietly when its reader went away, as `| head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
    if isinstance(error, BrokenPipeError):
        return UNREAD
    print(f"cannot go on: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
