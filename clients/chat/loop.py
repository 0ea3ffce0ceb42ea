"""The loop: what is typed is a command or a turn, until there is no more.

Refuses to know what commands do and what a turn is.
"""

from __future__ import annotations

from clients.chat import commands
from clients.chat.dialogue import Dialogue
from clients.chat.lines import Reader
from clients.chat.safe_text import sendable

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def run(dialogue: Dialogue, reader: Reader) -> None:
    """Take lines until /quit or the end of input. Without a terminal a Ctrl-C goes on to the caller."""
    screen = dialogue.screen
    while True:
        try:
            while take(dialogue, reader.read()):
                pass
            return
        except KeyboardInterrupt:  # between two turns it ends nothing
            if not screen.is_terminal:
                raise
            screen.note("(Ctrl-D or /quit leaves)")
        except EOFError:
            return


def take(dialogue: Dialogue, line: str) -> bool:
    """One line typed, or several at once; False when it asks to leave."""
    line = cleaned(line)
    if line.startswith("/") and not line.startswith("//"):
        if line in commands.LEAVE:
            return False
        if not commands.run(dialogue, line) and not dialogue.screen.is_terminal:
            dialogue.num_failures += 1  # a script goes on, and its status says that not all was done
    elif line:
        dialogue.ask(line.removeprefix("/"))
    return True


def cleaned(line: str) -> str:
    """What was typed, without the control characters that a paste may carry."""
    return sendable(line).translate(_CONTROLS).strip()
