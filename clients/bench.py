"""Load test through HTTP: time to first token, gap between tokens, tokens/s at several numbers of streams.

    python -m clients.bench --url http://127.0.0.1:8000 --streams 1,4,16
    python -m clients.bench --spawn --checkpoint checkpoints/causette --offline offline.json

The work is that of `causerie bench-offline`: greedy, 64 prompt tokens, 64 new ones that nothing ends early.
Client and server often share the cores, so the CPU time both spend per token stands beside the speed, and the
share of the offline engine's speed beside that. Refuses to know the model: everything comes from the API and,
for CPU time, from /health and /proc. What is sent and how it is timed is in `load.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clients.child import ChildServer
from clients.client import DEFAULT_URL, AsyncClient
from clients.load import Load, Run, measure, medians
from clients.wire import JSON, KEY_VARIABLE, ClientError, is_loopback, key_from_environment

DEFAULT_NUM_SEQS = 16
NUM_TOKENS = 64
"""Of a prompt and of a reply, as offline; of a small model at most half of its positions each."""

LEGEND = "medians; µs is CPU time per token: the client's, the server's, of that the event loop's"

COLUMNS = (  # title, key of a level's figures, format
    ("streams", "streams", "d"),
    ("TTFT ms", "ttft_ms", ".1f"),
    ("p95", "ttft_p95_ms", ".1f"),
    ("gap ms", "gap_ms", ".2f"),
    ("p95", "gap_p95_ms", ".2f"),
    ("tokens/s", "tokens_per_s", ".1f"),
    ("× first", "speedup", ".2f"),
    ("offline", "offline_share", ".0%"),
    ("client µs", "client_cpu_us_per_token", ".0f"),
    ("server µs", "server_cpu_us_per_token", ".0f"),
    ("loop µs", "loop_cpu_us_per_token", ".0f"),
    ("steps", "num_steps", ".0f"),
)


def table(report: Mapping[int, Mapping[str, float | None]]) -> str:
    """The report for people, one line a level; columns nobody filled are left out."""
    columns = [c for c in COLUMNS if any(row.get(c[1]) is not None for row in report.values())]
    lines = ["  ".join(f"{title:>9}" for title, _, _ in columns)]
    for row in report.values():
        cells = ("–" if row.get(key) is None else format(row[key], form) for _, key, form in columns)
        lines.append("  ".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a request failed, 2 for options or a server that cannot be used."""
    args = _parse(argv)
    try:
        offline = offline_speeds(args.offline) if args.offline is not None else {}
        with _server(args) as (url, server_pid):
            model, runs = asyncio.run(_measure(args, url, server_pid))
    except (ClientError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    report = _report(runs, offline)
    answers = [answer for level in runs.values() for run in level for answer in run.answers]
    errors = [answer.error for answer in answers if answer.error is not None]
    ignored = sorted({name.strip() for answer in answers for name in answer.ignored.split(",")} - {""})
    where = "client and server together" if is_loopback(url) else "the client's"
    print(f"hardware   {hardware()}, {where}")
    print(f"work       {_work(model, args, report)}")
    print(table(report))
    print(f"           {LEGEND}")
    if offline:
        print(
            f"           offline is the share of the speed in {args.offline}{_unlike(args.offline, report)}"
        )
    if ignored:
        print(f"ignored    by the server: {', '.join(ignored)}")
    if errors:
        print(f"errors     {len(errors)} of {len(answers)} requests failed, the first with: {errors[0]}")
    line = {
        "bench": "http",
        "hardware": hardware(),
        "url": url,
        "model": model,
        "prompt_tokens": args.prompt_tokens,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "rounds": args.rounds,
        "requests": args.requests,
        "num_errors": len(errors),
        "ignored_params": ignored,
        "streams": {str(num_streams): row for num_streams, row in report.items()},
    }
    print(json.dumps(line, ensure_ascii=False))
    return 1 if errors else 0


async def _measure(
    args: argparse.Namespace, url: str, server_pid: int | None
) -> tuple[str, dict[int, list[Run]]]:
    """The model's id and the runs of all levels."""
    async with AsyncClient(url, args.api_key) as client:
        models = {str(model["id"]): model for model in await client.models()}
        model = args.model or next(iter(models), "default")
        limit = models.get(model, {}).get("max_model_len")
        _fill_in(args, limit if isinstance(limit, int) else None)
        pid = server_pid if server_pid is not None else _local_pid(url, await client.health())
        fields = {"max_tokens": args.max_tokens, "ignore_eos": True, "temperature": args.temperature}
        load = Load(client, {**fields, "model": args.model}, pid)
        if args.prompt_tokens:
            await load.fit(args.prompt_tokens)
        return model, await measure(load, args.requests, args.rounds)


def _fill_in(args: argparse.Namespace, limit: int | None) -> None:
    """The lengths that were not given, by the rule of the offline bench."""
    for name in ("prompt_tokens", "max_tokens"):
        if getattr(args, name) is None:
            setattr(args, name, NUM_TOKENS if limit is None else max(1, min(NUM_TOKENS, limit // 2)))


def _report(
    runs: Mapping[int, list[Run]], offline: Mapping[int, float]
) -> dict[int, dict[str, float | None]]:
    """Medians per level, and beside them what they are compared with."""
    report: dict[int, dict[str, float | None]] = {}
    for num_streams, level in runs.items():
        row = medians(level)
        speed, alone = row["tokens_per_s"], offline.get(num_streams)
        first = next(iter(report.values()), row)["tokens_per_s"]
        row["speedup"] = round(speed / first, 3) if speed is not None and first else None
        row["offline_share"] = round(speed / alone, 4) if speed is not None and alone else None
        num_requests = len(level[0].answers)
        report[num_streams] = {"streams": num_streams, "requests": num_requests, **row}
    return report


def _work(model: str, args: argparse.Namespace, report: Mapping[int, Mapping[str, float | None]]) -> str:
    """What was asked and what came, in one line: tokens differ from max_tokens when replies end early."""
    prompt, reply = _lengths(report)
    requests = ", ".join(map(str, args.requests.values()))
    drawn = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    return (
        f"{model}: {requests} requests a level, each {prompt:.0f} prompt and {reply:.0f} reply tokens "
        f"(at most {args.max_tokens}), {drawn}, median of {args.rounds} rounds in turn"
    )


def _lengths(report: Mapping[int, Mapping[str, float | None]]) -> tuple[float, float]:
    """Prompt and reply tokens of a request, averaged over the last level."""
    row = list(report.values())[-1]
    num_requests = row["requests"] or 1
    return (row["prompt_tokens"] or 0) / num_requests, (row["completion_tokens"] or 0) / num_requests


def _unlike(path: Path, report: Mapping[int, Mapping[str, float | None]]) -> str:
    """A warning when the offline bench did other work than this one: the share is then no share."""
    line = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
    then = [line.get(name) for name in ("prompt_tokens", "new_tokens")]
    if None in then or all(abs(a - b) <= 0.1 * b for a, b in zip(_lengths(report), then, strict=True)):
        return ""
    return f", which had {then[0]} prompt and {then[1]} new tokens: NOT THE SAME WORK"


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """URL and process id of the server under test: the one given, or one of our own."""
    if not args.spawn:
        yield args.url, args.server_pid
        return
    checkpoint = [] if args.checkpoint is None else ["--checkpoint", args.checkpoint]
    num_seqs = str(max(DEFAULT_NUM_SEQS, *args.requests))
    key = {} if args.api_key is None else {KEY_VARIABLE: args.api_key}
    with ChildServer([*checkpoint, "--max-num-seqs", num_seqs], environment=key) as server:
        yield server.url, server.pid


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a server through HTTP.")
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default %(default)s)")
    parser.add_argument("--spawn", action="store_true", help="start a server, measure it, stop it")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="what a spawned server serves (default: its own choice)"
    )
    parser.add_argument(
        "--api-key", default=key_from_environment(), help=f"bearer token (default: ${KEY_VARIABLE})"
    )
    parser.add_argument("--model", help="model id (default: the server's first)")
    parser.add_argument("--streams", default="1,4,16", help="levels, comma-separated (default %(default)s)")
    parser.add_argument(
        "--requests", help="per level, one number or one each (default: 4 a stream, at least 8)"
    )
    half = f"default: {NUM_TOKENS}, or what half of the model's positions allow"
    parser.add_argument(
        "--prompt-tokens", type=int, help=f"lengthen prompts to this; 0 sends them as they are ({half})"
    )
    parser.add_argument("--max-tokens", type=int, help=f"length of a reply ({half})")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, greedy, as offline")
    parser.add_argument("--rounds", type=int, default=3, help="of all levels in turn (default %(default)s)")
    parser.add_argument(
        "--server-pid", type=int, help="process to read CPU time of (default: the one /health names)"
    )
    parser.add_argument(
        "--offline", type=Path, metavar="FILE", help="JSON line of `causerie bench-offline` to compare with"
    )
    args = parser.parse_args(argv)
    if args.checkpoint is not None and not args.spawn:
        parser.error("--checkpoint needs --spawn")
    try:
        args.requests = parse_levels(args.streams, args.requests)
    except ValueError as error:
        parser.error(str(error))
    if args.rounds < 1 or (args.max_tokens is not None and args.max_tokens < 1):
        parser.error("--rounds and --max-tokens must be at least 1")
    if args.prompt_tokens is not None and args.prompt_tokens < 0:
        parser.error("--prompt-tokens must be at least 0")
    return args


def parse_levels(streams: str, requests: str | None) -> dict[int, int]:
    """Requests by number of streams, in the order given; ValueError says what is wrong."""
    levels = _counts("--streams", streams)
    counts = [max(8, 4 * n) for n in levels] if requests is None else _counts("--requests", requests)
    if len(counts) == 1:
        counts *= len(levels)
    if len(counts) != len(levels):
        raise ValueError(f"--requests has {len(counts)} numbers for {len(levels)} levels of --streams")
    return dict(zip(levels, counts, strict=True))


def _counts(flag: str, text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"{flag} must be whole numbers from 1, separated by commas, got {text!r}")
    return counts


def offline_speeds(path: Path) -> dict[int, float]:
    """Tokens/s by number of streams from the last line of an offline bench's output.

    Raises:
        OSError, ValueError: it cannot be read, or is not that.
    """
    try:
        levels = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])["streams"]
        return {int(num_streams): float(row["tokens_per_s"]) for num_streams, row in levels.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{path}: the last line is not the JSON line of an offline bench") from None


def hardware() -> str:
    """Processor and the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {cores} cores"


def _local_pid(url: str, health: JSON) -> int | None:
    """The pid /health names, unless it is another machine's or a container's own numbering."""
    pid = health.get("pid")
    if not isinstance(pid, int) or not is_loopback(url):
        return None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return pid if b"server" in command or b"causerie" in command else None


if __name__ == "__main__":
    sys.exit(main())
