"""The kernel's work under address and undefined-behaviour checks, as a script: it ends with 0 or is stopped.

    LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \\
        python tests/llm/native_sanitized.py avx2

Every array that the kernel reads or writes is allocated by itself and exactly as long as it says, so that one
byte too far is seen. test_native_kernel.py runs this.
"""

from __future__ import annotations

import ctypes
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llm.adapt.quant import BLOCK_BYTES
from llm.batch import Batch, Chunk
from llm.config import EngineConfig, SamplingParams
from llm.runner.native.binding import FORMATS, Matrix, load
from llm.runner.native.build import built_library
from llm.runner.native.memory import ALIGNMENT, Memory
from llm.runner.native.pack import pack
from llm.sampler import Asked
from llm.sequence import Sequence as Tokens
from tests.llm.native_models import CONFIGS, SCORED, ids, mixed, native, random_groups, run, tables

libc = ctypes.CDLL(None)
libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]


def exactly(_: Memory, num_bytes: int) -> NDArray[np.uint8]:
    """Memory.take, each array apart; never freed."""
    pointer = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(pointer), ALIGNMENT, max(num_bytes, 1)) == 0
    assert pointer.value
    memory = (ctypes.c_uint8 * num_bytes).from_address(pointer.value)
    array: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
    array[:] = 0
    return array


def products(library: ctypes.CDLL) -> None:
    """Matrices of odd shapes, any number of rows."""
    rng = random.Random(1)
    for kind in BLOCK_BYTES:
        for _ in range(25):
            packed = pack(random_groups(kind, rng.randint(1, 40), rng.randint(1, 140), rng.randint(0, 99)))
            matrix = Matrix(
                packed.panels.ctypes.data, None, FORMATS[packed.format], packed.num_out, packed.num_in
            )
            num_rows = rng.randint(1, 37)
            x = np.random.default_rng(0).standard_normal((num_rows, packed.num_in)).astype(np.float32)
            x[rng.randrange(num_rows), rng.randrange(packed.num_in)] = rng.choice(
                [1e38, 1e-40, np.inf, np.nan]
            )
            y = np.empty((num_rows, packed.num_out), np.float32)
            library.kernel_matmul(ctypes.byref(matrix), x.ctypes.data, num_rows, y.ctypes.data)


def draws(path: Path, num_threads: int) -> None:
    """Rows of all kinds from vocabularies of all remainders, without a byte behind the last row or mask."""
    config = replace(CONFIGS["one layer"], vocab_size=700)
    sampler = native(config, library=path, num_threads=num_threads).sampler
    rng = random.Random(num_threads)
    for vocab_size in (1, 2, 15, 16, 33, 63, 64, 65, 129, 640, 700):
        for size in (3.0, 1e-6, 0.0):
            asking = [anyone(rng) for _ in range(rng.randint(1, 9))]
            logits = exactly(Memory(), 4 * len(asking) * vocab_size).view(np.float32)
            logits[:] = np.random.default_rng(vocab_size).standard_normal(len(logits)) * size
            logits[rng.randrange(len(logits))] = rng.choice([0.0, 1e38, -1e38, np.inf, -np.inf, np.nan])
            rows = torch.from_numpy(logits.reshape(len(asking), vocab_size))
            num_masks, mask_bytes = sum(s.matcher is not None for s in asking), 4 * (vocab_size // 32 + 1)
            masks = exactly(Memory(), num_masks * mask_bytes).reshape(num_masks, mask_bytes)
            masks[:] = rng.choice([255, 170, 1])
            tokens = sampler.draw(rows, Asked.next(asking), vocab_size, masks if num_masks else None)
            wanted = [rng.choice([None, 0, 1, 20]) for _ in asking]
            sampler.measure(rows, range(len(asking)), tokens, wanted, vocab_size)


def anyone(rng: random.Random) -> Tokens:
    """A sequence with any parameters; some name ids that the vocabulary does not have."""
    params = SamplingParams(
        9,
        temperature=rng.choice([0.0, 1e-30, 1.0, 5.0]),
        top_k=rng.choice([0, 1, 40, 300, 699]),
        top_p=rng.choice([1.0, 0.9, 1e-300]),
        min_p=rng.choice([0.0, 0.1]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 1.0]),
        logit_bias=tuple((rng.randrange(800), 5.0) for _ in range(rng.choice([0, 3]))),
        stop_token_ids=frozenset(ids(rng, 2, 800)),
        min_tokens=rng.choice([0, 9]),
        seed=rng.getrandbits(64),
    )
    matcher: Any = object() if rng.random() < 0.3 else None
    return Tokens(ids(rng, 70, 800), params, ids(rng, rng.choice([0, 200]), 800), matcher=matcher)


def steps(name: str, library: Path, num_threads: int, quantization: str, half_kv: bool) -> None:
    """Prompts, decoders and embeddings mixed, in all blocks there are, the first and the last too."""
    rng = random.Random(f"{name}{num_threads}")
    config = CONFIGS[name]
    lengths = [config.num_positions, 1, 33]
    needed = sum(-(-length // 16) for length in lengths)
    runner = native(
        name,
        bounds(name, needed),
        quantization=quantization,  # type: ignore[arg-type]
        half_kv=half_kv,
        num_threads=num_threads,
        library=library,
    )
    made = [
        Tokens(ids(rng, length, config.vocab_size), SCORED, block_ids=table)
        for length, table in zip(lengths, tables(rng, lengths, needed), strict=True)
    ]
    made[-1].embeds = True
    run(runner, mixed(rng, made, most=60))
    run(runner, [Batch([Chunk(made[0], 0, config.num_positions)])])
    last = made[0].block_ids
    run(
        runner,
        [Batch([Chunk(made[1], 0, 1)], copies=[(last[0], last[-1]), (0, needed - 1), (needed - 1, 0)])],
    )
    run(runner, [Batch([Chunk(s, len(s) - 1, 1) for s in made])])


def bounds(name: str, num_blocks: int) -> EngineConfig:
    """As many blocks as are used, as many rows as the largest step has."""
    config = CONFIGS[name]
    return EngineConfig(
        config.num_positions,
        max_num_seqs=3,
        max_num_batched_tokens=config.num_positions,
        num_blocks=num_blocks,
    )


def main(isa: str) -> int:
    """All of it, on one instruction set."""
    path = built_library(isa, sanitize=True)
    patch = pytest.MonkeyPatch()
    patch.setattr(Memory, "take", exactly)
    products(load(path))
    for num_threads in (1, 2):
        draws(path, num_threads)
    for name in (
        "gpt2",
        "odd widths",
        "odd gpt",
        "odd heads",
        "one layer",
        "window",
        "heads of 80",
        "groups of 7",
    ):
        for num_threads in (1, 2):
            steps(name, path, num_threads, "none", half_kv=False)
            steps(name, path, num_threads, "int8", half_kv=True)
        steps(name, path, 2, "int4", half_kv=True)
    print("nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
