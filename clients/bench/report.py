"""What was measured, for people and as one line of JSON.

    >>> report = Report(args, work, servers)
    >>> print(report.text()); print(report.line())

Refuses to know how the figures came about; `figures.py` says what each means.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clients.bench.figures import Ratio, Row
from clients.bench.process import hardware
from clients.bench.summary import Server, lengths, unlike
from clients.bench.work import Level, Work
from clients.wire import is_loopback

Columns = Sequence[tuple[str, str, str]]  # title, key of a row, format

SPEEDS: Columns = (
    ("tokens/s", "tokens_per_s", ".1f"),
    ("decoding", "decode_tokens_per_s", ".1f"),
    ("TTFT ms", "ttft_ms", ".1f"),
    ("gap ms", "gap_ms", ".2f"),
    ("e2e ms", "e2e_ms", ".0f"),
    ("first ms", "first_ttft_ms", ".1f"),
    ("cached", "cached_share", ".0%"),
    ("good/s", "goodput_per_s", ".2f"),
    ("good", "goodput_share", ".0%"),
    ("× first", "speedup", ".2f"),
    ("offline", "offline_share", ".0%"),
    ("client µs", "client_cpu_us_per_token", ".1f"),
    ("server µs", "server_cpu_us_per_token", ".0f"),
    ("loop µs", "loop_cpu_us_per_token", ".0f"),
    ("host µs", "host_cpu_us_per_token", ".0f"),
    ("steps", "num_steps", ".0f"),
)
TIMES: Columns = tuple(
    (f"{title}{suffix}", f"{name}{key}_ms", form)
    for title, name, form in (("TTFT ", "ttft", ".1f"), ("gap ", "gap", ".2f"), ("e2e ", "e2e", ".0f"))
    for suffix, key in (("p50", ""), ("p90", "_p90"), ("p95", "_p95"), ("p99", "_p99"), ("max", "_max"))
    if key != "_max" or name == "gap"
)
RATIOS = {"tokens_per_s": "tokens/s", "decode_tokens_per_s": "decoding", "ttft_ms": "TTFT"} | {
    "gap_ms": "gap",
    "gap_p99_ms": "gap p99",
    "e2e_ms": "e2e",
}
LEGEND = (
    "medians; µs is CPU time per token: the client's, the server's, of that the event loop's and the "
    "engine's beside its model (host)"
)


@dataclass(slots=True)
class Report:
    """All that is said in the end.

    Attributes:
        ratios: of the first server to the second, in the levels' order; none without a second.
        notes: further lines.
    """

    args: argparse.Namespace
    work: Work
    servers: Sequence[Server]
    ratios: Sequence[Mapping[str, Ratio]] = ()
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For people."""
        where = all(is_loopback(server.target.place.url) for server in self.servers)
        together = "client and server together" if where else "the client's"
        lines = [f"hardware   {hardware()}, {together}"]
        lines += [f"{server.name:<10} {server.about()}" for server in self.servers]
        lines += [f"work       {self._work()}", "", *self._table(SPEEDS), f"           {LEGEND}", ""]
        lines += self._table(TIMES)
        if self.ratios:
            lines += ["", "server : against in the same round, median (least–most)", *self._ratios()]
        lines += [f"NOTE       {note}" for note in [*self.notes, *unlike(self.levels, self.servers)]]
        for server in self.servers:
            if server.errors:
                failed = f"{len(server.errors)} of {server.num_requests} requests failed"
                lines.append(f"errors     {server.name}: {failed}, the first with: {server.errors[0]}")
        return "\n".join(lines)

    def line(self) -> str:
        """For programs."""
        args, work = self.args, self.work
        report = {
            "bench": "http",
            "hardware": hardware(),
            "kinds": [[str(kind.prompt), str(kind.reply), kind.weight] for kind in work.kinds],
            "prompt_unit": "words" if work.in_words else "tokens",
            "cached_prefix": work.prefix,
            "seed": work.seed,
            "temperature": args.temperature,
            "against_temperature": args.against_temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "slo": {"ttft_ms": args.slo_ttft_ms, "gap_ms": args.slo_gap_ms},
            "rounds": args.rounds,
            "requests": {level.name: level.num_requests for level in self.levels},
            **self.servers[0].facts(self.levels),
        }
        for server in self.servers[1:]:
            report["against"] = server.facts(self.levels)
            named = zip(self.levels, self.ratios, strict=True)
            report["ratios"] = {level.name: _rounded(ratios) for level, ratios in named}
        return json.dumps(report, ensure_ascii=False)

    @property
    def levels(self) -> list[Level]:
        """In the order of the command line."""
        levels: list[Level] = self.args.levels
        return levels

    def _work(self) -> str:
        """What was asked and what came: tokens differ from what was asked when replies end early."""
        args = self.args
        requests = ", ".join(str(level.num_requests) for level in self.levels)
        prefix = f", after {self.work.prefix} common tokens" if self.work.prefix else ""
        prompt, reply = lengths(self.servers[0].rows[-1])
        sampling = {"top_p": args.top_p, "top_k": args.top_k}
        drawn = ["greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"]
        drawn += [f"{name} {value:g}" for name, value in sampling.items() if value is not None]
        drawn += [f"against {args.against_temperature:g}"] if args.against_temperature is not None else []
        return (
            f"{requests} requests a level: {self._kinds()}{prefix}; each came to {prompt:.0f} prompt and "
            f"{reply:.0f} reply tokens; {', '.join(drawn)}; seed {self.work.seed}; "
            f"median of {args.rounds} rounds in turn"
        )

    def _kinds(self) -> str:
        """ "48 words → 64", or several with their weights."""
        kinds = self.work.kinds
        unit = "words" if self.work.in_words else "tokens"
        prompts = [f"{kind.prompt} {unit}" if kind.prompt.least else "questions" for kind in kinds]
        weights = [f" ×{kind.weight:g}" if len(kinds) > 1 else "" for kind in kinds]
        parts = zip(prompts, kinds, weights, strict=True)
        return ", ".join(f"{prompt} → {kind.reply}{weight}" for prompt, kind, weight in parts)

    def _table(self, columns: Columns) -> list[str]:
        rows = [(level, server, row) for i, level in enumerate(self.levels) for server, row in self._at(i)]
        shown = [column for column in columns if any(row.get(column[1]) is not None for *_, row in rows)]
        title = "streams" if self.levels[0].rate is None else "req/s"
        head = [f"{title:>8}", *([f"{'':<8}"] if len(self.servers) > 1 else [])]
        lines = ["  ".join([*head, *(f"{title:>9}" for title, _, _ in shown)])]
        for level, server, row in rows:
            head = [f"{level.name:>8}", *([f"{server:<8}"] if len(self.servers) > 1 else [])]
            cells = ("–" if row.get(key) is None else format(row[key], form) for _, key, form in shown)
            lines.append("  ".join([*head, *(f"{cell:>9}" for cell in cells)]))
        return lines

    def _at(self, index: int) -> list[tuple[str, Row]]:
        return [(server.name, server.rows[index]) for server in self.servers]

    def _ratios(self) -> list[str]:
        names = [name for name in RATIOS if any(name in ratios for ratios in self.ratios)]
        lines = ["  ".join([f"{'':>8}", *(f"{RATIOS[name]:>18}" for name in names)])]
        for level, ratios in zip(self.levels, self.ratios, strict=True):
            cells = (_ratio(ratios.get(name)) for name in names)
            lines.append("  ".join([f"{level.name:>8}", *(f"{cell:>18}" for cell in cells)]))
        return lines


def _ratio(ratio: Ratio | None) -> str:
    return "–" if ratio is None else f"{ratio.median:.2f} ({ratio.least:.2f}–{ratio.most:.2f})"


def _rounded(ratios: Mapping[str, Ratio]) -> dict[str, list[float]]:
    return {name: [round(value, 4) for value in ratio] for name, ratio in ratios.items()}
