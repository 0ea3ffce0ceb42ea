"""Load test through HTTP: time to first token, gaps, tokens/s and goodput, of one server or of two in turn.

    causerie bench http://127.0.0.1:8000 --words 48 --max-tokens 64 --streams 1,4,16
    causerie bench --spawn --checkpoint checkpoints/causette --offline offline.json
    causerie bench --spawn --against-command "llama-server -m model.gguf -np 16" --rounds 5

The work is by default that of `causerie bench --offline`: greedy, 64 prompt tokens, 64 new ones that nothing
ends early. Client and server often share the cores, so the CPU time both spend per token stands beside the
speed, and the share of the offline engine's speed beside that. Refuses to know the model: everything comes
from the API and, for CPU time and memory, from /health and /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from clients.bench.figures import Slo
from clients.bench.load import Rounds, contest
from clients.bench.options import fill_in, is_contest, parse
from clients.bench.picture import draw
from clients.bench.places import started, started_peer
from clients.bench.process import peak_memory_mb
from clients.bench.report import Report
from clients.bench.summary import UNLIKE, Server, compare, lengths, summarise
from clients.bench.target import Place, Target
from clients.bench.work import Work
from clients.wire import ClientError, root_url

DEFAULT_NUM_SEQS = 16
NAMES = ("server", "against")

Measured = tuple[Work, list[Target], list[Rounds]]


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a request failed, 2 for options or a server that cannot be used."""
    args = parse(argv)
    try:
        offline = offline_speeds(args.offline) if args.offline is not None else {}
        _make_folders(args.json, args.png)
        report = _report(args)
    except (ClientError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if offline:
        _stand_beside(report, args.offline, offline)
    print(report.text())
    print(report.line())
    if args.json is not None:
        args.json.write_text(report.line() + "\n", encoding="utf-8")
    if args.png is not None:
        draw(report, args.png)
    return 1 if any(server.errors for server in report.servers) else 0


def _report(args: argparse.Namespace) -> Report:
    """Start what is to be started, measure it, and read its memory before it is stopped."""
    with ExitStack() as stack:
        work, targets, results = asyncio.run(_measure(args, _places(args, stack)))
        peaks = [None if target.pid is None else peak_memory_mb(target.pid) for target in targets]
    slo = Slo(args.slo_ttft_ms, args.slo_gap_ms)
    servers = [summarise(NAMES[i], target, results, i, slo) for i, target in enumerate(targets)]
    for server, peak in zip(servers, peaks, strict=True):
        server.peak_memory_mb = None if peak is None else round(peak, 1)
    return Report(args, work, servers, compare(results, slo) if is_contest(args) else [])


async def _measure(args: argparse.Namespace, places: Sequence[Place]) -> Measured:
    """What was sent, to whom, and the runs of all levels."""
    fields = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    async with AsyncExitStack() as stack:
        targets = []
        for index, place in enumerate(places):
            if index and args.against_temperature is not None:
                fields |= {"temperature": args.against_temperature}
            target = Target(place, fields | {"ignore_eos": True}, args.timeout)
            targets.append(await stack.enter_async_context(target))
            await target.prepare()
        kinds = fill_in(args, targets[0].max_model_len)
        work = Work(kinds, args.seed, args.words is not None, args.cached_prefix, await targets[0].fit())
        results = await contest(targets, work, args.levels, args.rounds, _tell)
    return work, targets, results


def _places(args: argparse.Namespace, stack: ExitStack) -> list[Place]:
    """The servers under test: given, or started here one after the other, so that its start is its own."""
    places = []
    if args.spawn:
        checkpoint = [] if args.checkpoint is None else ["--checkpoint", args.checkpoint]
        num_seqs = str(max([DEFAULT_NUM_SEQS, *(level.streams or 0 for level in args.levels)]))
        arguments = [*checkpoint, "--max-num-seqs", num_seqs]
        places.append(stack.enter_context(started(arguments, args.api_key, args.model)))
    else:
        places.append(Place(root_url(args.url), args.api_key, args.model, args.server_pid))
    key, model = args.against_api_key, args.against_model
    if args.against_command is not None:
        places.append(stack.enter_context(started_peer(args.against_command, key, model)))
    elif args.against is not None:
        places.append(Place(root_url(args.against), key, model, args.against_pid))
    return places


def _stand_beside(report: Report, path: Path, offline: dict[int, float]) -> None:
    """Put the share of the offline engine's speed into the figures, and say when the work was another."""
    server = report.servers[0]
    for level, row in zip(report.levels, server.rows, strict=True):
        speed, alone = row["tokens_per_s"], offline.get(level.streams or 0)
        row["offline_share"] = round(speed / alone, 4) if speed is not None and alone else None
    report.notes.append(f"offline is the share of the speed in {path}{_unlike(path, server)}")


def _unlike(path: Path, server: Server) -> str:
    """A warning when the offline bench did other work than this one: the share is then no share."""
    line = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
    then = [line.get(name) for name in ("prompt_tokens", "new_tokens")]
    pairs = zip(lengths(server.rows[-1]), then, strict=True)
    if None in then or all(abs(a - b) <= UNLIKE * b for a, b in pairs):
        return ""
    return f", which had {then[0]} prompt and {then[1]} new tokens: NOT THE SAME WORK"


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


def _make_folders(*files: Path | None) -> None:
    """Minutes of measuring should not end in a file that cannot be written."""
    for file in files:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("a").close()


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
