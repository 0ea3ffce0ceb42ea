"""Causerie on a Ray cluster: replicas that are each the whole application, in a process of its own.

    $ serve run deploy.ray_serve:build_app checkpoint=causette

Every option of `causerie serve` is an argument here, but those of sockets: Ray's proxies hold them. How many
replicas on what hardware is the Serve config's to say (`deploy/ray_serve.yaml`). Whether one is ready and
alive it is asked over its own routes. Refuses to know models, schedulers and where a request goes
(`deploy/ray_routing.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.app import create_app
from server.lifecycle import Lifecycle
from server.limits import WAITING_PER_RUNNING
from server.logs import configure
from server.settings import Settings, SettingsError, load_settings

log = logging.getLogger("causerie.server")

SOCKETS = frozenset(
    {"host", "port", "header_timeout", "body_timeout", "max_connections", "send_timeout", "config"}
)
"""Options that cannot be arguments: the sockets are Ray's, and the arguments are the config file already."""
REPLICA_HEADER = b"x-replica"
BESIDES_REPLIES = 32
"""Requests that a replica takes in beyond its places: they hear 429 from it, or need no place."""
SHUTDOWN_SECONDS = 10
"""For a replica to end after its last reply."""
START_SECONDS = 1800
"""For weights to be read: what takes longer hangs."""
POLL_SECONDS = 0.1


def build_app(args: dict[str, Any]) -> Application:
    """What `serve run`, or `import_path` of a Serve config, builds.

    Args:
        args: options as in the YAML file of `causerie serve --config`.

    Raises:
        SettingsError: an option that cannot be used; in one line.
    """
    argv = arguments(args)
    settings = load_settings(argv)
    if not settings.api_key and settings.api_key_file is None:
        log.warning("no key is set: whoever can reach Ray's proxies can use the model")
    return serve.deployment(
        name="Causerie",
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=most_requests(settings),
        graceful_shutdown_timeout_s=settings.drain_timeout + SHUTDOWN_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        request_router_config={"request_router_class": "deploy.ray_routing:ConversationRouter"},
    )(Replica).bind(argv)


def arguments(args: Mapping[str, Any]) -> list[str]:
    """Command line of these options.

    Raises:
        SettingsError: one of them is not to be set here.
    """
    argv: list[str] = []
    for key, value in args.items():
        name = key.replace("_", "-")
        if key.replace("-", "_") in SOCKETS:
            raise SettingsError(
                f"{key}: not an argument on Ray, whose proxies hold the sockets: http_options"
            )
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        else:
            argv += [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    return argv


def most_requests(settings: Settings) -> int:
    """Requests in a replica beyond which Ray looks for another one, or lets them wait in its proxies."""
    queued = settings.max_num_queued_seqs
    waiting = WAITING_PER_RUNNING * settings.max_num_seqs if queued is None else queued
    return settings.max_num_seqs + waiting + BESIDES_REPLIES


@serve.ingress()
class Replica:
    """The application under Ray. Its lifespan is run by Ray, which asks for its health ever after."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._is_ready = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray in the replica's process, after the constructor."""
        settings = load_settings([*self._argv, "--host=0.0.0.0"])  # who can reach the proxies is not known
        if settings.threads is None:
            given = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
            settings = settings.model_copy(update={"threads": max(1, math.floor(given.get("CPU", 1)))})
        configure(settings.uvicorn_log_level, settings.log_format)
        app = create_app(settings)
        app.add_middleware(NamedReplica, name=serve.get_replica_context().replica_id.unique_id)
        self._life: Lifecycle = app.state.lifecycle
        self._itself = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        return app

    async def check_health(self) -> None:
        """Raise what is wrong. The first answer is the one after which Ray sends requests: it waits for them.

        Raises:
            RuntimeError: an engine is dead or stalled, or the model cannot be loaded; Ray starts another one.
        """
        async with asyncio.timeout(START_SECONDS):
            await self._check("/live")
            while not self._is_ready:
                answer = await self._itself.get("/ready")
                self._is_ready = answer.is_success
                await asyncio.sleep(0 if self._is_ready else POLL_SECONDS)
                await self._check("/live")

    async def _check(self, path: str) -> None:
        answer = await self._itself.get(path)
        if not answer.is_success:
            reason = self._life.failure or answer.text
            raise RuntimeError(f"{path} of this replica answers {answer.status_code}: {reason}")


class NamedReplica:
    """Says in `x-replica` who answered. Drops our `x-request-id` where the proxy will add the same."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self.name = name.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = {pair for pair in scope.get("headers", ()) if pair[0] == b"x-request-id"}

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", ()) if tuple(pair) not in asked]
                message = {**message, "headers": [*kept, (REPLICA_HEADER, self.name)]}
            await send(message)

        await self.app(scope, receive, send_named)
