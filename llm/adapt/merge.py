"""`causerie merge`: a base and its adapter → one folder of ours, served like any other, by the kernel too.

    causerie merge checkpoints/causette adapters/pirate --out checkpoints/pirate

Refuses to know how an adapter came about.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llm.adapt.base import open_for
from llm.adapt.lora import merge
from llm.checkpoint import Checkpoint, load_model, open_checkpoint, save_folder
from llm.checkpoint.wording import write_wording
from llm.errors import CauserieError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fold a LoRA adapter into the weights of its base.")
    add = parser.add_argument
    add("base", help="checkpoint of any format")
    add("adapter", type=Path, help="folder in PEFT's layout")
    add("--out", type=Path, required=True, help="servable folder to write")
    add("--dtype", choices=DTYPES, default="float16", help="of the weights written (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        fold(open_checkpoint(options.base), options.adapter, options.out, DTYPES[options.dtype])
    except (CauserieError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {options.base} with {options.adapter}, in {options.dtype}")
    return 0


def fold(checkpoint: Checkpoint, path: Path, out: Path, dtype: torch.dtype) -> None:
    """Merge in float32 and save.

    Raises:
        CheckpointError: the adapter does not fit, or the result cannot be saved.
    """
    # Before the weights are read: it cannot be saved.
    write_wording(checkpoint.tokenizer, checkpoint.template, checkpoint.defaults)
    adapter, samples = open_for(checkpoint, path)
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    merge(model, adapter)
    made_of = f"{checkpoint.name} ({checkpoint.digest}) with the adapter {path.name} ({adapter.digest})"
    save_folder(
        out,
        model,
        checkpoint.tokenizer,
        checkpoint.template,
        checkpoint.defaults,
        samples or checkpoint.samples,
        f"# {out.name}\n\n{made_of}.\n",
        dtype,
    )
