"""What a contest came to: figures and ratios of each piece of work, as a table and for JSON.

    >>> rows = [row(work, figures, programs)]
    >>> print("\\n".join(table(rows, list(programs))))

Refuses to know how the figures came about.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from llm.bench.peers_contest import Figures, Ratio, Work, best, ratio, unit

OURS = "causerie"
TWINS = (("int8", "llama.cpp Q8_0"), ("int4", "llama.cpp Q4_1"))
"""Of ours and theirs, what stores its weights in the same way."""
Row = dict[str, Any]
"""work, figures of each name, ratios of each comparison: what the JSON line holds."""


def row(work: Work, figures: Figures, programs: dict[str, str]) -> Row:
    """One piece of work.

    Args:
        programs: of each contestant's name, ours first.
    """
    compared = {name: found.as_json() for name, found in _ratios(work, figures, programs).items()}
    return {"work": work, "figures": {n: _summary(f) for n, f in figures.items()}, "ratios": compared}


def _summary(figures: list[float]) -> dict[str, float]:
    ends = {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}
    return {key: round(figure, 3) for key, figure in ends.items()}


def _ratios(work: Work, figures: Figures, programs: dict[str, str]) -> dict[str, Ratio]:
    """Our best against the best of each other program, and twins."""
    pairs: dict[str, tuple[str, str]] = {}
    ours = best(work, figures, [name for name, program in programs.items() if program == OURS])
    for program in dict.fromkeys(programs.values()):
        theirs = best(work, figures, [name for name, of in programs.items() if of == program])
        if program != OURS and ours is not None and theirs is not None:
            pairs[f"best : {program}"] = (ours, theirs)
    pairs |= {" : ".join(twins): twins for twins in TWINS}
    found = {title: ratio(work, figures, *pair) for title, pair in pairs.items()}
    return {title: r for title, r in found.items() if r is not None}


def table(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Lines for people: figures with half of their spread, then how many times as fast ours are."""
    lines = _grid("decode: ms/step", names, [r for r in rows if "streams" in r["work"]], "figures")
    lines += _grid("prefill: tokens/s", names, [r for r in rows if "tokens" in r["work"]], "figures")
    titles = list(dict.fromkeys(title for r in rows for title in r["ratios"]))
    return lines + (_grid("times as fast", titles, rows, "ratios") if titles else [])


def _grid(corner: str, columns: Sequence[str], rows: Sequence[Row], key: str) -> list[str]:
    if not rows:
        return []
    width = max(17, *map(len, columns)) + 2
    lines = ["", f"{corner:<20}" + "".join(f"{column:>{width}}" for column in columns)]
    write = _figure if key == "figures" else _range
    for r in rows:
        cells = (write(r[key][column]) if column in r[key] else "–" for column in columns)
        lines.append(f"{_case(r['work']):<20}" + "".join(f"{cell:>{width}}" for cell in cells))
    return lines


def _case(work: Work) -> str:
    if unit(work) == "tokens_per_s":
        return f"{work['tokens']} tokens"
    return f"{work['streams']} × context {work['context']}"


def _figure(of: dict[str, float]) -> str:
    spread = (of["max"] - of["min"]) / 2 / of["median"]
    return f"{of['median']:.{2 if of['median'] < 100 else 0}f} ±{spread:.0%}"


def _range(of: dict[str, float]) -> str:
    return f"{of['median']:.2f} ({of['min']:.2f}–{of['max']:.2f})"
