"""The kernel's instruction sets give the bits of plain C, and plain C gives what the formulas say.

`kernel_matmul` is one matrix times rows, through the rounding that a step does; the formula in numpy is its
oracle, in float64. Whole steps are compared between the libraries to the bit.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm.adapt.quant import GROUP, Format, QuantTensor
from llm.batch import Batch, Chunk
from llm.runner.native.binding import FORMATS, Matrix, load
from llm.runner.native.build import NativeUnavailable, built_library, sanitizer_preload
from llm.runner.native.pack import PackedMatrix, pack, unpack
from llm.runner.native.runner import NativeRunner
from llm.runner.native.weights import padded
from llm.sequence import Sequence as Tokens
from tests.llm.native_models import (
    CONFIGS,
    SCORED,
    bits_of,
    ids,
    isas,
    mixed,
    native,
    random_groups,
    run,
    same_bits,
    tables,
)

ROOT = Path(__file__).parent.parent.parent
ISAS = isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="needs a CPU with AVX2 and a C compiler")
ALL = ["portable", *ISAS]
KINDS = sorted(FORMATS)
Floats = NDArray[np.float32]


@cache
def library(isa: str) -> ctypes.CDLL:
    return load(built_library(isa))


def random_matrix(kind: str, rows: int, columns: int, seed: int) -> PackedMatrix:
    if kind == "f32":
        generator = torch.Generator().manual_seed(seed)
        return pack(torch.randn(rows, columns, generator=generator) / columns**0.5)
    quant: Format = kind  # type: ignore[assignment]
    return pack(random_groups(quant, rows, columns, seed))


def multiply(isa: str, packed: PackedMatrix, x: Floats, bias: Floats | None = None) -> Floats:
    """x (T, in) → (T, out). The library reads from memory that ends where it should."""
    kept = None if bias is None else padded(torch.from_numpy(bias))
    matrix = Matrix(
        packed.panels.ctypes.data,
        None if kept is None else kept.ctypes.data,
        FORMATS[packed.format],
        packed.num_out,
        packed.num_in,
    )
    x = np.ascontiguousarray(x, np.float32)
    y = np.full((len(x), packed.num_out), np.nan, np.float32)
    library(isa).kernel_matmul(ctypes.byref(matrix), x.ctypes.data, len(x), y.ctypes.data)
    return y


def random_rows(num_rows: int, num_in: int, seed: int, size: float = 1.0) -> Floats:
    rng = np.random.default_rng(seed)
    rows: Floats = (rng.standard_normal((num_rows, num_in)) * size).astype(np.float32)
    return rows


def rounded(x: Floats) -> NDArray[np.float64]:
    """Rows as an integer format sees them: 32 numbers become whole multiples of their largest / 127."""
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))).reshape(len(x), -1, GROUP)
    top = np.abs(groups).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 1e-30)
    quants = np.rint(groups * inverse).astype(np.float64)  # halves to even
    scaled: NDArray[np.float64] = quants * (top / np.float32(127)).astype(np.float64)
    return scaled.reshape(len(x), -1)[:, : x.shape[1]]


def by_formula(packed: PackedMatrix, x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The product in float64, and the sum of the sizes of what was added: what rounding is measured by."""
    weights = unpack(packed).numpy().astype(np.float64)
    seen = x.astype(np.float64) if packed.format == "f32" else rounded(x)
    return seen @ weights.T, np.abs(seen) @ np.abs(weights).T


SHAPES = {
    "rows": st.integers(1, 37),
    "num_out": st.integers(1, 70),
    "num_in": st.integers(1, 200),
    "seed": st.integers(0, 2**32 - 1),
    "with_bias": st.booleans(),
    "size": st.sampled_from([1e-38, 1e-31, 1e-20, 1.0, 1.0, 1e5, 1e30]),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(**SHAPES)
def test_every_instruction_set_has_the_bits_of_plain_c(
    kind: str, rows: int, num_out: int, num_in: int, seed: int, with_bias: bool, size: float
) -> None:
    packed = random_matrix(kind, num_out, num_in, seed)
    x = random_rows(rows, packed.num_in, seed, size)
    bias = random_rows(1, num_out, seed + 1)[0] if with_bias else None
    expected = multiply("portable", packed, x, bias)
    assert np.isfinite(expected).all()
    for isa in ISAS:
        assert np.array_equal(bits_of(multiply(isa, packed, x, bias)), bits_of(expected)), isa


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(**SHAPES)
def test_plain_c_does_what_the_formula_says(
    kind: str, rows: int, num_out: int, num_in: int, seed: int, with_bias: bool, size: float
) -> None:
    packed = random_matrix(kind, num_out, num_in, seed)
    x = random_rows(rows, packed.num_in, seed, size)
    bias = random_rows(1, num_out, seed + 1)[0] if with_bias else np.zeros(num_out, np.float32)
    expected, sizes = by_formula(packed, x)
    found = multiply("portable", packed, x, bias if with_bias else None)
    error = np.abs(found - (expected + bias))
    # Sums of float32 one after the other, below float32's smallest normal number in steps of 1.4e-45.
    assert (error <= 2e-6 * (sizes + np.abs(bias)) + packed.num_in * 1.5e-45).all(), error.max()


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_in_every_company(kind: str, isa: str) -> None:
    """37 rows pass through tiles of 8, 4, 2 and 1; alone each passes through the last."""
    packed = random_matrix(kind, 40, 130, seed=3)
    x = random_rows(37, packed.num_in, seed=4)
    together = multiply(isa, packed, x)
    for num_rows in (1, 2, 3, 5, 8, 15):
        for start in range(0, 37, num_rows):
            part = multiply(isa, packed, x[start : start + num_rows])
            assert np.array_equal(part.view(np.int32), together[start : start + num_rows].view(np.int32))


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_beyond_128_rows_and_many_panels(kind: str, isa: str) -> None:
    """More rows than are multiplied at once."""
    packed = random_matrix(kind, 35, 64, seed=5)
    x = random_rows(300, packed.num_in, seed=6)
    expected, sizes = by_formula(packed, x)
    assert (np.abs(multiply(isa, packed, x) - expected) <= 2e-6 * sizes).all()


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_give_the_bias_alone(kind: str, isa: str) -> None:
    packed = random_matrix(kind, 20, 64, seed=1)
    bias = random_rows(1, 20, seed=2)[0]
    for zero in (0.0, -0.0):
        x = np.full((5, 64), zero, np.float32)
        assert np.array_equal(multiply(isa, packed, x, bias), np.tile(bias, (5, 1)))
        assert not multiply(isa, packed, x).any()


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_no_number_touches_no_other(kind: str, isa: str, bad: float) -> None:
    """Wherever in the row it is, and whatever tile the row shares."""
    packed = random_matrix(kind, 40, 96, seed=1)
    x = random_rows(19, 96, seed=2)
    good = multiply(isa, packed, x)
    for row, column in ((0, 0), (7, 95), (8, 31), (12, 48), (18, 64)):
        spoilt = x.copy()
        spoilt[row, column] = bad
        found = multiply(isa, packed, spoilt)
        others = np.arange(19) != row
        assert np.array_equal(found[others].view(np.int32), good[others].view(np.int32))


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(kind: str, isa: str, bad: float) -> None:
    """Wherever in its group it is: a model that overflows says so, instead of something."""
    packed = random_matrix(kind, 16, 96, seed=1)
    for column in range(96):
        x = random_rows(1, 96, seed=2)
        x[0, column] = bad
        assert not np.isfinite(multiply(isa, packed, x)).any(), column


@pytest.mark.parametrize("isa", ALL)
def test_all_256_bytes_of_q8_0_mean_what_they_say(isa: str) -> None:
    """A file may hold -128, though no quantiser writes it."""
    codes = np.arange(-128, 128, dtype=np.int8).reshape(8, 32)
    blocks = np.concatenate([np.full((8, 1), 0.5, np.float16).view(np.uint8), codes.view(np.uint8)], axis=1)
    packed = pack(QuantTensor("q8_0", (8, 32), torch.from_numpy(blocks)))
    for x in (np.full((3, 32), -1.0), np.full((3, 32), 1.0), random_rows(3, 32, seed=1)):
        rows = x.astype(np.float32)
        expected, sizes = by_formula(packed, rows)
        assert (np.abs(multiply(isa, packed, rows) - expected) <= 2e-6 * sizes).all()


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
def test_the_largest_sums_are_exact(kind: str, isa: str) -> None:
    """Every product at its largest, all of one sign: no instruction's narrow sums may run over."""
    code, scale = {"q8_0": (127, 1.0), "q4_0": (0xFF, 1.0), "q4_1": (0xFF, 1.0)}[kind]
    head = [scale] if kind != "q4_1" else [scale, 0.0]
    body = np.full((16, 32 if kind == "q8_0" else 16), code, np.uint8)
    for sign in (1, -1):
        block = np.concatenate([np.tile(np.array(head, np.float16).view(np.uint8), (16, 1)), body], axis=1)
        quant: Format = kind  # type: ignore[assignment]
        packed = pack(QuantTensor(quant, (16, 32), torch.from_numpy(block)))
        x = np.full((9, 32), 127.0 * sign, np.float32)  # scale 1
        largest = {"q8_0": 127, "q4_0": 7, "q4_1": 15}[kind]
        assert (multiply(isa, packed, x) == 32 * 127 * sign * largest).all()


Options = dict[str, object]
STEPS: list[tuple[str, Options]] = [(name, {"quantization": "none"}) for name in CONFIGS]
STEPS += [
    (name, {"quantization": kind})
    for name in ("gpt2", "qwen3", "window", "odd widths", "odd gpt", "groups of 7")
    for kind in ("int8", "int4")
]
STEPS += [("wide", {"quantization": "auto", "stored": kind}) for kind in ("q8_0", "q4_0", "q4_1")]


@pytest.mark.parametrize("half_kv", [False, True])
@pytest.mark.parametrize(("name", "options"), STEPS, ids=str)
def test_whole_steps_have_the_same_bits_everywhere(name: str, options: Options, half_kv: bool) -> None:
    """Every instruction set, with one thread or two: prompts, decoders, embeddings, mixed."""
    if options.get("stored") and name == "wide":
        assert CONFIGS[name].width % GROUP, "inputs that are no whole groups, too"
    rng = random.Random(f"{name}{options}")
    vocab_size = CONFIGS[name].vocab_size
    lengths = [140, 3, 30]
    made = [
        Tokens(ids(rng, length, vocab_size), SCORED, block_ids=table)
        for length, table in zip(lengths, tables(rng, lengths), strict=True)
    ]
    made[-1].embeds = True
    batches = list(mixed(rng, made, most=40))
    batches += [Batch([Chunk(s, position, 1) for s in made[:1]]) for position in range(120, 130)]

    def runner(isa: str, num_threads: int) -> NativeRunner:
        return native(name, half_kv=half_kv, library=built_library(isa), num_threads=num_threads, **options)  # type: ignore[arg-type]

    expected = run(runner("portable", 1), batches)
    assert all(np.isfinite(row).all() for row in expected[0].values())
    for isa, num_threads in [(isa, n) for isa in ISAS for n in (1, 2)]:
        found = run(runner(isa, num_threads), batches)
        assert same_bits(found[0], expected[0]), (isa, num_threads)
        assert same_bits(found[1], expected[1]), (isa, num_threads)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_no_byte_is_read_or_written_where_it_should_not(isa: str) -> None:
    """Compiled with address and undefined-behaviour checks, in a process of its own."""
    try:
        preload = sanitizer_preload()
        built_library(isa, sanitize=True)
    except NativeUnavailable as reason:
        pytest.skip(str(reason))
    own = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/llm/native_sanitized.py"), isa],
        env=os.environ | own,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "nothing found\n"
