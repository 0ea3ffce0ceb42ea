"""On what terms a request is served: whose it is, how urgent, how long it may take, and who is told about it.

Refuses to know HTTP; `None` is no limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from llm.choice import TextDelta
from llm.errors import DeadlinePassed, EngineError, QueueTimeout
from llm.mailbox import Mailbox
from llm.sequence import Sequence as TokenSequence


class Observer(Protocol):
    """Told, on the event loop, what becomes of one prompt. `submitted` and `ended` come once each."""

    def submitted(self, sequences: Sequence[TokenSequence]) -> None:
        """Its replies go to an engine; what they say of themselves changes under way."""

    def received(self, delta: TextDelta) -> None:
        """A reply went on."""

    def ended(self, error: BaseException | None) -> None:
        """None when every reply is complete, else why not; CancelledError or GeneratorExit when whoever asked
        has left.
        """


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one prompt.

    Attributes:
        client: within a priority the clients take turns; none gets another's keys and values.
        cache_salt: of the client's own, it gets only those of requests with the same salt.
        priority: lower numbers leave the queue first.
        queue_timeout: seconds it may wait for its turn.
        deadline: when it must be complete, in seconds of time.monotonic().
        observer: told what becomes of it.
    """

    client: str = ""
    cache_salt: str = ""
    priority: int = 0
    queue_timeout: float | None = None
    deadline: float | None = None
    observer: Observer | None = None


DEFAULT_TERMS = Terms()


@contextmanager
def alarms(leader: TokenSequence, terms: Terms, mailbox: Mailbox) -> Generator[None, None, None]:
    """Interrupt a request that waits too long for its turn, or is not complete in time."""

    def check_queue(seconds: float) -> None:
        if leader.started_at is None:
            mailbox.interrupt(QueueTimeout(f"no turn came within {seconds:g} s; the server is busy"))

    loop = asyncio.get_running_loop()
    alarms: list[asyncio.TimerHandle] = []
    if terms.queue_timeout is not None:
        alarms.append(loop.call_later(terms.queue_timeout, check_queue, terms.queue_timeout))
    if terms.deadline is not None:
        error: EngineError = DeadlinePassed("the request took longer than this server allows")
        alarms.append(loop.call_later(terms.deadline - time.monotonic(), mailbox.interrupt, error))
    try:
        yield
    finally:
        for alarm in alarms:
            alarm.cancel()
