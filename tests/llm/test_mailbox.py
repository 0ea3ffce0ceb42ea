"""A box that is read in order, is bounded, and can be ended from outside."""

from __future__ import annotations

import asyncio

import pytest

from llm.errors import DeadlinePassed, EngineStopped, ReaderTooSlow
from llm.mailbox import EVENTS_PER_SEQUENCE, Mailbox
from llm.sequence import TokenEvent


async def taken(mailbox: Mailbox, num: int) -> list[int | None]:
    return [(await mailbox.get()).token_id for _ in range(num)]


def test_events_come_out_as_they_went_in() -> None:
    async def run() -> None:
        mailbox = Mailbox(1)
        for token in range(EVENTS_PER_SEQUENCE):
            mailbox.put(TokenEvent(0, token))
        assert await taken(mailbox, EVENTS_PER_SEQUENCE) == list(range(EVENTS_PER_SEQUENCE))

    asyncio.run(run())


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_one_event_too_many_ends_it_after_those_there_are(num_sequences: int) -> None:
    async def run() -> None:
        mailbox, room = Mailbox(num_sequences), num_sequences * EVENTS_PER_SEQUENCE
        for token in range(room + 5):
            mailbox.put(TokenEvent(0, token))
        assert await taken(mailbox, room) == list(range(room))
        with pytest.raises(ReaderTooSlow, match=f"{room} tokens"):
            await mailbox.get()

    asyncio.run(run())


def test_the_first_interruption_counts_and_nothing_follows_it() -> None:
    async def run() -> None:
        mailbox = Mailbox(1)
        mailbox.put(TokenEvent(0, 7))
        mailbox.interrupt(DeadlinePassed("late"))
        mailbox.interrupt(EngineStopped("never said"))
        mailbox.put(TokenEvent(0, 8))
        assert await taken(mailbox, 1) == [7]
        with pytest.raises(DeadlinePassed, match="late"):
            await mailbox.get()
        assert mailbox._queue.empty()

    asyncio.run(run())
