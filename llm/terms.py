"""On what terms a request is served: whose it is, how urgent, how long it may take, and who is told about it.

Refuses to know HTTP; `None` is no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llm.choice import TextDelta
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
