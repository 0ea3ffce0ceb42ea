"""A headless Chromium: found, or installed where that is possible, started, and ended whatever happens.

Refuses to know what is done in it: `Chromium.devtools` is the door.

    >>> with Chromium(find_chromium()) as chromium:
    ...     chromium.devtools.call("Browser.getVersion")
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.browser.devtools import DevTools, DevToolsError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALL = (
    ("apt-get", "update", "--quiet"),
    ("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"),
)
INSTALL_SECONDS = 300
"""Of each step; about 15 s where the packages can be had."""
END_SECONDS = 10.0
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # 64 MB in a container, and a tab that fills it crashes
    "--disable-sync",
    "--disable-features=Translate,MediaRouter",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--password-store=basic",
    "about:blank",
)


class NoChromium(Exception):
    """Why there is none."""


def find_chromium() -> str:
    """Where it is; on Debian, as root, it is installed first.

    Raises:
        NoChromium: there is none and none can be installed.
    """
    if (found := _on_path()) is not None:
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoChromium("no Chromium on the PATH, and only root on Debian can install one")
    for step in INSTALL:
        try:
            done = subprocess.run(
                step,
                capture_output=True,
                encoding="utf-8",
                timeout=INSTALL_SECONDS,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        except subprocess.TimeoutExpired:
            raise NoChromium(f"{' '.join(step)}: not done after {INSTALL_SECONDS} s") from None
        if done.returncode != 0:
            said = (done.stderr.strip() or "it said nothing").splitlines()[-1][:200]
            raise NoChromium(f"{' '.join(step)}: {said}")
    if (found := _on_path()) is None:
        raise NoChromium("apt-get installed chromium, and it is not on the PATH")
    return found


def _on_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One browser process with an empty profile, as a context manager.

    Raises:
        NoChromium: on entering, when it ends at once, as it does where it may not make its sandbox.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._pid = 0

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        flags = [*FLAGS, f"--user-data-dir={self._profile.name}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to start as root with it
        theirs, writing = _high_pipe()
        reading, theirs_too = _high_pipe()
        log = str(Path(self._profile.name) / "log")
        self._pid = os.posix_spawn(
            self._program,
            [self._program, *flags],
            {**os.environ, "HOME": self._profile.name},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, theirs, 3),
                (os.POSIX_SPAWN_DUP2, theirs_too, 4),
            ],
            setpgroup=0,  # so that all of it can be ended
        )
        os.close(theirs)
        os.close(theirs_too)
        self.devtools = DevTools(reading, writing)
        try:
            self.version = str(self.devtools.call("Browser.getVersion")["product"])
        except DevToolsError as error:
            said = " ".join(Path(log).read_text(errors="replace").split())[-400:]
            self.__exit__()
            raise NoChromium(f"{self._program} ended at once: {said}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(DevToolsError, TimeoutError):
            self.devtools.start("Browser.close").result(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self.devtools.close()
        self._profile.cleanup()


def _high_pipe() -> tuple[int, int]:
    """A pipe's ends to read and to write, away from 3 and 4, which are the browser's names for its own."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]
