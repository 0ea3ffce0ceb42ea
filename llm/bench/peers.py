"""Other programs on the same work in the same run: llama.cpp and OpenVINO GenAI beside the runners here.

    python -m llm.bench.peers --checkpoint checkpoints/smollm2-135m-instruct \\
        --llama-python llama/bin/python --llama-model Q8_0=q8_0.gguf --llama-model Q4_0=q4_0.gguf \\
        --openvino-python openvino/bin/python --openvino-model openvino-int8

Decode: a prompt of so many tokens per stream, then greedy steps of one row each, the greatest logit taken.
Prefill: one prompt, up to its first token. Each program runs in a process of its own, by the Python of an
environment that has it; none is a dependency of this project. Ratios are of the two figures of one round, and
their median is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llm.bench import levels, positive
from llm.bench.peers_contest import Contestant, Entry, Work, contest, started
from llm.bench.peers_table import OURS, row, table
from llm.checkpoint import open_checkpoint
from llm.errors import CauserieError, OptionError
from llm.hardware import describe

HERE = Path(__file__).parent
LLAMA = "llama.cpp"
OPENVINO = "OpenVINO GenAI"
FORMATS = ("auto", "int8", "int4", "none")
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


class ModelFile(NamedTuple):
    """NAME=FILE of a command line."""

    name: str
    path: Path


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for what cannot be compared."""
    args = parse(argv)
    try:
        check(args)
        works = pieces(args)
        with started(entries(args)) as contestants:
            head = print_head(args, contestants)
            with disturbance() if args.disturb else nullcontext():
                figures = contest(contestants, works, args.rounds, lambda line: print(line, file=sys.stderr))
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    programs = {c.entry.name: c.entry.program for c in contestants}
    rows = [row(work, of_work, programs) for work, of_work in zip(works, figures, strict=True)]
    print("\n".join(table(rows, list(programs))))
    line = json.dumps(head | {"rows": rows}, ensure_ascii=False)
    print(line)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(line + "\n")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare with other programs on the same work.")
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/smollm2-135m-instruct", help="(default: %(default)s)")
    add(
        "--formats",
        type=formats,
        default="auto,int8,int4",
        help=f"ours, some of {', '.join(FORMATS)} (default: %(default)s)",
    )
    add("--eager", action="store_true", help="also our eager runner, at one stream")
    add("--llama-python", help="of an environment with llama-cpp-python")
    add("--llama-model", type=model_file, action="append", default=[], metavar="NAME=FILE.gguf")
    add("--openvino-python", help="of an environment with openvino-genai")
    add("--openvino-model", type=Path, metavar="DIR", help="from optimum-cli export openvino")
    add("--rounds", type=positive, default=5, help="medians are printed (default: %(default)s)")
    add("--threads", type=positive, default=2, help="of every program (default: %(default)s)")
    add("--streams", type=levels, default="1,4,16")
    add("--contexts", type=levels, default="64,512,2048", help="tokens before the steps, of each stream")
    add("--steps", type=positive, default=32, help="decode steps of a measurement (default: %(default)s)")
    add("--prefill", type=levels, default="512", help="lengths of prompts (default: %(default)s)")
    add("--disturb", action="store_true", help="a busy process runs beside all rounds")
    add("--json", type=Path, help="also write the JSON line to this file")
    return parser.parse_args(argv)


def formats(text: str) -> list[str]:
    """Names of ours, each once, or none; argparse turns the ValueError into its own message."""
    names = list(dict.fromkeys(text.split(","))) if text else []
    if not set(names) <= set(FORMATS):
        raise ValueError
    return names


def model_file(text: str) -> ModelFile:
    """ "Q8_0=models/q8_0.gguf" in two."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return ModelFile(name, Path(path))


def check(args: argparse.Namespace) -> None:
    """
    Raises:
        CauserieError: options that do not go together, or do not fit the checkpoint.
    """
    for program in ("llama", "openvino"):
        if bool(getattr(args, f"{program}_python")) != bool(getattr(args, f"{program}_model")):
            raise OptionError(f"--{program}-python and --{program}-model need each other")
    if not (args.llama_python or args.openvino_python or args.eager):
        raise OptionError("nobody to compare with: --llama-python, --openvino-python or --eager")
    names = [name for name, _ in args.llama_model]
    if len(set(names)) < len(names):
        raise OptionError(f"--llama-model: the names {', '.join(names)} are not distinct")
    for path in [path for _, path in args.llama_model] + [args.openvino_model]:
        if path is not None and not path.exists():
            raise OptionError(f"{path}: no such file or folder")
    limit = open_checkpoint(args.checkpoint).config.num_positions
    if longest(args) > limit:
        raise OptionError(
            f"--contexts {max(args.contexts)} with --steps {args.steps}, or --prefill {max(args.prefill)}, "
            f"exceeds the model's {limit} positions"
        )


def longest(args: argparse.Namespace) -> int:
    """Positions that the work needs; two steps come before those that are timed."""
    contexts: list[int] = args.contexts
    prefill: list[int] = args.prefill
    steps: int = args.steps
    return max(max(contexts) + steps + 2, max(prefill) + 1)


def entries(args: argparse.Namespace) -> list[Entry]:
    """Whoever takes part: ours first."""
    ours = {
        "checkpoint": args.checkpoint,
        "threads": args.threads,
        "streams": max(args.streams),
        "length": longest(args),
    }

    def own(**load: str) -> list[str]:
        options = json.dumps(ours | {"load": load})
        return [sys.executable, "-m", "llm.bench.peers_worker", str(HERE / "peers_own.py"), options]

    found = [Entry(name, OURS, own(quantization=name, runner="native")) for name in args.formats]
    if args.eager:
        found.append(Entry("eager", "eager", own(quantization="none", runner="eager"), is_single))
    for name, path in args.llama_model:
        options = {"model": str(path), "threads": args.threads}
        found.append(Entry(f"{LLAMA} {name}", LLAMA, peer(args.llama_python, "llama", options)))
    if args.openvino_model:
        options = {"model": str(args.openvino_model), "threads": args.threads, "cache_gb": 2}
        found.append(Entry("OpenVINO", OPENVINO, peer(args.openvino_python, "openvino", options)))
    return found


def peer(python: str, contestant: str, options: dict[str, Any]) -> list[str]:
    """A command. Isolated: neither this project nor the files beside the script hide what a peer imports."""
    scripts = [str(HERE / f"peers_{name}.py") for name in ("worker", contestant)]
    return [python, "-I", *scripts, json.dumps(options)]


def is_single(work: Work) -> bool:
    """One stream: with more the eager runner would take most of the time."""
    return bool(work.get("streams", 1) == 1)


def pieces(args: argparse.Namespace) -> list[Work]:
    """The work of one round."""
    decode = [
        {"work": "decode", "streams": n, "context": context, "steps": args.steps}
        for context in args.contexts
        for n in args.streams
    ]
    return decode + [{"work": "prefill", "tokens": n} for n in args.prefill]


def print_head(args: argparse.Namespace, contestants: Sequence[Contestant]) -> dict[str, Any]:
    """What is compared on what, for people; the same for JSON."""
    hardware = describe(torch.device("cpu"))
    load = os.getloadavg()[0]
    busy = ", one busy process beside" if args.disturb else ""
    print(f"hardware   {hardware}; load {load:.1f} before{busy}")
    for contestant in contestants:
        facts = " ".join(str(value) for value in contestant.facts.values())
        print(f"{contestant.entry.name:<20} {facts}")
    print(f"work       {args.steps} greedy steps; {args.threads} threads each; {args.rounds} rounds in turn")
    return {
        "bench": "peers",
        "hardware": hardware,
        "load": round(load, 2),
        "disturbed": args.disturb,
        "checkpoint": Path(args.checkpoint).name,
        "threads": args.threads,
        "steps": args.steps,
        "rounds": args.rounds,
        "contestants": {c.entry.name: c.facts for c in contestants},
    }


@contextmanager
def disturbance() -> Iterator[None]:
    """One process that computes all the time, on whatever core; it ends with this one."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()
