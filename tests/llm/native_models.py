"""Small random networks for the native runner, one per switch of ModelConfig, and batches by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from llm.adapt.adapter import Adapter
from llm.adapt.quant import BLOCK_BYTES, GROUP, Format, QuantTensor
from llm.batch import Batch, Chunk
from llm.config import EngineConfig, ModelConfig, SamplingParams
from llm.model import Decoder
from llm.runner import Runner
from llm.runner.native.build import NativeUnavailable, built_library, fast_isas
from llm.runner.native.runner import NativeRunner
from llm.runner.native.weights import ModelWeights, Quantization
from llm.sequence import Sequence as Tokens
from tests.adapters import room_for

BLOCK = 16
VOCAB = 37
SCORED = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
"""The logits of every position are wanted."""

BASE = ModelConfig(
    vocab_size=VOCAB,
    num_positions=176,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    width=32,
    ffn_width=64,
)
LLAMA = replace(BASE, norm="rms", activation="swiglu", rope_theta=10000.0, num_heads=4, head_size=8)
CONFIGS = {
    "course": BASE,
    "tied": replace(BASE, tied_head=True),
    "no norm bias": replace(BASE, norm_bias=False, norm_eps=0.1),
    "attention bias": replace(BASE, attention_bias=True),
    "out bias": replace(BASE, attention_out_bias=True),
    "ffn bias": replace(BASE, ffn_bias=True),
    "gpt2": replace(
        BASE,
        activation="gelu_tanh",
        attention_bias=True,
        attention_out_bias=True,
        ffn_bias=True,
        tied_head=True,
    ),
    "rms": replace(BASE, norm="rms"),
    "swiglu": replace(BASE, activation="swiglu"),
    "swiglu with bias": replace(BASE, activation="swiglu", ffn_bias=True),
    "rotary": replace(BASE, rope_theta=10000.0),
    "rotary factors": replace(
        BASE, rope_theta=500.0, head_size=6, rope_factors=(1.0, 2.5, 8.0), rope_attention_scale=1.25
    ),
    "llama": replace(LLAMA, num_kv_heads=4),
    "groups of 2": replace(LLAMA, num_kv_heads=2),
    "groups of 3": replace(LLAMA, num_heads=3, num_kv_heads=1),
    "groups of 7": replace(LLAMA, num_heads=14, num_kv_heads=2, attention_bias=True),
    "qwen3": replace(LLAMA, num_kv_heads=2, head_size=24, qk_norm=True, tied_head=True),
    "heads of 80": replace(LLAMA, num_heads=2, num_kv_heads=1, head_size=80, qk_norm=True),
    "odd widths": replace(LLAMA, width=20, ffn_width=28, num_heads=3, num_kv_heads=1, head_size=10),
    "odd gpt": replace(BASE, width=20, ffn_width=44, head_size=6, ffn_bias=True, attention_out_bias=True),
    "odd heads": replace(BASE, num_heads=3, num_kv_heads=3, head_size=5, attention_bias=True),
    "wide": replace(LLAMA, width=48, ffn_width=136, num_kv_heads=2, vocab_size=129),
    "window": replace(LLAMA, num_kv_heads=2, num_layers=3, sliding_window=7, num_full_layers=1),
    "wide window": replace(BASE, num_layers=1, sliding_window=50),
    "sees itself": replace(BASE, num_layers=1, sliding_window=1),
    "one layer": replace(BASE, num_layers=1, num_heads=1, num_kv_heads=1, width=4, ffn_width=1, vocab_size=3),
}


def isas() -> list[str]:
    """Those that this CPU runs beside the portable one, the best first; empty where nothing does."""
    try:
        built_library("portable")
        return fast_isas()
    except NativeUnavailable:
        return []


@cache
def random_model(which: str | ModelConfig, seed: int = 0) -> Decoder:
    """Every number of it random, biases and norms too, so that none can be left out unseen."""
    model = Decoder(CONFIGS[which] if isinstance(which, str) else which)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(0.0, 1.0, generator=generator)
            if parameter.ndim == 2 and key not in ("tokens.weight", "positions.weight"):
                parameter.mul_(1.5 / parameter.shape[1] ** 0.5)
            elif "norm" in key and key.endswith("weight"):
                parameter.mul_(0.3).add_(1.0)
            elif key.endswith("bias"):
                parameter.mul_(0.3)
    return model.eval()


def native(
    which: str | ModelConfig,
    config: EngineConfig | None = None,
    *,
    quantization: Quantization = "none",
    half_kv: bool = False,
    num_threads: int = 1,
    library: Path | None = None,
    stored: Format | None = None,
    seed: int = 0,
    adapters: Mapping[str, Adapter] | None = None,
) -> NativeRunner:
    """A runner of a random model; with `stored`, its matrices are groups of any bytes, as a file may hold."""
    model = random_model(which, seed)
    weights = [
        (key, random_groups(stored, weight.shape[0], weight.shape[1], i))
        if stored is not None and weight.ndim == 2 and key != "positions.weight"
        else (key, weight.detach())
        for i, (key, weight) in enumerate(model.named_parameters())
    ]
    given = adapters or {}
    runner = NativeRunner(
        model.config,
        weights,
        config or engine_config(model.config),
        quantization=quantization,
        half_kv=half_kv,
        num_threads=num_threads,
        library=library,
        adapter_room=room_for(given),
    )
    for name, adapter in given.items():
        runner.shelf.prepare(name, adapter)()
    return runner


def kept(runner: NativeRunner) -> tuple[ModelWeights, NDArray[np.uint8], NDArray[np.uint8]]:
    """What the kernel's pointers point to: weights, keys and values of all blocks."""
    weights, keys, values, _ = cast(tuple[Any, Any, Any, Any], runner.kernel._keep)
    return weights, keys, values


def engine_config(model: ModelConfig, num_blocks: int = 48, **bounds: int) -> EngineConfig:
    """Whole sequences in one step, if a test wants that."""
    most = {"max_num_seqs": 16, "max_num_batched_tokens": 256} | bounds
    return EngineConfig(model.num_positions, block_size=BLOCK, num_blocks=num_blocks, **most)


def random_groups(kind: Format, rows: int, columns: int, seed: int = 0) -> QuantTensor:
    """Any whole numbers that a quantiser writes, inputs rounded up to whole groups; scales near what the sum
    of so many inputs asks for.
    """
    rng = np.random.default_rng(seed)
    groups = -(-columns // GROUP)
    blocks = rng.integers(0, 256, (rows, groups, BLOCK_BYTES[kind]), dtype=np.uint8)
    largest = 127 if kind == "q8_0" else 8
    scales = rng.uniform(0.5, 1.5, (rows, groups, 1)) / largest / columns**0.5 * rng.choice([-1, 1])
    blocks[..., :2] = scales.astype(np.float16).view(np.uint8)
    if kind == "q4_1":
        blocks[..., 2:4] = (scales * -7.5).astype(np.float16).view(np.uint8)
    if kind == "q8_0":
        codes = blocks[..., 2:].view(np.int8)
        codes[codes == -128] = 127
    return QuantTensor(kind, (rows, groups * GROUP), torch.from_numpy(blocks.reshape(rows, -1)))


def ids(rng: random.Random, count: int, vocab_size: int = VOCAB) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]


def tables(rng: random.Random, lengths: Sequence[int], num_blocks: int = 48) -> list[list[int]]:
    """Blocks for sequences of so many tokens, dealt in random order."""
    free = rng.sample(range(num_blocks), num_blocks)
    return [[free.pop() for _ in range(-(-length // BLOCK))] for length in lengths]


def stretches(rng: random.Random, length: int, most: int) -> Iterator[tuple[int, int]]:
    """(start, length) from 0 to the end, of random lengths."""
    start = 0
    while start < length:
        size = min(rng.randint(1, most), length - start)
        yield start, size
        start += size


def mixed(rng: random.Random, sequences: Sequence[Tokens], most: int) -> Iterator[Batch]:
    """Batches in which each sequence is computed in stretches, beside a random choice of the others."""
    todo = {s.id: (s, list(stretches(rng, len(s), most))) for s in sequences}
    while todo:
        chosen = rng.sample(sorted(todo), rng.randint(1, len(todo)))
        chunks = []
        for key in chosen:
            sequence, left = todo[key]
            chunks.append(Chunk(sequence, *left.pop(0)))
            if not left:
                del todo[key]
        yield Batch(chunks)


Rows = dict[tuple[int, int], NDArray[np.float32]]
"""(sequence id, position) → what was computed there."""


def run(runner: Runner, batches: Iterator[Batch] | Sequence[Batch]) -> tuple[Rows, Rows]:
    """Logits and hidden states of every position that asked for them, copied."""
    logits: Rows = {}
    hidden: Rows = {}
    for batch in batches:
        out = runner.run(batch)
        where = [(c.sequence, p) for c in batch.chunks for p in range(c.start, c.stop)]
        for row, values in zip(batch.rows, out.logits, strict=True):
            sequence, position = where[row]
            logits[sequence.id, position] = values.numpy().copy()
        embedded = [(s, p) for s, p in where if s.embeds]
        for (sequence, position), values in zip(embedded, out.hidden, strict=True):
            hidden[sequence.id, position] = values.numpy().copy()
    return logits, hidden


def same_bits(a: Rows, b: Rows) -> bool:
    """Every row of both to the bit; one NaN is as good as another."""
    return a.keys() == b.keys() and all(np.array_equal(bits_of(a[key]), bits_of(b[key])) for key in a)


def bits_of(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The bits, with every NaN the same."""
    canonical: NDArray[np.float32] = np.where(np.isnan(values), np.float32(np.nan), values)
    return canonical.view(np.int32)
