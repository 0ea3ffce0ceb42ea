"""The command: settings → model → app → uvicorn. Owns the socket, the log and the signals.

    $ python -m server --checkpoint checkpoints/causette --port 8000

SIGTERM or SIGINT: no new connections, open replies finish for up to --drain-timeout seconds, what is left
then ends with an error frame; exit 0. A second signal, or one while loading, exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import logging.config
import math
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from llm.errors import CauserieError
from llm.text import TextModel
from server.app import create_app
from server.registry import Registry
from server.settings import ENV_PREFIX, PROG, Settings, SettingsError, load_settings
from server.startup import curl_line, is_loopback, load, open_door_lines, prompt_lines, server_url

log = logging.getLogger("causerie.server")

MAX_HEADER_BYTES = 16 << 10
BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM)
IDLE_SECONDS = 65
"""An idle connection is kept a little longer than the 60 s after which proxies drop theirs."""
LAST_RESORT_SECONDS = 5
"""After the drain and its error frames, a connection that still does not close is cancelled."""


class DrainingServer(uvicorn.Server):
    """uvicorn with our signals: it would raise them again at the end, and wait for streams for ever."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_timeout: float) -> None:
        super().__init__(config)
        self.registry = registry
        self.drain_timeout = drain_timeout

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # asked twice: threads and sockets are left to the kernel
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cut = asyncio.create_task(self._cut_open_replies())
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    async def _cut_open_replies(self) -> None:
        await asyncio.sleep(self.drain_timeout)
        log.warning("still open after %g s: replies end with an error now", self.drain_timeout)
        await self.registry.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; exit status 0 after a drain, 1 with nothing to serve, 2 for a bad option."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        settings = load_settings(argv)
    except SettingsError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    logging.config.dictConfig(log_config(settings.uvicorn_log_level))
    _warn(settings, argv)
    try:
        return _serve(settings)
    except (CauserieError, OSError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _serve(settings: Settings) -> int:
    with sigterm_exits_at_once(), listen_on(settings.host, settings.port) as listener:
        loaded = load(settings)
        url = server_url(settings.host, listener.getsockname()[1])
        for one in loaded:
            log.info("%s, %s", one.summary, url)
            for line in prompt_lines(one.model) if settings.show_prompt else ():
                print(line, flush=True)
        log.info("try: %s", curl_line(url, with_key=bool(settings.api_key)))
        return run(settings, [one.model for one in loaded], listener)


def run(settings: Settings, models: Sequence[TextModel], listener: socket.socket) -> int:
    """Serve loaded models on a bound socket until a signal. Returns the exit status."""
    app = create_app(settings, models)
    config = uvicorn.Config(
        app,
        http="h11",  # the only one that caps headers
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=settings.uvicorn_log_level,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout + LAST_RESORT_SECONDS),
    )
    server = DrainingServer(config, app.state.registry, settings.drain_timeout)
    begin_listening(listener)
    server.run(sockets=[listener])
    return 0 if server.started else 1


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


def log_config(level: str) -> dict[str, Any]:
    """uvicorn's logging, with our loggers in the same format on the same stream."""
    config = copy.deepcopy(LOGGING_CONFIG)
    ours = {"handlers": ["default"], "level": logging.INFO, "propagate": False}
    config["loggers"] |= {"causerie": ours, "llm": ours}
    for name in ("uvicorn", "uvicorn.access"):
        config["loggers"][name]["level"] = level.upper() if level != "trace" else 5
    return config


def _warn(settings: Settings, argv: Sequence[str]) -> None:
    """What an operator should know before the first request."""
    if any(arg.partition("=")[0] == "--api-key" for arg in argv):
        log.warning("--api-key shows in the process list; CAUSERIE_API_KEY or --config does not")
    if not is_loopback(settings.host) and not settings.api_key:
        for line in open_door_lines(settings.host):
            log.warning(line)
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(set(filter(lambda n: n.startswith(ENV_PREFIX), os.environ)) - known):
        log.warning("the environment variable %s is not an option of this server", name)


if __name__ == "__main__":
    sys.exit(main())
