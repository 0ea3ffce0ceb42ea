"""What a grammar costs: the same streams free and under a JSON schema, in alternating rounds, without HTTP.

    causerie bench-grammar --checkpoint checkpoints/causette --streams 1,16

Greedy; the schema asks for more than there are tokens, so no reply ends early. Ratios are of one round's two
runs, and their median is what counts: a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict

from llm.bench import levels, positive
from llm.bench.offline import fit_work, load
from llm.bench.streams import measure
from llm.checkpoint import open_checkpoint
from llm.errors import CauserieError
from llm.grammar import GrammarSpec
from llm.hardware import describe

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "role": {"enum": ["admin", "editor", "reader"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["name", "age", "role"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1000}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what structured output costs.")
    parser.add_argument(
        "--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--threads",
        type=positive,
        help="default: every usable core",
    )
    parser.add_argument(
        "--streams", type=levels, default="1,16", help="comma-separated (default: %(default)s)"
    )
    parser.add_argument("--prompt-tokens", type=positive)
    parser.add_argument("--new-tokens", type=positive)
    parser.add_argument("--rounds", type=positive, default=7)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option or checkpoint that cannot be used."""
    args = parse(argv)
    try:
        checkpoint = open_checkpoint(args.checkpoint)
        fit_work(args, checkpoint.config.num_positions)
        model = load(args, checkpoint)
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    engine = model.engines[0]
    grammar = model.grammars.compile(GrammarSpec("json_schema", json.dumps(SCHEMA), "schema"))
    print(f"hardware   {describe(engine.runner.device)}")
    print(
        f"work       {args.prompt_tokens} prompt tokens, {args.new_tokens} new, greedy, {args.rounds} rounds"
    )
    work = (args.prompt_tokens, args.new_tokens, engine.vocab_size)
    measure(engine, 1, *work, grammar)
    runs: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for i in range(args.rounds):
        for n in args.streams:
            order = (None, grammar) if i % 2 else (grammar, None)
            speeds = {form is None: measure(engine, n, *work, form).tokens_per_s for form in order}
            runs[n].append((speeds[True], speeds[False]))
    print(f"{'streams':>8} {'free tok/s':>11} {'schema tok/s':>13} {'cost':>7}")
    report = {}
    for n, pairs in runs.items():
        free, formed = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
        cost = 1 - statistics.median(b / a for a, b in pairs)
        report[str(n)] = {"free": round(free, 1), "schema": round(formed, 1), "cost": round(cost, 4)}
        print(f"{n:>8} {free:>11.1f} {formed:>13.1f} {cost:>7.1%}")
    print(json.dumps({"bench": "grammar", "hardware": describe(engine.runner.device), "streams": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
