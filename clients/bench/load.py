"""Sends the requests of a level and notes what comes back; rounds of all levels, all servers in turn.

    >>> runs = await contest(targets, work, [Level(64, streams=16)], num_rounds=5)
    >>> runs[0][0][1].answers   # of the first level, the first round, the second server

Nothing is decoded while a run goes on. In a round every server gets the same requests, and every second
round begins with the other server. Refuses to know options, tables and how a server is started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from clients.bench.answer import Answer, read
from clients.bench.pool import Note
from clients.bench.target import Clocks, Target
from clients.bench.work import Job, Level, Work


@dataclass(frozen=True, slots=True)
class Run:
    """One level of one round, by one server.

    Attributes:
        first: the answer to the request that met the common prefix first, where there is one.
        seconds: from the first request to the last answer's end.
        cpu_seconds: what this program spent meanwhile.
    """

    level: Level
    answers: list[Answer]
    seconds: float
    cpu_seconds: float
    before: Clocks
    after: Clocks
    first: Answer | None = None


Rounds = list[list[Run]]
"""Of one level: for each round each server's run, in the order of the servers."""


async def contest(
    targets: Sequence[Target],
    work: Work,
    levels: Sequence[Level],
    num_rounds: int,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Rounds]:
    """Every level's runs. One uncounted request to each server comes first."""
    results: list[Rounds] = [[] for _ in levels]
    for target in targets:
        await run(target, levels[0], work.jobs(levels[0], -1)[:1])
    for number in range(num_rounds):
        for level, rounds in zip(levels, results, strict=True):
            jobs, first = work.jobs(level, number), work.first_of_prefix(level, number)
            runs = {}
            for index in _order(len(targets), number):
                runs[index] = done = await run(targets[index], level, jobs, first)
                where = f"{level.title} at {targets[index].place.url}"
                tell(f"round {number + 1} of {num_rounds}: {where} took {done.seconds:.1f} s")
            rounds.append([runs[index] for index in range(len(targets))])
    return results


async def run(target: Target, level: Level, jobs: Sequence[Job], first: Job | None = None) -> Run:
    """Send all jobs, at the level's pace."""
    requests = [target.request(job) for job in jobs]
    known = None if first is None else read(await target.send(target.request(first)))
    send = _send_by_streams if level.rate is None else _send_when_due
    before = await target.clocks()
    start, cpu = time.perf_counter(), time.process_time()
    notes = await send(target, level, jobs, requests)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    after = await target.clocks()
    return Run(level, [read(note) for note in notes], seconds, cpu_seconds, before, after, known)


async def _send_by_streams(
    target: Target, level: Level, jobs: Sequence[Job], requests: Sequence[bytes]
) -> list[Note]:
    """Each stream takes the next request when its last one is answered."""
    notes: list[Note] = []
    queue = iter(requests)

    async def work(queue: Iterator[bytes]) -> None:
        for request in queue:
            notes.append(await target.send(request))

    await asyncio.gather(*(work(queue) for _ in range(level.streams or 1)))
    return notes


async def _send_when_due(
    target: Target, level: Level, jobs: Sequence[Job], requests: Sequence[bytes]
) -> list[Note]:
    """Each request at its time, however many are open; one that leaves late counts from when it was due."""
    start = time.perf_counter()

    async def wait_and_send(job: Job, request: bytes) -> Note:
        await asyncio.sleep(start + job.due - time.perf_counter())
        return await target.send(request, start + job.due)

    return await asyncio.gather(*map(wait_and_send, jobs, requests))


def _order(count: int, round_number: int) -> list[int]:
    """Who comes first changes from round to round."""
    order = list(range(count))
    return order if round_number % 2 == 0 else order[::-1]
