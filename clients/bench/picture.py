"""The picture of a load test: tokens/s, and the percentiles of waits and gaps, over the levels.

    >>> draw(report, Path("load.png"))

Refuses to know how the figures came about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clients.bench.report import Report

PERCENTILES = (("", "p50", "-"), ("_p95", "p95", "--"), ("_p99", "p99", ":"))


def draw(report: Report, image: Path) -> None:
    """Write the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second of import, only for a picture
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    speeds, waits, gaps = figure.subplots(1, 3)
    _draw_speeds(speeds, report)
    _draw_times(waits, report, "ttft", "time to first token (ms)")
    _draw_times(gaps, report, "gap", "gap between tokens (ms)")
    models = " : ".join(server.target.model for server in report.servers)
    figure.suptitle(f"{models}; medians of {report.args.rounds} rounds", fontsize=9)
    image.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(image)  # type: ignore[no-untyped-call]


def _draw_speeds(axes: Any, report: Report) -> None:
    width = 0.8 / len(report.servers)
    for number, server in enumerate(report.servers):
        places = [place + width * number for place in range(len(report.levels))]
        heights = [row["tokens_per_s"] or 0 for row in server.rows]
        bars = axes.bar(places, heights, width, label=server.name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    _finish(axes, report, "tokens per second", width * (len(report.servers) - 1) / 2)


def _draw_times(axes: Any, report: Report, name: str, title: str) -> None:
    places = range(len(report.levels))
    for server in report.servers:
        color = None
        for suffix, label, style in PERCENTILES:
            heights = [row[f"{name}{suffix}_ms"] or float("nan") for row in server.rows]
            (line,) = axes.plot(places, heights, f"o{style}", color=color, label=f"{server.name} {label}")
            color = line.get_color()
    axes.set_yscale("log")
    _finish(axes, report, title)


def _finish(axes: Any, report: Report, title: str, shift: float = 0.0) -> None:
    unit = "streams" if report.levels[0].rate is None else "requests per second"
    ticks = [place + shift for place in range(len(report.levels))]
    axes.set_xticks(ticks, labels=[level.name for level in report.levels])
    axes.set(title=title, xlabel=unit)
    axes.grid(alpha=0.3, axis="y", which="both")
    axes.legend(fontsize=8)
