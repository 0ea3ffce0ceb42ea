"""What each server did, level by level, and how two of them compare.

    >>> servers = [summarise("server", target, results, 0, slo)]
    >>> compare(results, slo)[0]["tokens_per_s"].median

Refuses to know how it is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clients.bench.figures import Ratio, Row, Slo, figures, medians, ratios
from clients.bench.load import Rounds
from clients.bench.target import Target
from clients.bench.work import Level

UNLIKE = 0.1
"""Prompts or replies that differ by more than this share are not the same work."""


@dataclass(slots=True)
class Server:
    """One server and what it did: `rows` holds a level's figures, in the levels' order."""

    name: str
    target: Target
    rows: list[Row]
    num_requests: int
    errors: list[str]
    ignored: list[str]
    peak_memory_mb: float | None = None

    def about(self) -> str:
        """Who it is, in one line."""
        facts = [f"{self.target.place.url}  {self.target.model}"]
        if self.target.place.start_seconds is not None:
            facts.append(f"first token {self.target.place.start_seconds:.1f} s after its start")
        if self.peak_memory_mb is not None:
            facts.append(f"peak memory {self.peak_memory_mb:.0f} MB")
        if not self.target.counts:
            facts.append("sends no usage: chunks with text are counted, not tokens")
        if self.target.refused:
            facts.append(f"measured without {', '.join(self.target.refused)}, which it refuses")
        if self.ignored:
            facts.append(f"ignored by the server: {', '.join(self.ignored)}")
        return "; ".join(facts)

    def facts(self, levels: Sequence[Level]) -> dict[str, Any]:
        """The same for the JSON line, with the figures."""
        kind = "streams" if levels[0].rate is None else "rates"
        return {
            "url": self.target.place.url,
            "model": self.target.model,
            "start_seconds": self.target.place.start_seconds,
            "peak_memory_mb": self.peak_memory_mb,
            "counted_by": "usage" if self.target.counts else "chunks",
            "refused_params": self.target.refused,
            "ignored_params": self.ignored,
            "num_errors": len(self.errors),
            kind: {level.name: row for level, row in zip(levels, self.rows, strict=True)},
        }


def summarise(name: str, target: Target, results: Sequence[Rounds], index: int, slo: Slo) -> Server:
    """The server with that index in every run."""
    runs = [runs[index] for rounds in results for runs in rounds]
    answers = [answer for run in runs for answer in (*run.answers, run.first) if answer is not None]
    rows = [medians([figures(runs[index], slo) for runs in rounds]) for rounds in results]
    first = rows[0]["tokens_per_s"]
    for row in rows:
        speed, cached, prompt = row["tokens_per_s"], row["cached_tokens"], row["prompt_tokens"]
        row["speedup"] = round(speed / first, 3) if speed is not None and first else None
        row["cached_share"] = round(cached / prompt, 4) if cached and prompt else None
    ignored = {name.strip() for answer in answers for name in answer.ignored.split(",")} - {""}
    errors = [answer.error for answer in answers if answer.error is not None]
    return Server(name, target, rows, len(answers), errors, sorted(ignored))


def compare(results: Sequence[Rounds], slo: Slo) -> list[dict[str, Ratio]]:
    """The first server divided by the second, level by level."""
    pairs = [[(figures(ours, slo), figures(theirs, slo)) for ours, theirs in rounds] for rounds in results]
    return [ratios(level) for level in pairs]


def lengths(row: Row) -> tuple[float, float]:
    """Prompt and reply tokens of a request, on average."""
    num_requests = row["num_whole"] or 1
    return (row["prompt_tokens"] or 0) / num_requests, (row["completion_tokens"] or 0) / num_requests


def unlike(levels: Sequence[Level], servers: Sequence[Server]) -> list[str]:
    """Warnings when two servers, as far as they count, did other work: a ratio then compares two."""
    if len(servers) < 2:
        return []
    found = []
    for level, ours, theirs in zip(levels, servers[0].rows, servers[1].rows, strict=True):
        pairs = zip(("prompt", "reply"), lengths(ours), lengths(theirs), strict=True)
        for what, here, there in pairs:
            if here and there and abs(here - there) > UNLIKE * max(here, there):
                found.append(f"{here:.0f} {what} tokens a request against {there:.0f}, at {level.title}")
    return [f"NOT THE SAME WORK: {line}" for line in found]
