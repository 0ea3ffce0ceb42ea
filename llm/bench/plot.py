"""The picture of an offline bench: decode steps over the context, prefills, and their ceilings as dashes.

    >>> draw(json.loads(Path("offline.json").read_text()), Path("offline.png"))

Refuses to know how the figures came about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.bench.figures import Figures


def draw(report: Figures, image: Path) -> None:
    """Write the PNG; a half without figures stays empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second of import, only for a picture
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    steps, prompts = figure.subplots(1, 2)
    _draw_decode(steps, report["decode"])
    _draw_prefill(prompts, report["prefill"])
    figure.suptitle(f"{report['model']}: {report['runner']}; {report['hardware']}", fontsize=9)
    image.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(image)  # type: ignore[no-untyped-call]


def _draw_decode(axes: Any, rows: list[Figures]) -> None:
    axes.set(title="decode", xlabel="context (tokens)", ylabel="ms per step")
    if not rows:
        return
    for num_streams in sorted({row["streams"] for row in rows}):
        level = [row for row in rows if row["streams"] == num_streams]
        contexts = [row["context"] for row in level]
        (line,) = axes.plot(contexts, [row["ms"] for row in level], "o-", label=str(num_streams))
        floors = [row["floor_ms"] for row in level]
        axes.plot(contexts, floors, "--", color=line.get_color(), label="_")
    axes.plot([], [], "--", color="gray", label="at the ceiling")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts := sorted({row["context"] for row in rows}), labels=map(str, contexts))
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="streams", fontsize=8)


def _draw_prefill(axes: Any, rows: list[Figures]) -> None:
    axes.set(title="prefill", xlabel="prompt (tokens)", ylabel="tokens per second")
    if not rows:
        return
    places = range(len(rows))
    axes.bar(places, [row["tokens_per_s"] for row in rows], width=0.6)
    for place, row in zip(places, rows, strict=True):
        axes.hlines(row["ceiling_tokens_per_s"], place - 0.4, place + 0.4, color="gray", linestyles="--")
    axes.set_xticks(list(places), labels=[str(row["tokens"]) for row in rows])
    axes.grid(alpha=0.3, axis="y")
