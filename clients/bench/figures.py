"""A run's times → percentiles, throughput and goodput; rounds → medians, and ratios of two servers.

    >>> row = figures(run, Slo(ttft_ms=200, gap_ms=20))
    >>> row["ttft_p95_ms"], row["goodput_per_s"]

Failed requests count in `num_errors` and nowhere else. None is "not known", never 0. Refuses to know how the
times came about and how they are printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from clients.bench.answer import Answer
from clients.bench.load import Run

Row = dict[str, float | None]
"""A level's figures by the names of the JSON line."""

SHARES = {"": 0.5, "_p90": 0.9, "_p95": 0.95, "_p99": 0.99}
"""What follows a figure's name: the median has nothing."""


class Slo(NamedTuple):
    """What a request must keep to be good; None is no limit."""

    ttft_ms: float | None = None
    gap_ms: float | None = None

    def holds(self, answer: Answer) -> bool:
        """Whether a whole answer's first token, and its gaps on average, came in time."""
        if not answer.texts:
            return False
        wait, gap = (answer.texts[0] - answer.sent) * 1e3, mean_gap(answer) * 1e3
        limits = ((wait, self.ttft_ms), (gap, self.gap_ms))
        return all(limit is None or value <= limit for value, limit in limits)


class Ratio(NamedTuple):
    """Of two servers in the same round: the median, the least and the most over all rounds."""

    median: float
    least: float
    most: float


def mean_gap(answer: Answer) -> float:
    """Seconds per token after the first, so that two tokens in a chunk are two; 0 without any."""
    span = answer.texts[-1] - answer.texts[0] if answer.texts else 0.0
    return span / max(1, answer.completion_tokens - 1)


def figures(run: Run, slo: Slo) -> Row:
    """What the run measured."""
    whole = [answer for answer in run.answers if answer.error is None]
    num_tokens = sum(answer.completion_tokens for answer in whole)
    good = [answer for answer in whole if slo.holds(answer)]
    gaps = [late - early for a in whole for early, late in zip(a.texts, a.texts[1:], strict=False)]
    with_text = [answer for answer in whole if answer.texts]
    known = run.first if run.first is not None and run.first.texts and run.first.error is None else None
    return {
        **_percentiles("ttft", [answer.texts[0] - answer.sent for answer in with_text]),
        **_percentiles("gap", gaps),
        **_percentiles("e2e", [answer.texts[-1] - answer.sent for answer in with_text]),
        "gap_max_ms": max(gaps) * 1e3 if gaps else None,
        "first_ttft_ms": None if known is None else (known.texts[0] - known.sent) * 1e3,
        "tokens_per_s": num_tokens / run.seconds,
        "decode_tokens_per_s": _decode_speed(with_text),
        "requests_per_s": len(whole) / run.seconds,
        "goodput_per_s": len(good) / run.seconds if slo != Slo() else None,
        "goodput_share": len(good) / len(run.answers) if slo != Slo() else None,
        "completion_tokens": num_tokens,
        "prompt_tokens": sum(answer.prompt_tokens for answer in whole),
        "cached_tokens": sum(answer.cached_tokens for answer in whole),
        "num_whole": len(whole),
        "num_errors": len(run.answers) - len(whole),
        "seconds": run.seconds,
        **_costs(run, num_tokens),
    }


def medians(rounds: Sequence[Row]) -> Row:
    """Each figure's median over the rounds; None when a round lacks it."""
    known = {name: [row[name] for row in rounds] for name in rounds[0]}
    return {
        name: None if None in values else round(median(v for v in values if v is not None), 3)
        for name, values in known.items()
    }


def ratios(rounds: Sequence[tuple[Row, Row]]) -> dict[str, Ratio]:
    """The first server's figure divided by the second's, for every figure that all rounds have."""
    found = {}
    for name in rounds[0][0]:
        pairs = [(ours[name], theirs[name]) for ours, theirs in rounds]
        shares = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        if len(shares) == len(pairs):
            found[name] = Ratio(median(shares), min(shares), max(shares))
    return found


def _costs(run: Run, num_tokens: int) -> Row:
    """CPU time, in µs per token of the run, and the engine's steps."""

    def per_token(seconds: float | None) -> float | None:
        return None if seconds is None or not num_tokens else seconds / num_tokens * 1e6

    return {
        "client_cpu_us_per_token": per_token(run.cpu_seconds),
        "server_cpu_us_per_token": per_token(_spent(run.before.server, run.after.server)),
        "loop_cpu_us_per_token": per_token(_spent(run.before.loop, run.after.loop)),
        "host_cpu_us_per_token": per_token(_spent(run.before.host, run.after.host)),
        "num_steps": _spent(run.before.num_steps, run.after.num_steps),
    }


def _spent(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _decode_speed(answers: Sequence[Answer]) -> float | None:
    """Tokens after each reply's first, per second in which any reply was between its first and its last."""
    num_tokens = sum(max(0, answer.completion_tokens - 1) for answer in answers)
    seconds, end = 0.0, -math.inf
    for first, last in sorted((answer.texts[0], answer.texts[-1]) for answer in answers):
        seconds += max(0.0, last - max(first, end))
        end = max(end, last)
    return num_tokens / seconds if seconds else None


def _percentiles(name: str, seconds: Sequence[float]) -> Row:
    """Nearest rank: a value that was measured."""
    ordered = sorted(seconds)
    return {
        f"{name}{suffix}_ms": ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e3 if ordered else None
        for suffix, share in SHARES.items()
    }
