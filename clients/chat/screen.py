"""What a person sees: replies on stdout, everything about them on stderr, both harmless.

A reply is written as it comes, as plain text: Markdown rendered while it streams would have to paint again
what is already above the screen's edge. Styles only where stderr or stdout is a terminal that has them and
NO_COLOR is not set. Refuses to know servers and conversations.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rich.console import Console

from clients.chat.safe_text import Cleaner, harmless

LABEL = "Assistant: "


class Screen:
    """Writes.

    Args:
        is_terminal: say who speaks and show thoughts; otherwise replies alone go to stdout.
    """

    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self._out = _console(sys.stdout)
        self._notes = _console(sys.stderr)
        self._cleaner = Cleaner()
        self._is_thinking = False
        self._at_start = True  # of a line of stdout

    def begin_reply(self) -> None:
        """A reply starts."""
        self._cleaner = Cleaner()
        if self.is_terminal:
            self._style(LABEL, "bold cyan")

    def say(self, text: str) -> None:
        """Text of a reply, exactly as it is where it is harmless: rich would expand tabs and wrap."""
        if not text:
            return
        if self._is_thinking:
            self._is_thinking = False
            self.end_line()
        shown = self._cleaner.feed(text)
        sys.stdout.write(shown)
        sys.stdout.flush()
        self._at_start = shown.endswith("\n") if shown else self._at_start

    def think(self, text: str) -> None:
        """Text that a model thinks before it speaks: for a person's eye, not for a pipe."""
        if text and self.is_terminal:
            self._is_thinking = True
            self._style(self._cleaner.feed(text), "dim")

    def end_line(self) -> None:
        """The reply's line ends."""
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._at_start = True
        self._is_thinking = False

    def note(self, text: str, style: str = "dim") -> None:
        """Something about the conversation that is not part of it, on a line of its own."""
        if not self._at_start:
            self.end_line()
        self._notes.print(harmless(text), style=style, markup=False)

    def complain(self, text: str) -> None:
        """Something that went wrong."""
        self.note(text, "red")

    def _style(self, text: str, style: str) -> None:
        self._out.print(text, style=style, markup=False, end="")
        sys.stdout.flush()
        self._at_start = False


def is_plain(file: TextIO) -> bool:
    """Whether no control code may be written there."""
    return not file.isatty() or bool(os.environ.get("NO_COLOR")) or is_dumb()


def is_dumb() -> bool:
    """Whether the terminal says that it cannot move its cursor."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown", "")


def _console(file: TextIO) -> Console:
    return Console(
        file=file,
        color_system=None if is_plain(file) else "standard",  # "auto" would heed FORCE_COLOR in a pipe
        highlight=False,
        soft_wrap=True,
        emoji=False,
    )
