"""Levels are sent at their pace, rounds to all servers in turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from clients.bench.load import Rounds, Run, contest, run
from clients.bench.target import Place, Target
from clients.bench.work import Job, Kind, Length, Level, Work
from tests.clients.fake_server import FakeServer


def measure(
    urls: Sequence[str], work: Work, levels: Sequence[Level], num_rounds: int
) -> tuple[list[Rounds], list[str]]:
    async def measured() -> list[Rounds]:
        targets = [Target(Place(url), {}, timeout=10) for url in urls]
        results = await contest(targets, work, levels, num_rounds, told.append)
        for target in targets:
            await target.__aexit__()
        return results

    told: list[str] = []
    return asyncio.run(measured()), told


def send(url: str, level: Level, jobs: list[Job], first: Job | None = None) -> Run:
    async def sent() -> Run:
        async with Target(Place(url), {}, timeout=10) as target:
            return await run(target, level, jobs, first)

    return asyncio.run(sent())


def plain(count: int) -> list[Job]:
    return [Job("hi", 1, number) for number in range(count)]


def test_every_server_gets_the_same_work_and_every_second_round_begins_with_the_other(
    fake: FakeServer,
) -> None:
    work = Work([Kind(Length(5), Length(3))])
    levels = [Level(2, streams=1), Level(6, streams=3)]
    with FakeServer() as other:
        results, told = measure([fake.url, other.url], work, levels, num_rounds=3)
        both = [
            [(r["messages"][0]["content"], r["seed"]) for r in server.requests] for server in (fake, other)
        ]
    assert [[[len(one.answers) for one in runs] for runs in rounds] for rounds in results] == [
        [[2, 2]] * 3,
        [[6, 6]] * 3,
    ]
    assert sorted(both[0]) == sorted(both[1]) and len(both[0]) == 1 + 3 * 8, "a warm-up, then the rounds"
    assert len({text for text, _ in both[0]}) == 25, "no text twice"
    order = [fake.url in line for line in told]
    assert order == [True, False] * 2 + [False, True] * 2 + [True, False] * 2
    assert all(one.answers[0].completion_tokens == 2 + 5 for one in results[1][2])


def test_streams_are_as_many_as_asked_and_each_sends_when_it_is_answered(fake: FakeServer) -> None:
    """Two of three replies hang: the third stream does all the rest, one request after the other."""
    fake.hold("a")
    fake.hold("b")

    async def sent() -> None:
        async with Target(Place(fake.url), {}, timeout=10) as target, asyncio.timeout(10):
            running = asyncio.create_task(run(target, Level(9, streams=3), plain(9)))
            while len(fake.requests) < 9:
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(sent())
    assert fake.hung_up.wait(10)
    assert fake.most_open == 3


def test_a_rate_sends_when_due_and_waits_for_nobody(fake: FakeServer) -> None:
    """The first reply hangs; the others leave at their times all the same, and count from them."""
    fake.hold("never done")
    jobs = [Job("hi", 1, number, due=0.01 * number) for number in range(5)]

    async def sent() -> Run:
        async with Target(Place(fake.url), {}, timeout=0.5) as target:
            return await run(target, Level(5, rate=100.0), jobs)

    answers = asyncio.run(sent()).answers
    assert [answer.error is None for answer in answers] == [False, True, True, True, True]
    offsets = [answer.sent - answers[0].sent for answer in answers]
    assert offsets == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04])
    assert all(answer.texts[0] > answer.sent for answer in answers[1:])


def test_the_first_of_a_prefix_is_answered_before_the_others_are_sent(fake: FakeServer) -> None:
    done = send(fake.url, Level(2, streams=2), plain(2), first=Job("the first", 1, 0))
    assert fake.requests[0]["messages"][0]["content"] == "the first"
    assert done.first is not None and done.first.texts and len(done.answers) == 2
    assert done.first.texts[-1] < min(answer.sent for answer in done.answers)


def test_a_failed_request_is_counted_and_does_not_end_the_run(fake: FakeServer) -> None:
    fake.fail(429, {"error": {"message": "the queue is full", "code": "queue_full"}})
    assert [answer.error for answer in send(fake.url, Level(3, streams=1), plain(3)).answers] == [
        "the queue is full",
        None,
        None,
    ]


def test_clocks_stand_around_the_run(fake: FakeServer) -> None:
    told = {"cpu_seconds": 3.0, "runner_cpu_seconds": 2.5}
    fake.health = {"loop_cpu_seconds": 0.5, "engines": [{"num_steps": 3, **told}, {"num_steps": 4, **told}]}
    done = send(fake.url, Level(1, streams=1), plain(1))
    assert (done.before.loop, done.after.num_steps, done.before.server) == (0.5, 7, None)
    assert done.before.host == 1.0
    assert 0 < done.cpu_seconds <= time.process_time() and done.seconds > 0
