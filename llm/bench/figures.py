"""From readings to figures: medians over the rounds, each beside its ceiling, and the tables people read.

The rows are the JSON line's. Refuses to know how anything was measured.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llm.bench.ceiling import Ceilings, Machine
from llm.bench.fit import fit
from llm.bench.streams import Run
from llm.config import ModelConfig

Figures = dict[str, Any]
"""The JSON line of `causerie bench --offline`, or a row of it."""


@dataclass(slots=True)
class Readings:
    """Every round's: runs of the engine by streams, seconds of the runner by level, what the hardware did."""

    runs: dict[int, list[Run]] = field(default_factory=lambda: defaultdict(list))
    decode: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    prefill: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    limits: list[Ceilings] = field(default_factory=list)

    @property
    def ceilings(self) -> Ceilings:
        """Medians, like all other figures."""
        return Ceilings(
            statistics.median(c.read_rate for c in self.limits),
            statistics.median(c.op_rate for c in self.limits),
        )


def engine_rows(
    readings: Readings, machine: Machine, config: ModelConfig, context: int
) -> dict[str, Figures]:
    """The engine by number of streams, beside the floor of decode steps at that context."""
    rows = {}
    for n, runs in readings.runs.items():
        floor, bound = readings.ceilings.floor(machine.decode(config, n, context))
        speed = statistics.median(r.tokens_per_s for r in runs)
        rows[str(n)] = {
            "ttft_ms": round(statistics.median(r.ttft_ms for r in runs), 2),
            "gap_ms": round(statistics.median(r.gap_ms for r in runs), 3),
            "tokens_per_s": round(speed, 1),
            "ceiling_tokens_per_s": round(n / floor, 1),
            "share": round(speed * floor / n, 4),
            "bound": bound,
            "host_ms": round(statistics.median(r.host_ms for r in runs), 3),
            "host_share": round(statistics.median(r.host_share for r in runs), 4),
        }
    return rows


def decode_rows(readings: Readings, machine: Machine, config: ModelConfig) -> list[Figures]:
    """The runner's decode steps."""
    rows = []
    for (n, context), times in readings.decode.items():
        seconds = statistics.median(times)
        floor, bound = readings.ceilings.floor(machine.decode(config, n, context))
        rows.append(
            {
                "streams": n,
                "context": context,
                "ms": round(seconds * 1e3, 4),
                "floor_ms": round(floor * 1e3, 4),
                "tokens_per_s": round(n / seconds, 1),
                "share": round(floor / seconds, 4),
                "bound": bound,
            }
        )
    return rows


def prefill_rows(readings: Readings, machine: Machine, config: ModelConfig) -> list[Figures]:
    """The runner's prefills."""
    rows = []
    for length, times in readings.prefill.items():
        seconds = statistics.median(times)
        floor, bound = readings.ceilings.floor(machine.prefill(config, length))
        rows.append(
            {
                "tokens": length,
                "tokens_per_s": round(length / seconds, 1),
                "ceiling_tokens_per_s": round(length / floor, 1),
                "share": round(floor / seconds, 4),
                "bound": bound,
            }
        )
    return rows


def fitted(rows: list[Figures]) -> Figures | None:
    """What decode steps are made of, and the parts of the largest; None where the levels do not tell."""
    found = fit((row["streams"], row["context"], row["ms"] / 1e3) for row in rows)
    if found is None:
        return None
    last = rows[-1]
    shares = found.shares(last["streams"], last["context"])
    return {
        "weights_ms": round(found.weights * 1e3, 4),
        "row_ms": round(found.row * 1e3, 4),
        "token_us": round(found.token * 1e6, 4),
        "worst": round(found.worst, 4),
        "shares": {name: round(share, 4) for name, share in shares.items()},
    }


def _fitted_line(parts: Figures, last: Figures) -> str:
    shares = ", ".join(f"{share:.0%} {name}" for name, share in parts["shares"].items())
    return (
        f"fitted     {parts['weights_ms']:.2f} ms for the weights, {parts['row_ms']:.3f} ms a stream, "
        f"{parts['token_us']:.2f} µs a token it sees, within {parts['worst']:.0%}; "
        f"{last['streams']} streams at {last['context']}: {shares}"
    )


def tables(report: Figures) -> Iterator[str]:
    """The report's rows for people, line by line."""
    rates = f"{report['read_gb_per_s']:.1f} GB/s read, {report['giga_ops_per_s']:.0f} GOP/s multiplied"
    yield f"hardware   {report['hardware']}; {rates}"
    engine = report["streams"]
    yield "engine     scheduler and sampler included; host is what is not the runner's, per step"
    yield from _table(
        ("streams", "TTFT ms", "gap ms", "tokens/s", "× first", "host ms", "host", "ceiling", "share"),
        [
            (
                n,
                f"{row['ttft_ms']:.1f}",
                f"{row['gap_ms']:.2f}",
                f"{row['tokens_per_s']:.1f}",
                f"{row['tokens_per_s'] / next(iter(engine.values()))['tokens_per_s']:.2f}",
                f"{row['host_ms']:.2f}",
                f"{row['host_share']:.0%}",
                f"{row['ceiling_tokens_per_s']:.0f}",
                _share(row),
            )
            for n, row in engine.items()
        ],
    )
    yield "runner     alone, a decode step"
    yield from _table(
        ("streams", "context", "ms", "floor ms", "tokens/s", "share"),
        [
            (
                str(row["streams"]),
                str(row["context"]),
                f"{row['ms']:.2f}",
                f"{row['floor_ms']:.2f}",
                f"{row['tokens_per_s']:.1f}",
                _share(row),
            )
            for row in report["decode"]
        ],
    )
    if report["fitted"] is not None:
        yield _fitted_line(report["fitted"], report["decode"][-1])
    yield "runner     alone, one prompt"
    yield from _table(
        ("tokens", "tokens/s", "ceiling", "share"),
        [
            (
                str(row["tokens"]),
                f"{row['tokens_per_s']:.0f}",
                f"{row['ceiling_tokens_per_s']:.0f}",
                _share(row),
            )
            for row in report["prefill"]
        ],
    )
    for reason in report["left_out"]:
        yield f"left out   {reason}"


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    for cells in (titles, *rows):
        yield "".join(f"{cell:>12}" if i == len(cells) - 1 else f"{cell:>10}" for i, cell in enumerate(cells))


def _share(row: Figures) -> str:
    """Of the ceiling that is nearer."""
    return f"{row['share']:.0%} {row['bound']}"
