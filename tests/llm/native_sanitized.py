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
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llm.adapt.quant import BLOCK_BYTES
from llm.config import EngineConfig
from llm.runner.native.binding import FORMATS, Matrix, load
from llm.runner.native.build import built_library
from llm.runner.native.memory import ALIGNMENT, Memory
from llm.runner.native.pack import pack
from llm.scheduler import Batch, Chunk
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
