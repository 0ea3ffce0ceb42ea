"""Where lines come from when nothing edits them: a pipe, a file, a terminal that cannot move its cursor.

Refuses to know what lines mean. Its sibling for terminals that can is `keyboard.py`, imported only there.
"""

from __future__ import annotations

from typing import Protocol

PROMPT = "User: "
GOES_ON = "\\"
"""At a line's end it says that another line belongs to it."""


class Reader(Protocol):
    """Whatever lines come from."""

    def read(self) -> str:
        """What was typed. EOFError at the end, KeyboardInterrupt at a Ctrl-C."""


class Lines:
    """Standard input, a line at a time.

    Args:
        is_terminal: a person types: show a prompt, and let a line go on. A pipe's are taken as they are.
    """

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def read(self) -> str:
        """The next line, or several that a person joined."""
        return self._read_typed() if self._is_terminal else input()

    def _read_typed(self) -> str:
        try:
            lines = [input(PROMPT)]
            while lines[-1].endswith(GOES_ON):
                lines[-1] = lines[-1].removesuffix(GOES_ON)
                lines.append(input(" " * len(PROMPT)))
        except (EOFError, KeyboardInterrupt):
            print()  # the line of the prompt was not ended
            raise
        return "\n".join(lines)
