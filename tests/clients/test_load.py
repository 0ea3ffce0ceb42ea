"""What a load test counts: tokens by usage, times by chunk, CPU by the clocks given."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from clients.client import AsyncClient
from clients.load import PROMPTS, Answer, Clocks, Load, Run, measure, medians, process_cpu_seconds
from tests.clients.fake_server import FakeServer, chunk


def answer(sent: float, *texts: float, tokens: int = 0) -> Answer:
    return Answer(sent=sent, texts=list(texts), prompt_tokens=5, completion_tokens=tokens)


def clocks(
    client: float, server: float | None = None, loop: float | None = None, steps: int | None = None
) -> Clocks:
    return Clocks(client=client, server=server, loop=loop, num_steps=steps)


def test_figures_of_a_run() -> None:
    answers = [answer(0.0, 0.010, 0.012, 0.016, tokens=3), answer(0.0, 0.030, 0.031, tokens=7)]
    figures = Run(answers, 2.0, clocks(1.0, 5.0, 0.5, 100), clocks(1.001, 5.02, 0.503, 110)).figures()
    assert figures == {
        "ttft_ms": pytest.approx(10),
        "ttft_p95_ms": pytest.approx(30),
        "gap_ms": pytest.approx(2),  # of 1, 2 and 4
        "gap_p95_ms": pytest.approx(4),
        "tokens_per_s": 5.0,
        "completion_tokens": 10,
        "prompt_tokens": 10,
        "seconds": 2.0,
        "client_cpu_us_per_token": pytest.approx(100),
        "server_cpu_us_per_token": pytest.approx(2000),
        "loop_cpu_us_per_token": pytest.approx(300),
        "num_steps": 10,
    }


def test_what_is_not_known_is_none_and_not_zero() -> None:
    figures = Run([answer(0.0)], 1.0, clocks(1.0), clocks(2.0)).figures()
    for name in ("ttft_ms", "gap_ms", "server_cpu_us_per_token", "client_cpu_us_per_token", "num_steps"):
        assert figures[name] is None, name
    assert figures["tokens_per_s"] == 0


def test_medians_over_rounds() -> None:
    def run(seconds: float, server: float | None) -> Run:
        return Run([answer(0.0, 0.1, tokens=6)], seconds, clocks(0.0, server), clocks(0.0, server))

    row = medians([run(1.0, 0.0), run(2.0, 0.0), run(6.0, None)])
    assert row["tokens_per_s"] == 3.0
    assert row["server_cpu_us_per_token"] is None, "one round lacks it"


def test_only_chunks_with_text_are_timed() -> None:
    one = Answer(sent=time.perf_counter())
    for part in ({"role": "assistant", "content": ""}, {"content": "a"}, {}):
        one.take(chunk(part))
    one.take({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}})
    assert (len(one.texts), one.prompt_tokens, one.completion_tokens) == (1, 4, 2)


def test_every_round_sends_the_same_work(fake: FakeServer) -> None:
    async def run() -> dict[int, list[Run]]:
        async with AsyncClient(fake.url) as client:
            return await measure(Load(client, {"max_tokens": 9}, os.getpid()), {1: 2, 3: 20}, num_rounds=2)

    fake.health = {"loop_cpu_seconds": 0.5, "engines": [{"num_steps": 3}, {"num_steps": 4}]}
    runs = asyncio.run(run())
    assert [[len(r.answers) for r in level] for level in runs.values()] == [[2, 2], [20, 20]]

    def work(requests: list[dict]) -> set[tuple[str, int]]:
        return {(request["messages"][0]["content"], request["seed"]) for request in requests}

    assert len(fake.requests) == 1 + 2 * 22  # a warm-up, then rounds of both levels in turn
    first, second = fake.requests[1:23], fake.requests[23:]
    assert work(first[:2]) == work(second[:2]) == {(PROMPTS[0], 0), (PROMPTS[1], 1)}
    assert work(first[2:]) == work(second[2:]) == {(PROMPTS[i % len(PROMPTS)], i) for i in range(20)}
    assert fake.requests[0]["stream_options"] == {"include_usage": True}
    assert fake.requests[0]["max_tokens"] == 9
    last = runs[3][-1]
    assert (last.before.loop, last.before.num_steps) == (0.5, 7)
    assert last.before.server is not None


def test_prompts_are_lengthened_until_the_server_counts_enough(fake: FakeServer) -> None:
    """The fake counts words; a prompt longer than asked for stays as it is."""

    async def run(num_tokens: int) -> list[str]:
        async with AsyncClient(fake.url) as client:
            load = Load(client, {"max_tokens": 9}, None)
            await load.fit(num_tokens)
            await load.run(1, 1)
            return load.prompts

    long = asyncio.run(run(64))
    assert {len(f"You said: {prompt}".split()) for prompt in long} == {64}
    assert [request["max_tokens"] for request in fake.requests[-2:]] == [1, 9], "single tokens to find out"
    assert fake.requests[-1]["messages"][0]["content"] == long[0]
    assert asyncio.run(run(2)) == list(PROMPTS)


def test_a_failed_request_is_counted_and_does_not_end_the_run(fake: FakeServer) -> None:
    async def run() -> Run:
        async with AsyncClient(fake.url) as client:
            return await Load(client, {}, None).run(1, 3)

    fake.fail(429, {"error": {"message": "the queue is full", "code": "queue_full"}})
    answers = asyncio.run(run()).answers
    assert [a.error for a in answers] == ["the queue is full", None, None]


def test_cpu_seconds_of_a_process() -> None:
    if not os.path.exists("/proc/self/stat"):
        pytest.skip("no /proc here")
    before = process_cpu_seconds(os.getpid())
    assert before is not None
    assert before <= time.process_time() + 0.1  # the clock's tick is 10 ms
    assert process_cpu_seconds(2**22 + 1) is None, "no such process"
