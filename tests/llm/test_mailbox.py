"""A box that is read in order, is bounded, and can be ended from outside."""

from __future__ import annotations

import asyncio

import pytest

from llm.errors import DeadlinePassed, EngineStopped, ReaderTooSlow
from llm.mailbox import EVENTS_PER_SEQUENCE, TAKEN_AT_ONCE, Mailbox
from llm.sequence import TokenEvent


def mailbox_of(num_sequences: int) -> Mailbox:
    return Mailbox(num_sequences, asyncio.get_running_loop())


async def taken(mailbox: Mailbox, num: int) -> list[int | None]:
    tokens: list[int | None] = []
    while len(tokens) < num:
        tokens += [event.token_id for event in await mailbox.take()]
    return tokens


def test_events_come_out_as_they_went_in() -> None:
    async def run() -> None:
        mailbox = mailbox_of(1)
        for token in range(EVENTS_PER_SEQUENCE):
            mailbox.put(TokenEvent(0, token))
        assert await taken(mailbox, EVENTS_PER_SEQUENCE) == list(range(EVENTS_PER_SEQUENCE))

    asyncio.run(run())


def test_a_reader_is_woken_once_for_all_that_came_and_takes_a_backlog_in_portions() -> None:
    async def run() -> None:
        mailbox, wakes = mailbox_of(1), list[int]()

        async def read() -> None:
            while sum(wakes) < 2 + TAKEN_AT_ONCE + 1:
                wakes.append(len(await mailbox.take()))

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        mailbox.put(TokenEvent(0, 1))
        mailbox.put(TokenEvent(0, 2))
        while not wakes:
            await asyncio.sleep(0)
        for token in range(TAKEN_AT_ONCE + 1):
            mailbox.put(TokenEvent(0, token))
        await reading
        assert wakes == [2, TAKEN_AT_ONCE, 1]

    asyncio.run(run())


def test_a_reader_that_gave_up_misses_nothing() -> None:
    async def run() -> None:
        mailbox = mailbox_of(1)
        first = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        first.cancel()
        mailbox.put(TokenEvent(0, 7))  # while the cancelled reader has not run yet
        await asyncio.gather(first, return_exceptions=True)
        assert await taken(mailbox, 1) == [7]

    asyncio.run(run())


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_one_event_too_many_ends_it_after_those_there_are(num_sequences: int) -> None:
    async def run() -> None:
        mailbox, room = mailbox_of(num_sequences), num_sequences * EVENTS_PER_SEQUENCE
        for token in range(room + 5):
            mailbox.put(TokenEvent(0, token))
        assert await taken(mailbox, room) == list(range(room))
        with pytest.raises(ReaderTooSlow, match=f"{room} tokens"):
            await mailbox.take()

    asyncio.run(run())


def test_a_reader_that_waits_for_its_turn_on_a_busy_loop_is_not_slow() -> None:
    async def run() -> None:
        mailbox, num = mailbox_of(1), 3 * EVENTS_PER_SEQUENCE
        reading = asyncio.create_task(taken(mailbox, num))
        await asyncio.sleep(0)
        for token in range(num):  # all in one turn of the loop, as after a turn that took a second
            mailbox.put(TokenEvent(0, token))
        assert await reading == list(range(num))

    asyncio.run(run())


def test_the_first_interruption_counts_and_nothing_follows_it() -> None:
    async def run() -> None:
        mailbox = mailbox_of(1)
        mailbox.put(TokenEvent(0, 7))
        mailbox.interrupt(DeadlinePassed("late"))
        mailbox.interrupt(EngineStopped("never said"))
        mailbox.put(TokenEvent(0, 8))
        assert await taken(mailbox, 1) == [7]
        for _ in range(2):
            with pytest.raises(DeadlinePassed, match="late"):
                await mailbox.take()

    asyncio.run(run())


def test_an_interruption_wakes_a_reader_who_waits() -> None:
    async def run() -> None:
        mailbox = mailbox_of(1)
        reading = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        mailbox.interrupt(DeadlinePassed("late"))
        with pytest.raises(DeadlinePassed, match="late"):
            await reading

    asyncio.run(run())
