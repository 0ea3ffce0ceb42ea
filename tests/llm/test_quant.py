"""Stored groups: the float values are the reference library's bit for bit, and rows keep their bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

import llm.adapt.quant as quant
from llm.adapt.quant import BLOCK_BYTES, GROUP, Format, QuantTensor

FORMATS = sorted(BLOCK_BYTES)


def random_quant(kind: Format, rows: int, columns: int, seed: int = 0) -> QuantTensor:
    """Every bit pattern of the whole numbers may occur; scales are finite, of either sign, subnormals too."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // GROUP, BLOCK_BYTES[kind]), dtype=np.uint8)
    scales = blocks[..., : 4 if kind == "q4_1" else 2]
    scales[..., 1::2] &= 0xBF  # the exponent's highest bit: no infinity, no NaN
    return QuantTensor(kind, (rows, columns), torch.from_numpy(blocks.reshape(rows, -1)))


def reference(weight: QuantTensor) -> Tensor:
    kind = GGMLQuantizationType[weight.format.upper()]
    return torch.from_numpy(quants.dequantize(weight.data.numpy(), kind))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (7, 96), (64, 2048)])
def test_floats_are_the_reference_librarys_bit_for_bit(kind: Format, rows: int, columns: int) -> None:
    weight = random_quant(kind, rows, columns)
    values = weight.dequantize()
    assert values.dtype == torch.float32 and values.shape == (rows, columns)
    assert torch.equal(values.view(torch.int32), reference(weight).view(torch.int32))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_quantised_matrix_comes_back_within_half_a_step(kind: Format) -> None:
    """Blocks made by the reference library from known numbers, so that a consistent misreading shows."""
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    stored = quants.quantize(x.numpy(), GGMLQuantizationType[kind.upper()])
    weight = QuantTensor(kind, (16, 128), torch.from_numpy(stored))
    step = x.unflatten(1, (-1, GROUP)).abs().amax(-1).max() / {"q8_0": 127, "q4_0": 8, "q4_1": 7.5}[kind]
    assert (weight.dequantize() - x).abs().max() <= step * 1.01


def test_a_block_written_by_hand() -> None:
    """d = 0.5, m = -1; the low halves are 0..15, the high halves all 15."""
    head = np.array([0.5, -1.0], dtype="<f2").tobytes()
    nibbles = bytes(0xF0 | j for j in range(16))
    first, last = torch.arange(16.0), torch.full((16,), 15.0)
    q4_1 = QuantTensor("q4_1", (1, 32), torch.tensor([list(head + nibbles)], dtype=torch.uint8))
    assert torch.equal(q4_1.dequantize()[0], torch.cat([first, last]) * 0.5 - 1)
    q4_0 = QuantTensor("q4_0", (1, 32), torch.tensor([list(head[:2] + nibbles)], dtype=torch.uint8))
    assert torch.equal(q4_0.dequantize()[0], (torch.cat([first, last]) - 8) * 0.5)
    signed = bytes(range(240, 256)) + bytes(range(16))
    q8_0 = QuantTensor("q8_0", (1, 32), torch.tensor([list(head[:2] + signed)], dtype=torch.uint8))
    assert torch.equal(q8_0.dequantize()[0], torch.arange(-16.0, 16.0) * 0.5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_rounded_from_float32_once(kind: Format, dtype: torch.dtype) -> None:
    weight = random_quant(kind, 5, 64)
    out = torch.full((5, 64), torch.nan, dtype=dtype)
    weight.dequantize_into(out)
    assert torch.equal(out, reference(weight).to(dtype))


@pytest.mark.parametrize("kind", FORMATS)
def test_chunks_change_nothing_and_out_may_be_strided(kind: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_quant(kind, 11, 64)
    monkeypatch.setattr(quant, "_CHUNK_BYTES", 3 * 6 * 64)  # chunks of three rows
    out = torch.full((64, 11), torch.nan).t()
    weight.dequantize_into(out)
    assert torch.equal(out, reference(weight))


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_move_with_their_bytes(kind: Format) -> None:
    weight, other = random_quant(kind, 8, 64), random_quant(kind, 3, 64, seed=1)
    order = torch.tensor([6, 0, 3, 3])
    assert torch.equal(weight.select_rows(order).data, weight.data[order])
    assert torch.equal(weight.select_rows(order).dequantize(), weight.dequantize()[order])
    joined = QuantTensor.join([weight, other, weight])
    assert (joined.shape, joined.numel(), joined.nbytes) == ((19, 64), 19 * 64, 19 * 2 * BLOCK_BYTES[kind])
    assert torch.equal(joined.dequantize(), torch.cat([w.dequantize() for w in (weight, other, weight)]))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_scale_is_found_wherever_it_is(kind: Format, bad: float) -> None:
    weight = random_quant(kind, 4, 64)
    assert bool(weight.isfinite().all())
    ends = [2, 4] if kind == "q4_1" else [2]
    for end in ends:
        data = weight.data.clone()
        at = BLOCK_BYTES[kind] + end
        data[3, at - 2 : at] = torch.tensor([bad], dtype=torch.float16).view(torch.uint8)
        assert not bool(QuantTensor(kind, weight.shape, data).isfinite().all())


def test_blocks_that_do_not_fit_are_our_bug() -> None:
    with pytest.raises(AssertionError):
        QuantTensor("q8_0", (1, 33), torch.zeros(1, 34, dtype=torch.uint8))
    with pytest.raises(AssertionError):
        QuantTensor("q8_0", (1, 64), torch.zeros(1, 34, dtype=torch.uint8))
    weight = random_quant("q8_0", 2, 32)
    with pytest.raises(AssertionError):
        weight.dequantize_into(torch.empty(1, 32))
    with pytest.raises(AssertionError):
        QuantTensor.join([weight, random_quant("q4_0", 2, 32)])
