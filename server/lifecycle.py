"""What the server is doing with its life: loading, warming up, ready, draining, or dead.

It loads the models, draws a first token on every engine, watches that the engines live, and closes them:
gently when it is asked to, at once when one has died. Refuses to know sockets and signals.

    loading → warming → ready → draining → over
       └─────────┴────────┴────────┴→ dead → over
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial

from starlette.requests import Request

from llm.engine import EngineStats
from llm.errors import EngineError
from llm.text import TextModel
from server.errors import RETRY_SECONDS, ApiError
from server.registry import Registry

log = logging.getLogger("causerie.server")

POLL_SECONDS = 0.1
STOP_SECONDS = 0.5
"""For an engine to end a step that is under way; one that does not is left behind."""
GOODBYE_SECONDS = 1.0
"""For open requests to be told that they end."""
ALWAYS_OPEN = frozenset({"/live", "/ready", "/health", "/version", "/metrics", "/openapi.json"})
"""Paths that answer in every phase."""

LoadModels = Callable[[], Sequence[TextModel]]


class Phase(StrEnum):
    """Where a server is in its life."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


_CLOSED = {
    Phase.LOADING: partial(ApiError, 503, "the model is being loaded", code="model_loading"),
    Phase.DRAINING: partial(ApiError, 503, "the server is stopping: no new work", code="server_draining"),
    Phase.DEAD: partial(ApiError, 503, "the server's engine is gone", code="engine_stopped"),
}


class Lifecycle:
    """One per app.

    Args:
        registry: the models; empty until they are loaded.
        stall_timeout: seconds without a step, while there is work, after which an engine counts as stalled.
    """

    def __init__(self, registry: Registry, stall_timeout: float) -> None:
        self.registry = registry
        self.stall_timeout = stall_timeout
        self.phase = Phase.WARMING if registry.models else Phase.LOADING
        self.failure: BaseException | None = None
        self._asked_to_stop = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._has_stopped: bool | None = None

    @property
    def is_draining(self) -> bool:
        return self.phase is Phase.DRAINING

    def check(self, path: str, *, is_work: bool) -> None:
        """Whether a path may be asked now.

        Raises:
            ApiError: 503 with the time after which to ask again.
        """
        if self.phase not in _CLOSED or path in ALWAYS_OPEN or (self.is_draining and not is_work):
            return
        raise _CLOSED[self.phase](headers={"retry-after": str(RETRY_SECONDS)})

    def engines(self) -> Iterator[tuple[str, EngineStats]]:
        """Each engine as it is now, with its model's name."""
        return ((model.name, stats) for model in self.registry.models for stats in model.stats())

    def condition(self, engine: EngineStats) -> str:
        """ok, dead (its thread is gone) or stalled (work, and no step for too long)."""
        if not engine.alive:
            return "dead"
        return "stalled" if engine.stalled(self.stall_timeout) else "ok"

    def liveness(self) -> str:
        """ok, or what is wrong: dead, stalled. While there are no engines yet, nothing is."""
        if self.phase is Phase.DEAD:
            return "dead"
        conditions = {self.condition(engine) for _, engine in self.engines()}
        return "dead" if "dead" in conditions else "stalled" if "stalled" in conditions else "ok"

    def readiness(self) -> str:
        """ready, or why not."""
        if self.phase is not Phase.READY:
            return self.phase.value
        alive = self.liveness()
        return "ready" if alive == "ok" else alive

    def begin(self, load: LoadModels | None, opened: Callable[[TextModel], None]) -> None:
        """Live on the running event loop.

        Args:
            load: makes the models, in a thread; None when the registry has them.
            opened: told of each model that was loaded.
        """
        if load is None:
            self.registry.start()
        self._task = asyncio.create_task(self._live(load, opened))

    async def until_ready(self) -> bool:
        """Until the first token is drawn. False when that failed, and `failure` says why, or when the end has
        been asked for meanwhile.
        """
        await self._settled.wait()
        return self.phase is Phase.READY

    async def close(self, timeout: float | None = None) -> bool:
        """Stop the engines; open replies end with an error. False when one did not stop in time; it is not
        waited for a second time.
        """
        if self._has_stopped is None:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            self._has_stopped = await self.registry.close(timeout)
        return self._has_stopped

    def ask_to_stop(self) -> None:
        """No new work from now on; `until_over` returns when what there is has ended."""
        if self.phase is not Phase.DEAD:
            self.phase = Phase.DRAINING
        self._asked_to_stop.set()

    async def until_over(self, drain_timeout: float, num_open: Callable[[], int]) -> bool:
        """Until somebody asks for the end, or an engine dies; then until every request has had its answer.

        Args:
            drain_timeout: seconds that open requests may still take.
            num_open: how many there are.

        Returns:
            Whether every engine stopped; if not, a thread is left behind.
        """
        await self._asked_to_stop.wait()
        if self.phase is Phase.DRAINING:
            log.info("stopping: %d open requests may take %g s", num_open(), drain_timeout)
            await _until(lambda: not num_open() or self.phase is Phase.DEAD, drain_timeout)
            if num_open():
                log.warning("%d requests still open: they end with an error now", num_open())
        stopped = await self.close(STOP_SECONDS)
        await _until(lambda: not num_open(), GOODBYE_SECONDS)
        return stopped

    async def _live(self, load: LoadModels | None, opened: Callable[[TextModel], None]) -> None:
        try:
            if load is not None:
                self.registry.add(await asyncio.to_thread(load))
                self.registry.start()
                for model in self.registry.models:
                    opened(model)
                if self.phase is Phase.LOADING:
                    self.phase = Phase.WARMING
            for model in self.registry.models:
                await model.warm_up()
            if self.phase is Phase.WARMING:
                self.phase = Phase.READY
            self._settled.set()
            while all(engine.alive for _, engine in self.engines()):
                await asyncio.sleep(POLL_SECONDS)
            raise EngineError("an engine's thread has ended")
        except Exception as error:
            self._die(error)

    def _die(self, error: Exception) -> None:
        self.failure = error
        self.phase = Phase.DEAD
        self._settled.set()
        self._asked_to_stop.set()


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Until it holds, or the time is over."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)


def lifecycle_of(request: Request) -> Lifecycle:
    """The lifecycle of the app that got this request."""
    life = request.app.state.lifecycle
    assert isinstance(life, Lifecycle)
    return life
