"""Times → figures: percentiles, throughput, goodput, medians and ratios, by hand."""

from __future__ import annotations

import pytest

from clients.bench.answer import Answer
from clients.bench.figures import Ratio, Slo, figures, mean_gap, medians, ratios
from clients.bench.load import Run
from clients.bench.target import Clocks
from clients.bench.work import Level

UNKNOWN = Clocks()


def answer(sent: float, *texts: float, tokens: int = 0, error: str | None = None) -> Answer:
    return Answer(sent, list(texts), prompt_tokens=5, cached_tokens=1, completion_tokens=tokens, error=error)


def run(
    *answers: Answer,
    seconds: float = 1.0,
    cpu: float = 0.0,
    before: Clocks = UNKNOWN,
    after: Clocks = UNKNOWN,
    first: Answer | None = None,
) -> Run:
    return Run(Level(len(answers), streams=1), list(answers), seconds, cpu, before, after, first)


def test_figures_of_a_run() -> None:
    answers = [answer(0.0, 0.010, 0.012, 0.016, tokens=3), answer(0.0, 0.030, 0.031, tokens=7)]
    clocks = Clocks(5.0, 0.5, 1.0, 100), Clocks(5.02, 0.503, 1.001, 110)
    found = figures(run(*answers, seconds=2.0, cpu=0.001, before=clocks[0], after=clocks[1]), Slo())
    assert {name: value for name, value in found.items() if "_p9" not in name} == {
        "ttft_ms": pytest.approx(10),
        "gap_ms": pytest.approx(2),  # of 1, 2 and 4
        "gap_max_ms": pytest.approx(4),
        "e2e_ms": pytest.approx(16),
        "first_ttft_ms": None,
        "tokens_per_s": 5.0,
        "decode_tokens_per_s": pytest.approx((2 + 6) / (0.006 + 0.001)),
        "requests_per_s": 1.0,
        "goodput_per_s": None,
        "goodput_share": None,
        "completion_tokens": 10,
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "num_whole": 2,
        "num_errors": 0,
        "seconds": 2.0,
        "client_cpu_us_per_token": pytest.approx(100),
        "server_cpu_us_per_token": pytest.approx(2000),
        "loop_cpu_us_per_token": pytest.approx(300),
        "host_cpu_us_per_token": pytest.approx(100),
        "num_steps": 10,
    }


def test_percentiles_are_values_that_were_measured() -> None:
    found = figures(run(*(answer(0.0, i / 1000) for i in range(1, 101))), Slo())
    names = ("ttft_ms", "ttft_p90_ms", "ttft_p95_ms", "ttft_p99_ms")
    assert [found[name] for name in names] == pytest.approx([50, 90, 95, 99])
    few = figures(run(answer(0.0, 0.001), answer(0.0, 0.002)), Slo())
    assert [few[name] for name in names] == pytest.approx([1, 2, 2, 2])


def test_what_is_not_known_is_none_and_not_zero() -> None:
    found = figures(run(answer(0.0)), Slo())
    unknown = "ttft_ms gap_ms e2e_ms gap_max_ms decode_tokens_per_s server_cpu_us_per_token num_steps".split()
    assert [found[name] for name in (*unknown, "client_cpu_us_per_token")] == [None] * 8
    assert found["tokens_per_s"] == 0


def test_a_failed_request_counts_as_failed_and_nowhere_else() -> None:
    found = figures(run(answer(0, 0.01, tokens=4), answer(0, 9.0, tokens=4, error="no")), Slo(ttft_ms=1e6))
    assert (found["num_errors"], found["num_whole"], found["completion_tokens"]) == (1, 1, 4)
    assert found["ttft_p99_ms"] == pytest.approx(10)
    assert found["goodput_share"] == 0.5, "of all requests"


@pytest.mark.parametrize(
    ("slo", "share"),
    [
        (Slo(ttft_ms=100), 2 / 3),
        (Slo(gap_ms=10), 2 / 3),
        (Slo(ttft_ms=100, gap_ms=10), 1 / 3),
        (Slo(ttft_ms=1), 0),
        (Slo(ttft_ms=500, gap_ms=500), 1),
        (Slo(ttft_ms=0), 0),
    ],
)
def test_goodput_is_what_keeps_both_limits(slo: Slo, share: float) -> None:
    good = answer(0.0, 0.050, 0.060, tokens=2)
    late = answer(0.0, 0.200, 0.205, tokens=2)
    slow = answer(0.0, 0.050, 0.150, tokens=2)
    found = figures(run(good, late, slow, seconds=2.0), slo)
    assert found["goodput_share"] == pytest.approx(share)
    assert found["goodput_per_s"] == pytest.approx(share * 3 / 2)


def test_a_reply_without_text_is_never_good() -> None:
    assert not Slo().holds(answer(0.0))


def test_two_tokens_in_a_chunk_are_two_tokens() -> None:
    assert mean_gap(answer(0.0, 1.0, 1.4, tokens=5)) == pytest.approx(0.1)
    assert mean_gap(answer(0.0, 1.0, tokens=1)) == 0


def test_speed_while_decoding_leaves_out_when_nobody_decodes() -> None:
    """1 to 2 and 1.5 to 3 overlap, 5 to 6 stands alone: 3 s in all, of the run's 10."""
    answers = [answer(0, 1, 2, tokens=11), answer(0, 1.5, 3, tokens=11), answer(0, 5, 6, tokens=11)]
    assert figures(run(*answers, seconds=10.0), Slo())["decode_tokens_per_s"] == pytest.approx(30 / 3)


def test_the_first_of_a_prefix_stands_alone() -> None:
    found = figures(run(answer(0, 0.01), first=answer(0, 0.5)), Slo())
    assert (found["first_ttft_ms"], found["ttft_ms"]) == (pytest.approx(500), pytest.approx(10))
    assert figures(run(answer(0, 0.01), first=answer(0, error="no")), Slo())["first_ttft_ms"] is None


def test_medians_over_rounds() -> None:
    rows = [{"a": 1.0, "b": 1.0}, {"a": 5.0, "b": None}, {"a": 3.0, "b": 2.0}]
    assert medians(rows) == {"a": 3.0, "b": None}


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down in the second round slows both."""
    rounds = [
        ({"speed": 10.0}, {"speed": 5.0}),
        ({"speed": 3.0}, {"speed": 1.0}),
        ({"speed": 9.0}, {"speed": 6.0}),
    ]
    assert ratios(rounds) == {"speed": Ratio(2.0, 1.5, 3.0)}


def test_no_ratio_where_a_round_lacks_the_figure() -> None:
    assert ratios([({"a": 1.0, "b": None}, {"a": 0, "b": 1.0})]) == {}
