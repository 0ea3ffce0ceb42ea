"""Panels: every byte is where the layout says, and the weights come back bit for bit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import llm.runner.native.pack as pack_module
from llm.adapt.quant import BLOCK_BYTES, GROUP, Format, QuantTensor, quantize
from llm.runner.native.memory import ALIGNMENT, Memory
from llm.runner.native.pack import PackedMatrix, pack, panel_bytes, unpack

FORMATS = sorted(BLOCK_BYTES)


def random_quant(kind: Format, rows: int, columns: int, seed: int = 0) -> QuantTensor:
    """Any bytes at all, but scales that are numbers."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // GROUP, BLOCK_BYTES[kind]), dtype=np.uint8)
    blocks[..., : 4 if kind == "q4_1" else 2][..., 1::2] &= 0xBF
    return QuantTensor(kind, (rows, columns), torch.from_numpy(blocks.reshape(rows, -1)))


def bits(weight: Tensor) -> Tensor:
    """Not numbers, which call 0 and -0 equal."""
    return weight.contiguous().view(torch.int32)


def code(weight: QuantTensor, output: int, i: int) -> int:
    """The stored number of an input, 0..15 or a signed byte."""
    group, at = divmod(i, GROUP)
    block = weight.data[output].view(-1, BLOCK_BYTES[weight.format])[group].tolist()
    if weight.format == "q8_0":
        return int(struct.unpack("b", bytes([block[2 + at]]))[0])
    nibbles = block[2 if weight.format == "q4_0" else 4 :]
    return int(nibbles[at] & 15 if at < 16 else nibbles[at - 16] >> 4)


def scale(weight: QuantTensor, output: int, group: int, which: int = 0) -> bytes:
    """Two bytes."""
    start = group * BLOCK_BYTES[weight.format] + 2 * which
    return bytes(weight.data[output, start : start + 2].tolist())


def expected_head(weight: QuantTensor, outputs: range, groups: range) -> bytes:
    """64 bytes of scales."""
    zero, out = bytes(2), b""
    for group in groups:
        for which in range(2 if weight.format == "q4_1" else 1):
            out += b"".join(scale(weight, n, group, which) if n < weight.shape[0] else zero for n in outputs)
    return out.ljust(64, b"\0")


def expected_panels(weight: QuantTensor) -> bytes:
    """The layout, spelled out byte for byte."""
    out = b""
    together = 1 if weight.format == "q4_1" else 2
    for first in range(0, weight.shape[0], 16):
        outputs, num_groups = range(first, first + 16), weight.shape[1] // GROUP
        for group in range(num_groups):
            if group % together == 0:
                out += expected_head(weight, outputs, range(group, min(group + together, num_groups)))
            for j in range(8 if weight.format == "q8_0" else 4):
                for n in outputs:
                    for i in range(4):
                        out += expected_byte(weight, n, group, j, i)
    return out


def expected_byte(weight: QuantTensor, n: int, group: int, j: int, i: int) -> bytes:
    if n >= weight.shape[0]:
        return b"\0"
    if weight.format == "q8_0":
        return struct.pack("b", code(weight, n, GROUP * group + 4 * j + i))
    low, high = (code(weight, n, GROUP * group + 8 * j + 4 * half + i) for half in (0, 1))
    return bytes([low | high << 4])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (5, 64), (35, 96)])
def test_every_byte_is_where_the_layout_says(kind: Format, rows: int, columns: int) -> None:
    weight = random_quant(kind, rows, columns)
    packed = pack(weight)
    assert packed.panels.tobytes() == expected_panels(weight)
    assert (packed.format, packed.num_out, packed.num_in) == (kind, rows, columns)


@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (5, 33), (18, 70), (1, 1)])
def test_every_float_is_where_the_layout_says(rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    inputs = -(-columns // 32) * 32
    expected = [
        weight[n, k].item() if n < rows and k < columns else 0.0
        for first in range(0, rows, 16)
        for k in range(inputs)
        for n in range(first, first + 16)
    ]
    packed = pack(weight)
    assert packed.panels.view(np.float32).tolist() == expected
    assert (packed.format, packed.num_out, packed.num_in) == ("f32", rows, columns)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["f32", *FORMATS]),
    rows=st.integers(1, 100),
    columns=st.integers(1, 300),
    chunk=st.integers(1, 1 << 18),
)
def test_weights_come_back_bit_for_bit(kind: Format, rows: int, columns: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_module, "_CHUNK_BYTES", chunk)
        if kind not in BLOCK_BYTES:
            weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
            assert torch.equal(bits(unpack(pack(weight))), bits(weight))
            return
        groups = random_quant(kind, rows, -(-columns // GROUP) * GROUP, seed=rows)
        assert torch.equal(bits(unpack(pack(groups))), bits(groups.dequantize()))


@pytest.mark.parametrize("kind", FORMATS)
def test_quantised_floats_too(kind: Format) -> None:
    weight = quantize(torch.randn(50, 640, generator=torch.Generator().manual_seed(0)), kind)
    assert torch.equal(unpack(pack(weight)), weight.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_floats_of_any_type_and_strides(dtype: torch.dtype) -> None:
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = weight.float()
    assert torch.equal(unpack(pack(weight)), expected)
    assert torch.equal(unpack(pack(weight.t())), expected.t())
    assert torch.equal(unpack(pack(torch.nn.Parameter(weight[1:, 3:]))), expected[1:, 3:])


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_at_an_odd_address_of_a_read_only_file(kind: Format, tmp_path: Path) -> None:
    """As a mapped checkpoint may hold them."""
    weight = random_quant(kind, 20, 96)
    (tmp_path / "weights").write_bytes(b"\0" + weight.data.numpy().tobytes())
    size = 1 + weight.data.numel()
    data = torch.from_file(str(tmp_path / "weights"), size=size, dtype=torch.uint8)[1:].view(20, -1)
    assert data.data_ptr() % 2 == 1
    packed = pack(QuantTensor(kind, (20, 96), data))
    assert packed.panels.tobytes() == pack(weight).panels.tobytes()


def test_panels_are_aligned_and_their_own() -> None:
    memory, kept = Memory(), []
    for rows in range(1, 60):
        weight = random_quant("q8_0", rows, 32, seed=rows)
        packed = pack(weight, memory)
        assert packed.panels.ctypes.data % ALIGNMENT == 0
        kept.append((packed, weight.dequantize()))
        weight.data.zero_()
    assert all(torch.equal(unpack(packed), values) for packed, values in kept)


def test_bytes_of_a_panel() -> None:
    assert [panel_bytes("f32", n) for n in (1, 32, 33)] == [2048, 2048, 4096]
    assert [panel_bytes("q8_0", n) for n in (32, 64, 96)] == [64 + 512, 64 + 1024, 128 + 1536]
    assert [panel_bytes("q4_0", n) for n in (32, 64, 96)] == [64 + 256, 64 + 512, 128 + 768]
    assert [panel_bytes("q4_1", n) for n in (32, 64, 96)] == [320, 640, 960]


def test_panels_that_do_not_fit_are_our_bug() -> None:
    packed = pack(random_quant("q4_1", 16, 64))
    for panels, rows, columns in (
        (packed.panels, 17, 64),
        (packed.panels, 16, 65),
        (packed.panels[1:], 16, 64),
    ):
        with pytest.raises(AssertionError):
            PackedMatrix(panels, "q4_1", rows, columns)
    shifted = pack(random_quant("q4_1", 32, 64)).panels[32 : 32 + 640]
    with pytest.raises(AssertionError):
        PackedMatrix(shifted, "q4_1", 16, 64)
