"""One matrix laid out as the kernel reads it: panels of 16 outputs side by side, one per SIMD lane.

Panel p holds outputs 16p to 16p + 15, one panel after the other without gaps; G groups of 32 inputs make an
output. Outputs beyond the last and inputs beyond the last are zeros. A panel is

    f32    for each input 16 float32, one per output                                           2048·G bytes
    q8_0   before groups 0, 2, 4 … a head of 64 bytes: 16 float16 scales of that group, 16 of the next
           (zeros if there is none); a group is 8 lines: line j, byte 4n + i = q of output n, input 4j + i
    q4_0   heads as in q8_0; a group is 4 lines: line j, byte 4n + i holds input 8j + i of output n in its low
           half and input 8j + 4 + i in its high half
    q4_1   before every group a head: 16 scales, then 16 minima; lines as in q4_0

A line is 64 bytes, and so is the alignment: one register, one cache line. The values are those of
llm/adapt/quant.py, moved and never rounded. Refuses to know which matrix this is and who chose its format.

    >>> packed = pack(quantize(torch.randn(40, 64), "q8_0"))
    >>> packed.panels.nbytes, unpack(packed).shape
    (3264, torch.Size([40, 64]))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.adapt.quant import BLOCK_BYTES, GROUP, Format, QuantTensor, pad_inputs
from llm.runner.native.memory import ALIGNMENT, Memory

PanelFormat = Literal["f32"] | Format
PANEL = 16
"""Outputs computed side by side."""
_CHUNK_BYTES = 256 << 10
"""Of the source, packed at a time: with its copy and its panels it stays in a core's cache."""
HEAD_BYTES = 64
"""Of scales, before the lines they belong to."""
_HEAD_GROUPS: dict[Format, int] = {"q8_0": 2, "q4_0": 2, "q4_1": 1}
"""Groups whose scales share a head."""
_LINE_BYTES: dict[Format, int] = {"q8_0": 32, "q4_0": 16, "q4_1": 16}
"""An output's share of a group's lines."""
_LOW = np.uint32(0x0F0F0F0F)
"""The low halves of four bytes."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A matrix for the kernel.

    Attributes:
        panels: uint8 (num_panels · panel_bytes(format, num_in),), aligned to 64 bytes.
        format: how a panel is laid out.
        num_out: outputs, without those that only fill the last panel.
        num_in: inputs, without those that only fill the last group.
    """

    panels: Bytes
    format: PanelFormat
    num_out: int
    num_in: int

    def __post_init__(self) -> None:
        expected = -(-self.num_out // PANEL) * panel_bytes(self.format, self.num_in)
        assert self.panels.shape == (expected,) and self.panels.dtype == np.uint8, (
            self.panels.shape,
            expected,
        )
        assert self.panels.ctypes.data % ALIGNMENT == 0 and self.panels.flags.c_contiguous


def panel_bytes(format: PanelFormat, num_in: int) -> int:
    """Of one panel."""
    groups = -(-num_in // GROUP)
    if format == "f32":
        return 4 * PANEL * GROUP * groups
    heads = -(-groups // _HEAD_GROUPS[format])
    return HEAD_BYTES * heads + PANEL * _LINE_BYTES[format] * groups


def pack(weight: Tensor | QuantTensor, memory: Memory | None = None) -> PackedMatrix:
    """A matrix (out, in) on the CPU: floats of any type and strides as f32, groups in their own format.

    A float matrix keeps its `in`; a QuantTensor's was rounded up to whole groups by whoever quantised it. The
    panels lie in `memory`, or in a region of their own.
    """
    num_out, num_in = weight.shape
    kind: PanelFormat = weight.format if isinstance(weight, QuantTensor) else "f32"
    source = weight.data if isinstance(weight, QuantTensor) else weight.detach()  # (out, bytes or inputs)
    num_panels, size = -(-num_out // PANEL), panel_bytes(kind, num_in)
    panels = (Memory() if memory is None else memory).take(num_panels * size)
    by_panel = panels.reshape(num_panels, size)
    step = max(1, _CHUNK_BYTES // max(1, size)) * PANEL
    for start in range(0, num_out, step):
        rows = source[start : start + step]
        target = by_panel[start // PANEL : -(-(start + len(rows)) // PANEL)]
        if missing := -len(rows) % PANEL:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
        if kind == "f32":
            _fill_floats(target, rows)
        else:
            _fill_groups(target, kind, rows.numpy())
    return PackedMatrix(panels, kind, num_out, num_in)


def unpack(packed: PackedMatrix) -> Tensor:
    """The weights as float32 (out, in): pack read backwards, slowly. For tests."""
    kind, groups = packed.format, -(-packed.num_in // GROUP)
    panels = packed.panels.reshape(-1, panel_bytes(kind, packed.num_in))
    if kind == "f32":
        weights = panels.view(np.float32).reshape(-1, groups * GROUP, PANEL).transpose(0, 2, 1)
    else:
        weights = _unpack_groups(panels, kind, groups)
    flat = weights.reshape(-1, groups * GROUP)[: packed.num_out, : packed.num_in]
    return torch.from_numpy(np.ascontiguousarray(flat))


def _fill_floats(target: Bytes, rows: Tensor) -> None:
    """(panels, panel bytes) from floats (16 · panels, in)."""
    padded = pad_inputs(rows.float())
    lines = torch.from_numpy(target.view(np.float32)).view(len(target), -1, PANEL)  # (panels, in, 16)
    lines.copy_(padded.view(len(target), PANEL, -1).transpose(1, 2))


def _fill_groups(target: Bytes, kind: Format, rows: Bytes) -> None:
    """(panels, panel bytes), zeros until now, from stored blocks (16 · panels, bytes)."""
    blocks = rows.reshape(len(target), PANEL, -1, BLOCK_BYTES[kind])  # (panels, 16, groups, bytes)
    for heads, groups in _heads(target, kind, blocks.shape[2]):
        _fill_heads(heads, kind, blocks[:, :, groups])


def _heads(panels: Bytes, kind: Format, num_groups: int) -> list[tuple[Bytes, slice]]:
    """Views (panels, heads, bytes of a head and its lines), and of which groups: an odd last one apart."""
    together = _HEAD_GROUPS[kind]
    whole, line = num_groups // together, PANEL * _LINE_BYTES[kind]
    edge = whole * (HEAD_BYTES + together * line)
    found = [(panels[:, :edge].reshape(len(panels), whole, -1), slice(0, whole * together))] if whole else []
    if num_groups % together:
        found.append((panels[:, edge:].reshape(len(panels), 1, -1), slice(whole * together, num_groups)))
    return found


def _fill_heads(heads: Bytes, kind: Format, blocks: Bytes) -> None:
    """(panels, heads, bytes) from (panels, 16, groups, bytes of a block)."""
    count, num_heads = heads.shape[:2]
    num_scales = (BLOCK_BYTES[kind] - _LINE_BYTES[kind]) // 2
    scales = blocks[..., : 2 * num_scales].view(np.uint16)  # (panels, 16, groups, 1 or 2)
    numbers = scales.transpose(0, 2, 3, 1).reshape(count, num_heads, -1)
    heads[..., : 2 * numbers.shape[2]].view(np.uint16)[...] = numbers
    words = blocks[..., 2 * num_scales :].view(np.uint32)  # four bytes each: (panels, 16, groups, 8 or 4)
    lines = heads[..., HEAD_BYTES:].view(np.uint32)
    lines = lines.reshape(count, num_heads, -1, words.shape[3], PANEL)  # a view: only its last axis is split
    of_heads = words.reshape(
        count, PANEL, num_heads, -1, words.shape[3]
    )  # (panels, 16, heads, groups, words)
    if kind == "q8_0":
        lines[...] = of_heads.transpose(0, 2, 3, 4, 1)
    else:
        _fill_nibbles(lines, of_heads)


def _fill_nibbles(lines: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
    """A byte of `lines`, (panels, heads, groups, 4, 16), is inputs k and k + 4; of `words`, (panels, 16,
    heads, groups, 4), k and k + 16."""
    planes = np.ascontiguousarray(words.transpose(4, 0, 2, 3, 1))  # (4, …, 16): four times as fast
    for j in (0, 1):
        even, odd = planes[2 * j], planes[2 * j + 1]  # inputs 8j + i, 8j + 4 + i; 16 further in high halves
        lines[..., j, :] = (even & _LOW) | (odd & _LOW) << 4
        lines[..., j + 2, :] = (even >> 4 & _LOW) | (odd & ~_LOW)


def _unpack_groups(panels: Bytes, kind: Format, groups: int) -> NDArray[np.float32]:
    """(panels, panel bytes) → float32 (panels, 16, 32 · groups)."""
    parts = [_unpack_heads(heads, kind, where) for heads, where in _heads(panels, kind, groups)]
    return np.concatenate(parts, axis=2)


def _unpack_heads(heads: Bytes, kind: Format, where: slice) -> NDArray[np.float32]:
    """(panels, heads, bytes) → float32 (panels, 16, 32 · groups)."""
    count, groups = len(heads), where.stop - where.start
    num_scales = 2 if kind == "q4_1" else 1
    used = 2 * PANEL * num_scales * groups // heads.shape[1]  # bytes of a head
    halves = np.ascontiguousarray(heads[..., :used]).view(np.float16).astype(np.float32)
    scales = halves.reshape(count, groups, num_scales, PANEL)
    lines = heads[..., HEAD_BYTES:].reshape(count, groups, -1, PANEL, 4)  # (panels, groups, lines, 16, 4)
    if kind == "q8_0":
        codes = lines.view(np.int8)
    else:
        codes = np.stack([lines & 15, lines >> 4], axis=3).reshape(count, groups, -1, PANEL, 4).view(np.int8)
    q = codes.transpose(0, 1, 3, 2, 4).reshape(count, groups, PANEL, GROUP).astype(np.float32)
    if kind == "q4_0":
        q -= 8
    weights = q * scales[:, :, 0, :, None]
    if kind == "q4_1":
        weights += scales[:, :, 1, :, None]
    return weights.transpose(0, 2, 1, 3).reshape(count, PANEL, -1)
