"""A conversation in the terminal: the course's chat loop, against the server.

    python -m clients.chat                                       # with the server at http://127.0.0.1:8000
    python -m clients.chat --checkpoint checkpoints/model_sft.pt # starts a server, and stops it afterwards
    echo "what is a token?" | python -m clients.chat             # one prompt a line, replies on stdout

Replies stream; Ctrl-C stops a reply, Ctrl-D leaves. Refuses to know the model: history is kept here and sent
whole, and the server says how many old turns it had to drop (`truncation: "drop_oldest"`). Nothing typed is
written to disk except by /save.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from clients.child import ChildServer
from clients.client import DEFAULT_URL, Client
from clients.wire import KEY_VARIABLE, ClientError, Unreachable, key_from_environment

HELP = """\
/system TEXT  the system message from the next turn on; none: the checkpoint's own
/reset        forget the conversation, keep the system message
/save FILE    write the conversation as chat JSONL, which `causerie train sft` reads
/quit, /exit  leave, as Ctrl-D does; Ctrl-C stops a reply"""

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass
class Conversation:
    """What is sent with every turn."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, when there is one, and the turns so far."""
        return [
            *([{"role": "system", "content": self.system}] if self.system is not None else []),
            *self.turns,
        ]

    def save(self, path: str) -> None:
        """Write one line of chat JSONL; an existing file is never overwritten (FileExistsError)."""
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")


class Chat:
    """The loop: a line typed is a command or a turn.

    Args:
        client: where replies come from.
        params: fields sent with every request; None is not sent.
        system: the first system message.
        is_terminal: show prompts; otherwise replies alone go to stdout and a Ctrl-C ends the program.
    """

    def __init__(
        self, client: Client, params: dict[str, Any], system: str | None = None, is_terminal: bool = False
    ) -> None:
        self.conversation = Conversation(system)
        self.num_failures = 0
        self._client = client
        self._params = {**params, "truncation": "drop_oldest"}
        self._is_terminal = is_terminal
        self._prompt = _prompt() if is_terminal else ""
        self._notes = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._ignored_shown = ""

    def run(self) -> None:
        """Read lines until /quit or the end of input."""
        while True:
            try:
                while self.take(
                    input(self._prompt)
                ):  # within the try: a Ctrl-C between two lines ends nothing
                    pass
                return
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                self.note("\n(Ctrl-D or /quit leaves)")
            except EOFError:
                if self._is_terminal:
                    _write("\n")
                return

    def take(self, line: str) -> bool:
        """One line typed; False when it asks to leave."""
        line = _clean(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")).strip()
        if not line.startswith("/"):
            if line:
                self.ask(line)
            return True
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.note(HELP),
            "/reset": self._reset,
            "/system": self._set_system,
            "/save": self._save,
        }
        if name in commands:
            commands[name](rest.strip())
        else:
            self.note(f"no command {name}; there are: {', '.join(commands)}, /quit, /exit")
        return True

    def ask(self, text: str) -> None:
        """One turn: send the history, show the reply as it comes, keep both when there was one."""
        turns = self.conversation.turns
        turns.append({"role": "user", "content": text})
        pieces: list[str] = []
        failed = False
        try:
            self._stream(pieces)
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            self.note(" (stopped)")
        except ClientError as error:
            failed = True
            self.num_failures += 1
            self.note(f"\n{_advice(error)}" if any(pieces) else _advice(error), style="red")
        if any(pieces) and not failed:
            turns.append({"role": "assistant", "content": "".join(pieces)})
        else:
            turns.pop()  # an unanswered question would stay in every later prompt; it can be asked again

    def note(self, text: str, style: str = "dim") -> None:
        """Something about the conversation that is not part of it."""
        self._notes.print(_clean(text), style=style, markup=False)

    def _stream(self, pieces: list[str]) -> None:
        finish = None
        with self._client.open_stream(self.conversation.messages, **self._params) as reply:
            if self._is_terminal:
                _write("Assistant: ")
            for chunk in reply.chunks:
                for choice in chunk.get("choices", []):
                    finish = choice.get("finish_reason") or finish
                    text = choice.get("delta", {}).get("content") or ""
                    pieces.append(text)
                    _write(_clean(text))
        _write("\n")
        self._note_headers(reply.headers.get("x-truncated-messages"), reply.headers.get("x-ignored-params"))
        if not any(pieces):
            self.note("(the reply is empty)")
        elif finish == "length":
            self.note("(cut off: the reply reached its token limit)")

    def _note_headers(self, dropped: str | None, ignored: str | None) -> None:
        if dropped not in (None, "", "0"):
            self.note(f"(the model's context is full: the {dropped} oldest messages were left out)")
        if ignored and ignored != self._ignored_shown:
            self._ignored_shown = ignored
            self.note(f"(the server ignores: {ignored})")

    def _reset(self, _: str) -> None:
        self.conversation.turns.clear()
        self.note("(the conversation is forgotten)")

    def _set_system(self, text: str) -> None:
        self.conversation.system = text or None
        self.note("(new system message)" if text else "(the checkpoint's own system message)")

    def _save(self, path: str) -> None:
        if not path:
            self.note("/save needs a file name")
            return
        try:
            self.conversation.save(path)
        except OSError as error:
            self.note(f"{path}: not saved: {error.strerror}", style="red")
        else:
            self.note(f"({len(self.conversation.messages)} messages written to {path})")


def main(argv: list[str] | None = None) -> int:
    """Chat until the input ends; 1 when a reply failed or no server was there, else 0."""
    args = _parser().parse_args(argv)
    try:
        with _server(args) as url, Client(url, args.api_key) as client:
            return _converse(client, args)
    except ClientError as error:
        print(_clean(_advice(error)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return 141


def _converse(client: Client, args: argparse.Namespace) -> int:
    is_terminal = args.once is None and sys.stdin.isatty() and sys.stdout.isatty()
    params = {
        name: getattr(args, name) for name in ("model", "temperature", "top_p", "top_k", "max_tokens", "seed")
    }
    models = client.models()  # says at once when no server is there, or the key is wrong
    chat = Chat(client, params, args.system, is_terminal)
    if args.once is not None:
        chat.ask(args.once)
        return 1 if chat.num_failures else 0
    if is_terminal:
        names = [args.model, *(str(model.get("id")) for model in models)]
        chat.note(f"{next(filter(None, names), 'no model')} at {client.url}; /help for commands")
    chat.run()
    return 1 if chat.num_failures else 0


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """The URL to talk to: the one given, or that of a server of our own."""
    if args.checkpoint is None:
        yield args.url
        return
    print(f"starting a server for {args.checkpoint} …", file=sys.stderr)
    key = {} if args.api_key is None else {KEY_VARIABLE: args.api_key}
    with ChildServer(["--checkpoint", args.checkpoint], environment=key) as server:
        yield server.url


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Chat with a served checkpoint in the terminal.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default=DEFAULT_URL, help="the server (default %(default)s)")
    where.add_argument(
        "--checkpoint", metavar="PATH", help="start a server for this checkpoint, stop it at the end"
    )
    parser.add_argument(
        "--api-key", default=key_from_environment(), help=f"bearer token (default: ${KEY_VARIABLE})"
    )
    parser.add_argument("--model", help="model id (default: the server's first)")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the checkpoint's own)")
    for name, kind, what in (
        ("--temperature", float, "0 is greedy"),
        ("--top-p", float, "keep the most probable tokens whose mass reaches this"),
        ("--top-k", int, "keep this many of the most probable tokens, 0 keeps all"),
        ("--max-tokens", int, "longest reply, in tokens"),
        ("--seed", int, "same seed, same reply"),
    ):
        parser.add_argument(
            name, type=kind, metavar=kind.__name__.upper(), help=f"{what} (default: the checkpoint's)"
        )
    parser.add_argument("--once", metavar="PROMPT", help="print one reply and leave")
    return parser


def _prompt() -> str:
    """The prompt, bold where the terminal can; importing readline gives input() line editing and history."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return "User: "
    screen = Console()
    if screen.no_color or screen.color_system is None:
        return "User: "
    return "\001\033[1m\002User:\001\033[0m\002 "  # \001 and \002 bracket what takes no room on the line


def _write(text: str) -> None:
    """Reply text exactly as it is: rich would expand tabs and wrap."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _clean(text: str) -> str:
    """Without control characters: neither a model nor a paste may steer the terminal."""
    return text.translate(_CONTROLS)


def _advice(error: ClientError) -> str:
    text = str(error)
    if isinstance(error, Unreachable):
        text += "; start one with `causerie serve`, or chat with `--checkpoint PATH` to have one started"
    return text


if __name__ == "__main__":
    sys.exit(main())
