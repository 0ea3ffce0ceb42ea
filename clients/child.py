"""A server of one's own: started as a child process, waited for, and stopped whatever happens.

Refuses to know what the server is made of: it is a command that takes `--host` and `--port` and answers
GET /health, or whatever `ready` asks. The child has a session of its own, so a Ctrl-C at the terminal reaches
the program that talks to the server and not the server. Only a SIGKILL of this process leaves it behind.

    >>> with ChildServer(["--checkpoint", "checkpoints/causette"]) as server:
    ...     Client(server.url).models()
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from clients.client import Client
from clients.unwinding import unwound_by_signals
from clients.wire import ClientError

SERVER = (sys.executable, "-m", "server")
START_SECONDS = 300.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
LOG_LINES, LOG_BYTES = 20, 1 << 16


class ServerDied(ClientError):
    """The child ended, or was not ready in time; the message carries the last lines it wrote."""


class ChildServer:
    """One server process on a port of this machine, as a context manager.

    Args:
        arguments: the server's own, after `--host` and `--port`.
        command: what starts it.
        port: where it listens; a free one by default.
        environment: variables added to ours; keys go here, never into `arguments`, which everyone can list.
        start_seconds: how long it may take until it is ready.
        ready: whether the server answers as one that can be used, given a client and the child's process id.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        command: Sequence[str] = SERVER,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = START_SECONDS,
        ready: Callable[[Client, int], bool] | None = None,
    ) -> None:
        self.port = _free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [*command, "--host", "127.0.0.1", "--port", str(self.port), *arguments]
        self._environment = {**os.environ, "PYTHONPATH": _python_path(), **(environment or {})}
        self._start_seconds = start_seconds
        self._is_ready = _answers_health if ready is None else ready
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # not a pipe: nobody reads while the server writes
        self._unwinding = unwound_by_signals()  # SIGTERM and SIGHUP end the child too

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            ServerDied: it ended first, or `start_seconds` passed.
        """
        assert self._process is None, "started twice"
        self._unwinding.__enter__()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
            self._wait_until_ready(self._process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ask it to end; kill it and what it started after STOP_SECONDS, or at a second Ctrl-C."""
        try:
            if self._process is not None:
                _stop(self._process)
        finally:
            self._log.close()
            self._unwinding.__exit__(None, None, None)

    def last_lines(self, count: int = LOG_LINES) -> str:
        """The end of what the server wrote."""
        # pread: the child writes at the offset it shares with us, so we must not move it
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), LOG_BYTES, max(0, size - LOG_BYTES))
        return "\n".join(tail.decode("utf-8", errors="replace").splitlines()[-count:])

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_seconds
        with Client(self.url, timeout=5.0) as client:
            while not self._is_ready(client, process.pid):
                if (code := process.poll()) is not None:
                    raise ServerDied(self._obituary(f"ended with code {code} before it was ready"))
                if time.monotonic() > deadline:
                    raise ServerDied(self._obituary(f"was not ready after {self._start_seconds:.0f} s"))
                time.sleep(POLL_SECONDS)

    def _obituary(self, what: str) -> str:
        lines = self.last_lines() or "(it wrote nothing)"
        return f"the server {what}; it was started by\n  {' '.join(self._command)}\nand last wrote\n{lines}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # it leads its own group
            process.wait()


def _answers_health(client: Client, pid: int) -> bool:
    """Whether the server answers, and is the child and not a stranger who took the port first."""
    try:
        return bool(client.health().get("pid", pid) == pid)
    except ClientError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _python_path() -> str:
    """Ours with the checkout in front, so that `-m server` is found from any folder."""
    checkout = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))
