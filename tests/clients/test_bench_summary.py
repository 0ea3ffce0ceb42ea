"""What each server did, and whether it was the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clients.bench.answer import Answer
from clients.bench.figures import Slo
from clients.bench.load import Rounds, Run
from clients.bench.summary import Server, compare, summarise, unlike
from clients.bench.target import Clocks, Place, Target
from clients.bench.work import Level

LEVELS = [Level(1, streams=1), Level(1, streams=4)]
WHOLE = Answer(0.0, [0.1, 0.2], prompt_tokens=10, cached_tokens=5, completion_tokens=20, is_counted=True)


def run(answer: Answer, seconds: float = 1.0, first: Answer | None = None) -> Run:
    return Run(LEVELS[0], [answer], seconds, 0.0, Clocks(), Clocks(), first)


def summary(index: int, *results: Rounds) -> Server:
    target = Target(Place("http://127.0.0.1:1"), {}, timeout=1)
    return summarise("server", target, results, index, Slo())


def test_rows_are_medians_and_compared_with_the_first_level() -> None:
    levels = [[[run(WHOLE, s)] for s in (1.0, 2.0, 4.0)], [[run(WHOLE, s)] for s in (1.0, 0.5, 0.25)]]
    rows = summary(0, *levels).rows
    assert [row["tokens_per_s"] for row in rows] == [10, 40]
    assert [row["speedup"] for row in rows] == [1, 4]
    assert rows[0]["cached_share"] == 0.5


def test_errors_and_ignored_fields_are_of_all_requests_the_first_of_a_prefix_too() -> None:
    failed = replace(WHOLE, error="no", ignored="seed")
    server = summary(0, [[run(WHOLE, first=failed)], [run(replace(WHOLE, ignored="top_k, seed"))]])
    assert (server.errors, server.ignored, server.num_requests) == (["no"], ["seed", "top_k"], 3)


def test_each_server_has_its_own_runs_and_the_ratio_is_the_first_by_the_second() -> None:
    results = [[[run(WHOLE, 1.0), run(WHOLE, 2.0)], [run(WHOLE, 1.0), run(WHOLE, 4.0)]]]
    assert [summary(i, *results).rows[0]["seconds"] for i in (0, 1)] == [1, 3]
    assert compare(results, Slo())[0]["tokens_per_s"] == (3, 2, 4)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (WHOLE, []),
        (replace(WHOLE, completion_tokens=19), []),
        (replace(WHOLE, completion_tokens=9), ["20 reply tokens a request against 9, at 1 stream"]),
        (replace(WHOLE, prompt_tokens=12), ["10 prompt tokens a request against 12, at 1 stream"]),
        (replace(WHOLE, prompt_tokens=0), []),  # not counted
    ],
)
def test_other_work_is_said(theirs: Answer, said: list[str]) -> None:
    servers = [summary(i, [[run(WHOLE), run(theirs)]]) for i in (0, 1)]
    assert unlike(LEVELS[:1], servers) == [f"NOT THE SAME WORK: {line}" for line in said]
    assert unlike(LEVELS[:1], servers[:1]) == []
