"""Print what a checkpoint is: `python -m llm.checkpoint checkpoints/causette`. Loads no weights."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path

from llm.checkpoint import Checkpoint, find_checkpoint, open_checkpoint, prove_prompts
from llm.checkpoint.record import expected_shapes
from llm.errors import CheckpointError


def inspect(checkpoint: Checkpoint) -> str:
    """A short report, one fact per line."""
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    shapes = expected_shapes(config)
    proved = prove_prompts(checkpoint)
    facts = {
        "checkpoint": f"{checkpoint.path} ({checkpoint.kind})",
        "name": checkpoint.name,
        "digest": checkpoint.digest,
        "parameters": f"{sum(map(math.prod, shapes.values())):,} in {len(shapes)} tensors",
        "config": ", ".join(f"{name} {value}" for name, value in asdict(config).items()),
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size} ids",
        "template": checkpoint.template.name,
        "defaults": ", ".join(f"{name} {value!r}" for name, value in asdict(checkpoint.defaults).items()),
        "samples": f"{proved}, rendered as trained" if proved else "none, so nothing proves the prompt",
    }
    lines = [f"{name:<12}{value}" for name, value in facts.items()]
    return "\n".join(lines + [f"{'note':<12}{note}" for note in checkpoint.notes])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "path", nargs="?", type=Path, help="file or folder; the default checkpoint when left out"
    )
    parser.add_argument(
        "--n-head", type=int, help="query heads of a state dict, which its shapes do not tell"
    )
    options = parser.parse_args(argv)
    try:
        path = options.path or find_checkpoint(Path.cwd())[0]
        print(inspect(open_checkpoint(path, num_heads=options.n_head)))
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
