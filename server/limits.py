"""Who may come in: as many replies as run and wait, as many requests as a key may have, and nobody while the
server is not open.

A place is a reply that runs or waits; a request takes one for each of its choices and prompts. When all are
taken the answer is 429 with the time in which the line would be served at the rate of the last minute. All
of it happens on the event loop, so the counts are exact. Refuses to know what a request says.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.text import TextModel
from server.errors import RETRY_SECONDS, ApiError, error_response, shown
from server.keys import Key, Rate, key_of
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.settings import Settings
from server.ticket import Ticket

WORK = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/score"})
"""Routes that take places; they refuse before they read a body."""
WAITING_PER_RUNNING = 4
"""Replies that may wait for each that may run, when the operator does not say."""
MAX_RETRY_SECONDS = 120
"""OpenAI's SDKs wait no longer than this, whatever they are told."""
RATE_SECONDS = 60.0
RATE_ENDS = 256
"""The service rate is that of the last ends within a minute: at most so many."""

Clock = Callable[[], float]


class Places:
    """The places of one model.

    Args:
        num_running: replies that can run together.
        num_waiting: replies that may wait.
    """

    def __init__(self, num_running: int, num_waiting: int, clock: Clock = time.monotonic) -> None:
        self.num_running = num_running
        self.num_places = num_running + num_waiting
        self.num_taken = 0
        self._ends: deque[float] = deque(maxlen=RATE_ENDS)
        self._clock = clock

    @property
    def is_full(self) -> bool:
        return self.num_taken >= self.num_places

    def take(self, num: int) -> bool:
        """Take places, all or none. One request may be larger than the house, when it has it for itself."""
        if self.num_taken and self.num_taken + num > self.num_places:
            return False
        self.num_taken += num
        return True

    def give_back(self, num: int, *, served: bool) -> None:
        """Replies ended; those that were not made say nothing of the rate."""
        self.num_taken -= num
        if served:
            self._ends.extend([self._clock()] * num)
        assert self.num_taken >= 0, self.num_taken

    def retry_after(self) -> int:
        """Whole seconds in which those who wait now will have been served, at the measured rate."""
        now = self._clock()
        recent = [end for end in self._ends if now - end <= RATE_SECONDS]
        if len(recent) < 2 or recent[0] == now:
            return RETRY_SECONDS
        rate = len(recent) / (now - recent[0])
        num_waiting = max(1, self.num_taken - self.num_running)
        return min(max(1, math.ceil(num_waiting / rate)), MAX_RETRY_SECONDS)


class _Account:
    """What a key has under way."""

    def __init__(self, key: Key) -> None:
        self.rate = Rate(key.requests_per_minute) if key.requests_per_minute is not None else None
        self.num_open = 0


class Limits:
    """Hands out tickets, and counts who is inside."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._places: dict[str, Places] = {}
        self._accounts: dict[str, _Account] = {}
        self.num_inside = 0
        """Requests that were let in and are not answered yet, whatever they ask for."""

    def open_model(self, model: TextModel) -> None:
        """Make room for a model's requests, its adapters' included."""
        running = self._settings.max_num_seqs * len(model.stats())
        waiting = self._settings.max_num_queued_seqs
        if waiting is None:
            waiting = WAITING_PER_RUNNING * running
        self._places[model.name] = Places(running, waiting)

    def check(self, key: Key | None) -> None:
        """Before a request's body is read, so that a refusal costs nothing.

        Raises:
            ApiError: 429 when no model has a place, or the key may not ask so often.
        """
        places = list(self._places.values())
        if places and all(one.is_full for one in places):
            raise self._full(min(places, key=Places.retry_after))
        if key is None:
            return
        account = self._account(key)
        self._check_concurrency(key, account)
        wait = account.rate.take() if account.rate is not None else 0.0
        if wait > 0:
            message = f"the key {key.name} may ask {key.requests_per_minute} times a minute"
            raise self._refusal("rate_limit", message, math.ceil(wait), code="rate_limit_exceeded")

    def admit(self, request: Request, model: TextModel, num_places: int) -> Ticket:
        """A ticket for a request that is understood; it ends with the request, and until then the model's
        adapter stays where it is.

        Raises:
            ApiError: 429; 404 when the adapter has been unloaded meanwhile.
        """
        if model.adapter.is_retired:
            message = f"the model {shown(model.name)} does not exist any more"
            raise ApiError(404, message, code="model_not_found", param="model")
        key = key_of(request.scope)
        account = None if key is None else self._account(key)
        if key is not None and account is not None:
            self._check_concurrency(key, account)
        places = self._places[model.base]
        if not places.take(num_places):
            raise self._full(places)

        def leave() -> None:
            model.adapter.let_go()
            if account is not None:
                account.num_open -= 1

        ticket = Ticket(
            model=model.name,
            key="" if key is None else key.name,
            num_places=num_places,
            decode=model.tokenizer.decode,
            settings=self._settings,
            metrics=self._metrics,
            give_back=places.give_back,
            leave=leave,
        )
        model.adapter.hold()
        if account is not None:
            account.num_open += 1
        request.scope["state"]["ticket"] = ticket
        return ticket

    def _account(self, key: Key) -> _Account:
        return self._accounts.setdefault(key.name, _Account(key))

    def _check_concurrency(self, key: Key, account: _Account) -> None:
        if key.max_concurrent is not None and account.num_open >= key.max_concurrent:
            message = f"the key {key.name} may have {key.max_concurrent} requests open at a time"
            raise self._refusal("concurrency_limit", message, 1, code="concurrency_limit_exceeded")

    def _full(self, places: Places) -> ApiError:
        message = f"the server is full: {places.num_taken} of {places.num_places} replies run or wait"
        return self._refusal("queue_full", message, places.retry_after(), code="queue_full")

    def _refusal(self, reason: str, message: str, retry_after: int, *, code: str) -> ApiError:
        self._metrics.rejected(reason)
        return ApiError(429, message, code=code, headers={"retry-after": str(retry_after)})


class Gate:
    """The layer in front of the routes: closed while the server is, and the end of every ticket."""

    def __init__(self, app: ASGIApp, life: Lifecycle, limits: Limits, metrics: Metrics) -> None:
        self.app = app
        self.life = life
        self.limits = limits
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_work = scope["method"] == "POST" and scope["path"] in WORK
        if self.life.is_draining:
            send = _closing(send)
        try:
            self.life.check(scope["path"], is_work=is_work)
            if is_work:
                self.limits.check(key_of(scope))
        except ApiError as error:
            if error.status == 503:
                self.metrics.rejected(self.life.phase.value)
            await error_response(error)(scope, receive, send)
            return
        self.limits.num_inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.limits.num_inside -= 1
            ticket = scope["state"].get("ticket")
            if ticket is not None:
                ticket.close()


def _closing(send: Send) -> Send:
    """Tell clients to ask elsewhere next time."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return send_and_close


def limits_of(request: Request) -> Limits:
    """The limits of the app that got this request."""
    limits = request.app.state.limits
    assert isinstance(limits, Limits)
    return limits
