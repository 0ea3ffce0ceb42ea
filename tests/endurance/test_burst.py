"""Ten times more requests than there is room for, at once: who is admitted is served, the rest is told at
once, and the counters say the same as the clients.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from clients.child import ChildServer
from tests.endurance.probe import NOISE, bound_of
from tests.endurance.raw import CHAT, Reply, ask, burst, post, until
from tests.endurance.readings import (
    Counted,
    assert_quiet_log,
    distribution,
    metrics,
    percentile,
    wait_until_idle,
)

MEDIAN_SECONDS = 0.05
MOST_TRIES = 3
"""A machine with others on it has bad minutes."""


@dataclass(frozen=True)
class Burst:
    """So many replies run and wait, each so long that none ends, and gives its place away, before the last of
    ten times as many requests has been sent, over so many seconds.
    """

    num_running: int
    num_waiting: int
    num_tokens: int
    seconds: float

    @property
    def capacity(self) -> int:
        return self.num_running + self.num_waiting

    @property
    def num_requests(self) -> int:
        return 10 * self.capacity


AT_ONCE = Burst(num_running=16, num_waiting=64, num_tokens=1200, seconds=0)
"""The default limits. Eight hundred requests in a few milliseconds: most of a refusal's time is the line of
refusals before it.
"""
SMALL = Burst(num_running=2, num_waiting=6, num_tokens=2500, seconds=0)
"""Eighty at once."""
PACED = Burst(num_running=4, num_waiting=12, num_tokens=12_000, seconds=1.5)
"""A hundred requests a second, as a crowd comes: a refusal's time is its own."""


def chat(number: int, max_tokens: int) -> bytes:
    """A request that says how much it cost; every other one is streamed."""
    stream = {"stream": True, "stream_options": {"include_usage": True}} if number % 2 else {}
    content = "hello " * (1 + number % 5)
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "ignore_eos": True}
    return post(CHAT, {**body, **stream, "seed": number})


@pytest.mark.slow
@pytest.mark.parametrize("given", [AT_ONCE, SMALL, PACED], ids=["at_once", "small", "paced"])
def test_a_burst_is_admitted_up_to_capacity_and_refused_at_once_beyond(
    roomy_folder: Path, figure: Callable[[str], None], given: Burst
) -> None:
    for _ in range(1 if given is AT_ONCE else MOST_TRIES):
        median, bound = survive(given, roomy_folder, figure)
        if median < bound:
            break
    assert given is AT_ONCE or median < bound


def survive(given: Burst, roomy_folder: Path, figure: Callable[[str], None]) -> tuple[float, float]:
    """A server's burst, all of it judged but its pace: a refusal's median seconds, and what they may be
    here.
    """
    limits = ["--max-num-seqs", str(given.num_running), "--max-num-queued-seqs", str(given.num_waiting)]
    # Without guesses, by which a reply that repeats itself may end before the burst does.
    limits += ["--queue-timeout", "600", "--num-speculative-tokens", "0"]
    arguments = ["--checkpoint", str(roomy_folder), *limits]
    with ChildServer([*arguments, "--uvicorn-log-level", "warning"]) as server:
        assert ask(server.url, chat(0, 1)).status == 200
        bound = bound_of(server.url, MEDIAN_SECONDS, 0.5)
        if (
            not given.seconds
        ):  # a crowd is a line: half of it before the median, each at twice the price of /live
            bound = max(bound, given.num_requests * bound_of(server.url, 0.0, 0.5) / NOISE)
        before = metrics(server.url)
        requests = [chat(i, given.num_tokens) for i in range(given.num_requests)]
        replies = burst(server.url, requests, pause=given.seconds / given.num_requests)
        served = [reply for reply in replies if reply.status == 200]
        refused = [reply for reply in replies if reply.status == 429]
        figure(
            f"burst of {len(replies)} within {given.seconds:g} s: {len(served)} admitted, {len(refused)} "
            f"refused; a 429 after {distribution(reply.seconds for reply in refused or replies)}"
        )
        seen = Counter(reply.status for reply in replies)
        assert seen == {200: given.capacity, 429: given.num_requests - given.capacity}
        for reply in served:
            check_served(reply, given.num_tokens)
        for reply in refused:
            check_refused(reply)
        wait_until_idle(server.url)
        check_counters(server.url, before, served, refused)
        assert ask(server.url, chat(0, 1)).status == 200, "and there is room again"
        assert_quiet_log(server)
    return percentile([reply.seconds for reply in refused], 0.5), bound


def check_served(reply: Reply, num_tokens: int) -> None:
    """The reply is whole: as many tokens as asked, and one end."""
    assert reply.error is None
    assert reply.usage["completion_tokens"] == num_tokens
    ends = [
        choice["finish_reason"]
        for part in (reply.chunks if reply.is_stream else [reply.json])
        for choice in part["choices"]
        if choice["finish_reason"] is not None
    ]
    assert ends == ["length"]


def check_refused(reply: Reply) -> None:
    """The refusal says what it is and when to come again."""
    assert reply.error is not None and reply.error["code"] == "queue_full", reply.body
    assert 1 <= int(reply.headers["retry-after"]) <= 3600
    assert len(json.dumps(reply.json)) < 1000


def check_counters(url: str, before: Counted, served: list[Reply], refused: list[Reply]) -> None:
    """The server counted what the clients saw, neither more nor less."""
    expected = {
        ("request_success_total", ("finished_reason", "length")): len(served),
        ("request_success_total", None): len(served),
        ("rejected_total", ("reason", "queue_full")): len(refused),
        ("rejected_total", None): len(refused),
        ("prompt_tokens_total", None): sum(reply.usage["prompt_tokens"] for reply in served),
        ("generation_tokens_total", None): sum(reply.usage["completion_tokens"] for reply in served),
        ("http_requests_total", ("status", "200")): len(served),
        ("http_requests_total", ("status", "429")): len(refused),
    }

    def counted() -> dict[tuple[str, tuple[str, str] | None], float]:
        after = metrics(url)
        found = {}
        for name, label in expected:
            labels = dict([label] if label else [])
            if name == "http_requests_total":
                labels["route"] = CHAT
            found[name, label] = after.total(name, **labels) - before.total(name, **labels)
        return found

    try:  # a request is counted when its last byte has left, which the client may see first
        until(lambda: counted() == expected, "counters", 10)
    except AssertionError:
        assert counted() == expected
    after = metrics(url)
    assert after.total("num_requests_running") == after.total("num_requests_waiting") == 0
