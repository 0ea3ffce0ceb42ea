"""Where one request's events wait for whoever reads them: bounded, and with a way to end it from outside.

The engine never waits: an event that finds the box full, and nobody on the way to it, ends the request
instead. Put and taken on the event loop; a reader is woken once for all that a step, or several, brought.
Refuses to know what events say.
"""

from __future__ import annotations

import asyncio

from llm.errors import EngineError, ReaderTooSlow
from llm.sequence import TokenEvent

EVENTS_PER_SEQUENCE = 1024
"""Tokens that may wait beside the 64 KiB and more that sockets hold: beyond it nobody is reading."""
TAKEN_AT_ONCE = 64
"""Of a long backlog: a message made of it is some 20 KB, whatever waits behind it."""


class Mailbox:
    """The events of a request.

    Args:
        num_sequences: how many write into it.
        loop: on which it is read.
    """

    def __init__(self, num_sequences: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = num_sequences * EVENTS_PER_SEQUENCE
        self._events: list[TokenEvent] = []
        self._error: EngineError | None = None
        self._reader: asyncio.Future[None] | None = None  # who waits

    def put(self, event: TokenEvent) -> None:
        """One more event; the last one when the box is full and its reader elsewhere. A reader that was woken
        and has not had its turn is not slow: the loop is, as when a crowd arrives.
        """
        if self._error is not None:
            return
        if len(self._events) >= self._room and self._reader is None:
            self.interrupt(ReaderTooSlow(f"the reply was not read: {self._room} tokens of it wait"))
        else:
            self._events.append(event)
            self._wake()

    def interrupt(self, error: EngineError) -> None:
        """Let the reader have what is there, and then this error."""
        if self._error is None:
            self._error = error
            self._wake()

    async def take(self) -> list[TokenEvent]:
        """The next events, at least one; waits only when there is none.

        Raises:
            EngineError: the request was interrupted.
        """
        if not self._events and self._error is None:
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._events:
            assert self._error is not None, "woken for nothing"
            raise self._error
        taken, self._events = self._events[:TAKEN_AT_ONCE], self._events[TAKEN_AT_ONCE:]
        return taken

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
