"""One admitted request, from its admission to its last byte: its places, its terms, and what became of it.

It tells the metrics what happens while it happens, and gives its places back as its replies end: a reply that
is complete but not yet read takes nobody's place. Refuses to know HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from llm.choice import TextDelta
from llm.errors import QueueTimeout, ReaderTooSlow, RequestError
from llm.sequence import Sequence as TokenSequence
from llm.terms import Terms
from server.metrics import Metrics
from server.settings import Settings


class GiveBack(Protocol):
    """Takes places back."""

    def __call__(self, num: int, *, served: bool) -> None:
        """So many, whose replies were made or were not."""


class Ticket:
    """Permission to use the model, and the account of its use.

    Args:
        model: its name.
        key: the name of the key it came in with, "" without.
        num_places: replies it may have.
        decode: ids → text, for the log.
        settings: how long it may wait and take.
        metrics: told what happens.
        give_back: called with places no longer needed, and whether their replies were made.
        leave: called at the end.
    """

    def __init__(
        self,
        *,
        model: str,
        key: str,
        num_places: int,
        decode: Callable[[list[int]], str],
        settings: Settings,
        metrics: Metrics,
        give_back: GiveBack,
        leave: Callable[[], None],
    ) -> None:
        self.model = model
        self.key = key
        self.decode = decode
        self.arrived_at = time.monotonic()
        self.num_prompt_tokens = 0
        self.num_tokens = 0
        self.queue_seconds: float | None = None
        self.first_token_seconds: float | None = None
        self.finishes: list[str] = []
        self.has_failed = False
        """One of its prompts could not go on: the others end with it, and nobody has left them."""
        self.said: list[tuple[list[int], dict[int, str]]] = []
        """With --log-prompts each prompt, and the text of each of its choices."""
        self.metrics = metrics
        self._settings = settings
        self._num_places = num_places
        self._give_back = give_back
        self._leave = leave
        self._has_terms = False
        self._is_closed = False

    def terms(self, priority: int | None = None, cache_salt: str | None = None) -> Terms:
        """On what one prompt is served. The request waits until its first has had its turn: how long the
        others wait behind that one is its own doing.
        """
        is_first, self._has_terms = not self._has_terms, True
        return Terms(
            client=self.key,
            cache_salt=cache_salt or "",
            priority=priority or 0,
            queue_timeout=self._settings.queue_timeout if is_first else None,
            deadline=self.arrived_at + self._settings.request_timeout,
            observer=_Watch(self),
        )

    def remember(self, prompt: list[int]) -> dict[int, str] | None:
        """A place for what will be said to a prompt, if the log is to have it."""
        if not self._settings.log_prompts:
            return None
        self.said.append((prompt, {}))
        return self.said[-1][1]

    def release(self, num_places: int, *, served: bool) -> None:
        """Replies ended."""
        if num_places:
            self._num_places -= num_places
            self._give_back(num_places, served=served)

    def close(self) -> None:
        """The request is over; harmless when it was."""
        if self._is_closed:
            return
        self._is_closed = True
        self.release(self._num_places, served=False)
        self.metrics.used(self.model, self.key, self.num_prompt_tokens, self.num_tokens)
        self._leave()


class _Watch:
    """Observes the replies to one prompt of a ticket."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._metrics = ticket.metrics
        self._model = ticket.model
        self._sequences: Sequence[TokenSequence] = ()
        self._last: dict[int, float] = {}  # of each choice: when its last token came
        self._num_open = 0
        self._has_started = False
        self._said: dict[int, str] | None = None

    def submitted(self, sequences: Sequence[TokenSequence]) -> None:
        self._sequences = sequences
        self._num_open = len(sequences)
        self._said = self._ticket.remember(sequences[0].prompt)

    def received(self, delta: TextDelta) -> None:
        if not self._has_started:
            self._start()
        if delta.num_tokens:
            self._count(delta.choice, delta.at)
        if self._said is not None:
            self._said[delta.choice] = self._said.get(delta.choice, "") + delta.text
        if delta.finish is not None:
            self._finish(delta.finish.value)

    def ended(self, error: BaseException | None) -> None:
        if not self._has_started and self._sequences and self._sequences[0].started_at is not None:
            self._start()
        was_left = isinstance(error, (asyncio.CancelledError, GeneratorExit))
        if was_left and self._num_open and not self._ticket.has_failed:
            self._metrics.cancelled(self._model, self._phase())
        if isinstance(error, QueueTimeout) and not self._ticket.has_failed:
            self._metrics.rejected("queue_timeout")
        if error is not None and not was_left:
            self._ticket.has_failed = True
        is_ours = not was_left and not isinstance(error, (RequestError, ReaderTooSlow))
        for _ in range(self._num_open):
            self._finish("stop" if error is None else "error" if is_ours else "abort")

    def _start(self) -> None:
        leader, ticket = self._sequences[0], self._ticket
        self._has_started = True
        started = ticket.arrived_at if leader.started_at is None else leader.started_at
        seconds = max(0.0, started - ticket.arrived_at)
        ticket.num_prompt_tokens += len(leader.prompt)
        ticket.queue_seconds = seconds if ticket.queue_seconds is None else ticket.queue_seconds
        self._metrics.started(self._model, len(leader.prompt), seconds)

    def _count(self, choice: int, at: float) -> None:
        ticket, last = self._ticket, self._last.get(choice)
        ticket.num_tokens += 1
        self._last[choice] = at
        if last is not None:
            self._metrics.token(self._model, at - last)
            return
        seconds = max(0.0, at - ticket.arrived_at)
        if ticket.first_token_seconds is None:
            ticket.first_token_seconds = seconds
        self._metrics.first_token(self._model, seconds)

    def _finish(self, reason: str) -> None:
        ticket = self._ticket
        self._num_open -= 1
        ticket.finishes.append(reason)
        self._metrics.ended(self._model, reason, time.monotonic() - ticket.arrived_at)
        ticket.release(1, served=reason in ("stop", "length"))

    def _phase(self) -> str:
        """How far the request had come when its client left."""
        if self._last:
            return "decoding"
        return "prefilling" if self._has_started else "waiting"
