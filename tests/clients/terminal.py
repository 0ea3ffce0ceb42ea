"""A program on a terminal of its own: what a person types and sees, through a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 30.0
"""Only a program that hangs waits this long."""

# The slave becomes the controlling terminal of the new session, so that ^C there is a SIGINT here.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Run `python -m MODULE …` and talk to it."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.seen = ""  # everything written so far
        self._at = 0  # where the next `expect` looks
        self._master, slave = pty.openpty()
        command: Sequence[str] = [sys.executable, "-c", _TAKE_TERMINAL, sys.executable, "-m", *arguments]
        environment = {**os.environ, "TERM": "xterm", **(env or {})}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        with contextlib.suppress(OSError):  # EIO: the program has ended
            os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until `text` is written after what was expected before; what came in between."""
        deadline = time.monotonic() + HANG_SECONDS
        while (found := self.seen.find(text, self._at)) < 0:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} never came after {self.seen[self._at :]!r}"
            assert (data := self._read()), f"it ended without {text!r} after {self.seen[self._at :]!r}"
            self.seen += data
        between, self._at = self.seen[self._at : found], found + len(text)
        return between

    @property
    def is_raw(self) -> bool:
        """Whether lines are neither echoed nor gathered, as while an editor has the terminal."""
        local = termios.tcgetattr(self._master)[3]
        return not local & (termios.ECHO | termios.ICANON)

    def end(self) -> int:
        """Wait for the program's end; its exit status."""
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"it never ended after {self.seen[self._at :]!r}"
            if not (data := self._read()):
                break
            self.seen += data
        return self.process.wait(HANG_SECONDS)

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # EIO: the program's side is closed
            return ""
