"""A person at a terminal: prompt-toolkit edits what is typed.

Several lines, history by arrow, search, completion of commands. What was typed is remembered until the
program ends and no longer, unless a file is asked for; that file is its owner's alone. Refuses to know what
lines mean.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from clients.chat.lines import GOES_ON, PROMPT
from clients.chat.safe_text import sendable

OTHERS = stat.S_IRWXG | stat.S_IRWXO


class NoHistory(Exception):
    """The file asked for cannot keep what is typed; the text says why."""


class Keyboard:
    """Reads what a person types.

    Args:
        commands: names that Tab completes.
        history_file: keeps what is typed beyond the end of the program; None: nothing is written.
        is_plain: the terminal wants no styles.
        keys, output: prompt-toolkit's ends, the terminal's own by default.
    """

    def __init__(
        self,
        commands: Sequence[str],
        history_file: str | None = None,
        is_plain: bool = False,
        keys: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("" if is_plain else "bold", PROMPT)]),
            multiline=True,
            prompt_continuation=" " * len(PROMPT),
            key_bindings=_bindings(),
            history=InMemoryHistory() if history_file is None else _history(history_file),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_suspend=True,
            input=keys,
            output=output or _output(),
        )

    def read(self) -> str:
        """What was typed. EOFError at a Ctrl-D, KeyboardInterrupt at a Ctrl-C."""
        return self._session.prompt()


def _output() -> Output:
    output = create_output(sys.stdout)
    if isinstance(output, Vt100_Output):
        # a terminal asked where its cursor is may answer into the next line typed, or not at all
        output.enable_cpr = False
    return output


class _PrivateHistory(FileHistory):
    """A file of lines; what UTF-8 cannot carry, as pasted bytes, must not end the program."""

    def store_string(self, string: str) -> None:
        super().store_string(sendable(string))


def _history(path: str) -> History:
    """The file, made for its owner alone; NoHistory when others may read it or it is none."""
    place = Path(path).expanduser()
    try:
        file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        mode = os.fstat(file).st_mode
        os.close(file)
    except (OSError, ValueError) as error:
        raise NoHistory(f"{path}: cannot keep a history: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(mode):
        raise NoHistory(f"{path}: cannot keep a history: not a file")
    if mode & OTHERS:
        raise NoHistory(f"{path}: others may read it (mode {stat.S_IMODE(mode):o}): chmod 600 it")
    return _PrivateHistory(str(place))


def _bindings() -> KeyBindings:
    """Enter sends, Alt-Enter begins a line. A line feed is Enter too: so comes what was typed during a reply,
    and prompt-toolkit sees to that.
    """
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not searching the history

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith(GOES_ON):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("escape", "c-j", filter=typing)
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys
