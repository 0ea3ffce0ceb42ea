"""LoRA in a training run: the flags, what is attached to the base before it, and the folder written after it.

    causerie train sft --data chat.jsonl --init BASE --lora-rank 8 --out adapters/mine

Only A and B learn; the base stays on disk as it is, so any checkpoint that can be served can be adapted.
Refuses to know steps and data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm.adapt.adapter import Adapter
from llm.adapt.lora import attach, attached, new_adapter
from llm.adapt.peft import MAX_ALPHA, MAX_RANK, save_adapter
from llm.adapt.targets import ALL, choose, find_targets
from llm.checkpoint import Checkpoint, Sample
from llm.checkpoint.samples import dump_samples
from llm.errors import OptionError
from llm.model import Decoder


def add_lora_flags(parser: argparse.ArgumentParser) -> None:
    """An adapter instead of a model."""
    add = parser.add_argument_group("adapter (with --init)").add_argument
    add("--lora-rank", type=int, metavar="R", help="train a LoRA adapter of this rank, not the model")
    add("--lora-alpha", type=float, metavar="A", help="it counts A/R (default: 2 × R)")
    add(
        "--lora-targets",
        metavar="PATTERN",
        help=f'names of matrices, such as "q_proj,v_proj" or "*.0.*" (default: {ALL})',
    )


def start_adapter(options: argparse.Namespace, checkpoint: Checkpoint, model: Decoder) -> Adapter | None:
    """Attach what --lora-rank asks for; None without it.

    Raises:
        OptionError: a flag out of bounds, or a pattern that names nothing.
    """
    if options.lora_rank is None:
        return None
    check_flags(options)
    alpha = 2.0 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
    if not 0 < alpha <= MAX_ALPHA:
        raise OptionError(f"--lora-alpha must be above 0 and at most {MAX_ALPHA:g}, got {alpha}")
    targets = choose(find_targets(model.config), options.lora_targets or ALL)
    adapter = new_adapter(targets, rank=options.lora_rank, alpha=alpha, seed=options.seed)
    attach(model, adapter)
    return replace(adapter, base=checkpoint.name, base_digest=checkpoint.digest)


def check_flags(options: argparse.Namespace) -> None:
    """Refuse flags of an adapter that cannot be, before anything is loaded."""
    if options.lora_rank is None:
        given = [name for name in ("lora_alpha", "lora_targets") if getattr(options, name) is not None]
        if given:
            raise OptionError(f"--{given[0].replace('_', '-')} needs --lora-rank")
        return
    if not 1 <= options.lora_rank <= MAX_RANK:
        raise OptionError(f"--lora-rank must be from 1 to {MAX_RANK}, got {options.lora_rank}")
    if options.init is None:
        raise OptionError("--lora-rank adapts a model: name it with --init")


def describe(adapter: Adapter | None) -> str:
    """What a resumed run must have in common with the one it goes on from; "" without an adapter."""
    if adapter is None:
        return ""
    parts = "".join(f"{part.target.name} {part.rank} {part.scale};" for part in adapter.parts)
    return f"/{adapter.base_digest} {parts}"


def save_trained(path: Path, model: Decoder, adapter: Adapter, samples: Sequence[Sample], card: str) -> None:
    """Write what is attached to the model as an adapter's folder, with its card and the proof of its prompts.

    Args:
        adapter: as the run began with it.
    """
    trained = replace(adapter, parts=tuple(attached(model)))
    save_adapter(path, trained, model.config, {"README.md": card, "samples.jsonl": dump_samples(samples)})
