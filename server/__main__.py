"""The command: settings → model → app → uvicorn. Owns the socket, the log and the signals.

    $ python -m server --checkpoint checkpoints/causette --port 8000

SIGTERM or SIGINT: not ready at once and no new work, open replies finish for up to --drain-timeout seconds,
what is left then ends with an error; exit 0. A second signal, or one while loading, exits at once. When an
engine dies, every open reply ends with an error; exit 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from llm.errors import CauserieError
from llm.text import TextModel
from server.app import create_app
from server.connection import connection_class, make_room
from server.lifecycle import Lifecycle, Phase
from server.limits import Limits
from server.logs import configure
from server.settings import ENV_PREFIX, PROG, Settings, SettingsError, load_settings
from server.startup import curl_line, is_loopback, open_door_lines, server_url

log = logging.getLogger("causerie.server")

BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM)
IDLE_SECONDS = 65
"""An idle connection is kept a little longer than the 60 s after which proxies drop theirs."""
LAST_RESORT_SECONDS = 1
"""After the drain and its error frames, a connection that still does not close is cancelled."""


class DrainingServer(uvicorn.Server):
    """uvicorn, but for its signals and its end: it would close its sockets first, and raise the signal again.

    Args:
        settings: what the operator chose.
        app: the application; its lifecycle says when it is over.
        url: for the log.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, app: FastAPI, url: str) -> None:
        super().__init__(config)
        self.settings = settings
        self.life: Lifecycle = app.state.lifecycle
        self.limits: Limits = app.state.limits
        self.url = url
        self.left_behind = False
        self._was_asked = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._was_asked or self.life.phase is Phase.LOADING:
            os._exit(128 + sig)  # threads and sockets are left to the kernel
        self._was_asked = True
        self.life.ask_to_stop()

    async def main_loop(self) -> None:
        """Serve until the lifecycle is over; only then are the sockets closed."""
        others = [asyncio.create_task(super().main_loop()), asyncio.create_task(self._announce())]
        try:
            drain = self.settings.drain_timeout
            self.left_behind = not await self.life.until_over(drain, lambda: self.limits.num_inside)
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _announce(self) -> None:
        if await self.life.until_ready():
            settle()
            with_key = bool(self.settings.api_key or self.settings.api_key_file)
            log.info("ready on %s, try: %s", self.url, curl_line(self.url, with_key=with_key))


def settle() -> None:
    """What was loaded stays. Otherwise the collector looks through all of it now and then, 225,000 objects,
    and for 110 ms no request is read and no engine gets on.
    """
    gc.collect()
    gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; exit status 0 after a drain, 1 with nothing to serve, 2 for a bad option."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        settings = load_settings(argv)
    except SettingsError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    configure(settings.uvicorn_log_level, settings.log_format)
    _warn(settings, argv)
    try:
        return _serve(settings)
    except SettingsError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _serve(settings: Settings) -> int:
    with sigterm_exits_at_once(), listen_on(settings.host, settings.port) as listener:
        return run(settings, None, listener)


def run(settings: Settings, models: Sequence[TextModel] | None, listener: socket.socket) -> int:
    """Serve on a bound socket until a signal or the end of an engine. Returns the exit status.

    Args:
        models: what to serve; None loads what settings name, while /live answers already.

    Raises:
        SettingsError: keys or origins that cannot be used.
    """
    app = create_app(settings, models)
    config = uvicorn.Config(
        app,
        http=connection_class(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=settings.uvicorn_log_level,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LAST_RESORT_SECONDS,
    )
    url = server_url(settings.host, listener.getsockname()[1])
    server = DrainingServer(config, settings, app, url)
    begin_listening(listener)
    make_room(settings.max_connections)
    server.run(sockets=[listener])
    failure = server.life.failure
    if isinstance(failure, CauserieError):
        print(f"{PROG}: error: {failure}", file=sys.stderr, flush=True)
    elif failure is not None:
        log.critical("the server could not go on", exc_info=failure)
    status = 0 if server.started and failure is None else 1
    if server.left_behind:
        logging.shutdown()
        os._exit(status)  # a thread that computes for ever must not hold the process
    return status


def listen_on(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a port in use is noticed before the weights are read.

    Raises:
        OSError: the address cannot be used; the message names it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"--host {host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    listener.set_inheritable(False)
    return listener


def begin_listening(listener: socket.socket) -> None:
    """From here on clients wait in line. Two servers can bind one port, not listen on it.

    Raises:
        OSError: another server was faster; the message names the port.
    """
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from None


@contextlib.contextmanager
def sigterm_exits_at_once() -> Generator[None, None, None]:
    """While loading. A container's first process has no default action: without a handler nothing happens."""
    before = signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _warn(settings: Settings, argv: Sequence[str]) -> None:
    """What an operator should know before the first request."""
    if any(arg.partition("=")[0] == "--api-key" for arg in argv):
        log.warning(
            "--api-key shows in the process list; CAUSERIE_API_KEY, --api-key-file or --config does not"
        )
    if not is_loopback(settings.host) and not settings.api_key and settings.api_key_file is None:
        for line in open_door_lines(settings.host):
            log.warning(line)
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(set(filter(lambda n: n.startswith(ENV_PREFIX), os.environ)) - known):
        log.warning("the environment variable %s is not an option of this server", name)


if __name__ == "__main__":
    sys.exit(main())
