"""Servers to be measured: those that run somewhere, and those started here and stopped afterwards.

    >>> with started(["--checkpoint", "checkpoints/causette"], api_key=None) as place:
    ...     place.url, place.start_seconds

A start counts until the first token, as that is what a user waits for. Refuses to know loads.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clients.bench.target import Place
from clients.child import SERVER, ChildServer
from clients.client import Client
from clients.wire import KEY_VARIABLE, ApiError, ClientError

UNAUTHORISED = (401, 403)
PEER_START_SECONDS = 900.0
"""vLLM compiles its kernels at the first start, which took two cores four minutes."""


@contextmanager
def started(arguments: Sequence[str], api_key: str | None, model: str | None = None) -> Iterator[Place]:
    """A Causerie of one's own."""
    key = {} if api_key is None else {KEY_VARIABLE: api_key}
    with _running(ChildServer(arguments, command=SERVER, environment=key), api_key, model) as place:
        yield place


@contextmanager
def started_peer(command: str, api_key: str | None, model: str | None = None) -> Iterator[Place]:
    """Another server, by a command that takes `--host` and `--port` at its end."""
    own = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}  # our checkout has a folder `server`: it may, too
    server = ChildServer(
        command=shlex.split(command),
        environment=own,
        start_seconds=PEER_START_SECONDS,
        ready=_lists_models,
    )
    with _running(server, api_key, model) as place:
        yield place


@contextmanager
def _running(server: ChildServer, api_key: str | None, model: str | None) -> Iterator[Place]:
    start = time.perf_counter()
    with server, Client(server.url, api_key) as client:
        name = model or next((str(found["id"]) for found in client.models()), None)
        hello = [{"role": "user", "content": "hello"}]
        for _ in client.stream(hello, model=name, max_tokens=1):
            pass
        seconds = time.perf_counter() - start
        yield Place(server.url, api_key, model, server.pid, seconds)


def _lists_models(client: Client, pid: int) -> bool:
    """Whether it answers as those do that have no /health like ours; asking for a key is an answer, too."""
    try:
        client.models()
    except ApiError as error:
        return error.status in UNAUTHORISED
    except ClientError:
        return False
    return True
