"""Where one request's events wait for whoever reads them: bounded, and with a way to end it from outside.

The engine never waits: an event that finds the box full ends the request instead. Put and taken on the event
loop. Refuses to know what events say.
"""

from __future__ import annotations

import asyncio

from llm.errors import EngineError, ReaderTooSlow
from llm.sequence import TokenEvent

EVENTS_PER_SEQUENCE = 1024
"""Tokens that may wait beside the 64 KiB and more that sockets hold: beyond it nobody is reading."""


class Mailbox:
    """The events of a request.

    Args:
        num_sequences: how many write into it.
    """

    def __init__(self, num_sequences: int) -> None:
        self._room = num_sequences * EVENTS_PER_SEQUENCE
        self._queue: asyncio.Queue[TokenEvent | EngineError] = asyncio.Queue()
        self._is_closed = False

    def put(self, event: TokenEvent) -> None:
        """One more event; the last one when the box is full."""
        if self._is_closed:
            return
        if self._queue.qsize() >= self._room:
            self.interrupt(ReaderTooSlow(f"the reply was not read: {self._room} tokens of it wait"))
        else:
            self._queue.put_nowait(event)

    def interrupt(self, error: EngineError) -> None:
        """Let the reader have what is there, and then this error."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put_nowait(error)

    async def get(self) -> TokenEvent:
        """The next event.

        Raises:
            EngineError: the request was interrupted.
        """
        event = await self._queue.get()
        if isinstance(event, EngineError):
            raise event
        return event
