"""Stored groups: floats from them and bytes from floats are the reference library's bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

import llm.adapt.quant as quant
from llm.adapt.quant import BLOCK_BYTES, GROUP, Format, QuantTensor, pad_inputs, quantize

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


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def reference_bytes(weight: Tensor, kind: Format) -> Tensor:
    return torch.from_numpy(quants.quantize(weight.numpy(), GGMLQuantizationType[kind.upper()]))


def largest(weight: Tensor) -> Tensor:
    """Of each group, repeated for each of its weights."""
    return weight.unflatten(1, (-1, GROUP)).abs().amax(-1).repeat_interleave(GROUP, 1)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("spread", [0.02, 1.0, 3000.0])
def test_bytes_are_the_reference_librarys(kind: Format, spread: float) -> None:
    weight = normal(64, 1024) * spread
    weight[5] = weight[5].bfloat16().float()  # few bits: peaks of both signs, halves
    weight[6, :40] = 0
    quantised = quantize(weight, kind)
    assert (quantised.format, quantised.shape) == (kind, (64, 1024))
    assert torch.equal(quantised.data, reference_bytes(weight, kind))


def test_halves_are_rounded_away_from_zero_and_nothing_else_is() -> None:
    below = math.nextafter(0.5, 0) - 2**-26  # as a float32: 0.49999997
    values = [127.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, below, -below, 126.5, -126.5, 126.49999, 0.0]
    weight = torch.tensor([values + [0.25] * 19])
    quantised = quantize(weight, "q8_0")
    expected = [127, 1, -1, 2, -2, 3, -3, 0, 0, 127, -127, 126, 0] + [0] * 19
    assert quantised.dequantize()[0].tolist() == expected
    assert torch.equal(quantised.data, reference_bytes(weight, "q8_0"))


@pytest.mark.parametrize(
    ("kind", "codes", "worst"), [("q8_0", 127, 0.57), ("q4_0", 8, 1.01), ("q4_1", 7.5, 2.9)]
)
@pytest.mark.parametrize("exponent", range(-60, 0, 4))
def test_small_groups_keep_what_float16_can_say(
    kind: Format, codes: float, worst: float, exponent: int
) -> None:
    """A scale below 2^-14 has steps of 2^-24: rounded down, the largest weights would be cut, or all be zero.

    The worst weight is off by half a step and what rounding to 11 bits does to 127 of them; in q4_0 by one,
    for 8 · d has no number; in q4_1 by all of a group's error, at most 32 · (1/2)² squared steps.
    """
    weight = normal(32, 256) * 2.0**exponent
    error = (quantize(weight, kind).dequantize() - weight).abs()
    assert bool((error <= worst * (largest(weight) / codes + 2**-24)).all())


@pytest.mark.parametrize("kind", FORMATS)
def test_zeros_stay_zeros(kind: Format) -> None:
    weight = quantize(torch.zeros(3, 64), kind)
    assert bool(weight.isfinite().all()) and not weight.dequantize().any()


@pytest.mark.parametrize("shift", [0.0, 0.5, -20.0])
def test_a_fitted_group_is_closer_than_the_reference_librarys(shift: float) -> None:
    """13.5 % less squared error for normal weights; float16's steps hide a part of it far from zero."""
    weight = normal(256, 512) + shift
    plain = QuantTensor("q4_1", (256, 512), reference_bytes(weight, "q4_1")).dequantize()
    error = (quantize(weight, "q4_1").dequantize() - weight).square().sum()
    assert error <= 0.88 * (plain - weight).square().sum()


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0])
def test_numbers_of_a_fitted_group_are_the_nearest_to_what_is_stored(spread: float) -> None:
    """Far from zero a minimum is rounded to a step or two of the scale: the numbers must know."""
    weight = normal(64, 256) * spread + 20 * spread
    quantised = quantize(weight, "q4_1")
    stored = quantised.data.view(64, 8, 20).view(torch.float16)[..., :2].float()
    choices = torch.arange(16.0) * stored[..., :1] + stored[..., 1:]  # (64, 8, 16)
    best = (weight.view(64, 8, GROUP, 1) - choices.unsqueeze(2)).abs().amin(-1).flatten(1)
    assert bool(((quantised.dequantize() - weight).abs() <= best + spread * 1e-5).all())


def test_weights_that_were_q4_1_are_found_again() -> None:
    stored = random_quant("q4_1", 32, 256)
    blocks = stored.data.view(32, 8, 20)
    blocks.view(torch.float16)[..., :2] = normal(32, 16).view(32, 8, 2).abs() * torch.tensor([0.1, -1.0])
    blocks[..., 4], blocks[..., 5] = 0xF0, 0x0F  # each group uses its least and its greatest number
    assert torch.equal(quantize(stored.dequantize(), "q4_1").data, stored.data)


@pytest.mark.parametrize("value", [0.3, -7.0, 65504.0, -65504.0, 1e-5])
def test_equal_weights_are_their_minimum(value: float) -> None:
    weight = quantize(torch.full((2, 64), value), "q4_1").dequantize()
    assert torch.equal(weight, torch.full((2, 64), value).half().float())


@pytest.mark.parametrize("kind", FORMATS)
def test_any_float_type_strides_and_chunks(kind: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(64, 11).bfloat16()
    whole = quantize(weight.t().float().contiguous(), kind).data
    assert torch.equal(quantize(weight.double().t(), kind).data, whole)
    assert torch.equal(quantize(torch.nn.Parameter(weight.t()), kind).data, whole)
    monkeypatch.setattr(quant, "_CHUNK_BYTES", 3 * 16 * 64)  # chunks of three rows
    assert torch.equal(quantize(weight.t(), kind).data, whole)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
def test_what_float16_cannot_scale_is_refused(
    kind: Format, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant, "_CHUNK_BYTES", 2 * 16 * 96)
    weight = normal(5, 96)
    weight[3, 40] = value
    with pytest.raises(ValueError, match=f"row 3, inputs 32 to 63: the {kind} (scale|minimum)") as caught:
        quantize(weight, kind)
    assert "65504" in str(caught.value) and "\n" not in str(caught.value)


def test_the_limit_is_the_scales() -> None:
    weight = torch.full((1, 32), 65504.0 * 127)
    assert torch.equal(quantize(weight, "q8_0").dequantize(), weight)
    with pytest.raises(ValueError, match="scale of these weights would be inf"):
        quantize(weight * 1.001, "q8_0")
    with pytest.raises(ValueError, match="minimum of these weights would be -inf"):
        quantize(torch.full((1, 32), -65600.0), "q4_1")


def test_inputs_are_filled_up_with_zeros() -> None:
    weight = normal(3, 33)
    padded = pad_inputs(weight)
    assert torch.equal(padded[:, :33], weight) and padded.shape == (3, 64) and not padded[:, 33:].any()
    assert pad_inputs(padded) is padded
    with pytest.raises(AssertionError):
        quantize(weight, "q8_0")
