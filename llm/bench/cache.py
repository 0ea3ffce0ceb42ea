"""The course's comparison: generation that recomputes everything against generation with a KV cache.

    causerie bench-cache --checkpoint checkpoints/causette

Counts attention work (query-key pairs, all layers and heads) for a 32-token prompt and 100 new tokens, and
measures both loops of generate.py on that and on a 400-token prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

from llm.bench import positive
from llm.checkpoint import load_model, open_checkpoint
from llm.config import SamplingParams
from llm.errors import CauserieError
from llm.generate import generate_cached, generate_naive
from llm.hardware import describe
from llm.model import Decoder
from llm.placement import resolve_devices, resolve_dtype


def attention_pairs(num_prompt: int, num_new: int) -> tuple[int, int]:
    """Query-key pairs of one head of one layer: (recomputing all, with a cache).

    Each new token needs a forward pass; without a cache a pass over n tokens attends n(n+1)/2 causal pairs,
    with one it attends n, after a prefill of the prompt.
    """
    lengths = range(num_prompt, num_prompt + num_new)
    naive = sum(n * (n + 1) // 2 for n in lengths)
    cached = num_prompt * (num_prompt + 1) // 2 + sum(n for n in lengths if n > num_prompt)
    return naive, cached


def compare(model: Decoder, num_prompt: int, num_new: int, rounds: int) -> dict[str, float]:
    """Both loops in turn on the same prompt; medians in seconds, and the share of equal tokens."""
    prompt = torch.randint(50, (num_prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    params = SamplingParams(max_tokens=num_new, temperature=0.0)
    seconds: dict[str, list[float]] = {"naive": [], "cached": []}
    replies = []
    for _ in range(rounds):
        for name, loop in (("naive", generate_naive), ("cached", generate_cached)):
            start = time.perf_counter()
            replies.append(loop(model, prompt, params)[0])
            seconds[name].append(time.perf_counter() - start)
    assert len(replies[0]) == num_new
    naive, cached = (statistics.median(seconds[name]) for name in ("naive", "cached"))
    same = sum(a == b for a, b in zip(replies[0], replies[1], strict=True)) / num_new
    return {
        "prompt_tokens": num_prompt,
        "new_tokens": num_new,
        "naive_s": round(naive, 3),
        "cached_s": round(cached, 3),
        "speedup": round(naive / cached, 2),
        "same_tokens": same,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line entry; exit status 2 for a checkpoint that cannot be used."""
    parser = argparse.ArgumentParser(
        description="Cached against naive generation: work counted, time measured."
    )
    parser.add_argument(
        "--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=positive, default=3, help="both loops in turn, medians are printed")
    args = parser.parse_args(argv)
    try:
        device = resolve_devices(args.device)[0]
        checkpoint = open_checkpoint(args.checkpoint)
        model = load_model(checkpoint, device, resolve_dtype("auto", device, checkpoint))
    except CauserieError as error:
        print(error, file=sys.stderr)
        return 2
    config = model.config
    num_new = min(100, config.num_positions // 2)
    prompts = sorted({min(32, config.num_positions - num_new), min(400, config.num_positions - num_new)})
    print(f"hardware   {describe(device)}")
    shape = f"{config.num_layers} layers, {config.num_heads} heads, width {config.width}"
    print(f"model      {checkpoint.name}, {shape}")
    work = f"{num_new} new tokens, greedy; naive computes logits at all positions"
    print(f"work       {work}; median of {args.rounds}")
    generate_cached(model, [0], SamplingParams(max_tokens=4, temperature=0.0))
    rows = []
    heads = config.num_layers * config.num_heads
    for num_prompt in prompts:
        naive, cached = attention_pairs(num_prompt, num_new)
        row = compare(model, num_prompt, num_new, args.rounds)
        rows.append(row | {"naive_pairs": naive * heads, "cached_pairs": cached * heads})
        print(
            f"{num_prompt:>4} + {num_new}: attention {naive * heads:,} pairs naive, {cached * heads:,} cached"
            f" ({naive / cached:.1f}× less); {row['naive_s']:.2f} s naive, {row['cached_s']:.2f} s cached: "
            f"{row['speedup']:.1f}× faster"
        )
    print(json.dumps({"bench": "cache", "hardware": describe(device), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
