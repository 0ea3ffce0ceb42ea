"""A weight kept as it is stored: small whole numbers in groups of 32 that share a scale.

A row of `in` numbers is `in / 32` blocks, one after the other; a scale is a little-endian float16.

    format   block, in bytes                                            w_i =              bits a weight
    q8_0     | d 2 | q_0 ... q_31: one signed byte each, 32 |           d · q_i            8.5
    q4_0     | d 2 | n_0 ... n_15: 16 |                                 d · (q_i - 8)      4.5
    q4_1     | d 2 | m 2 | n_0 ... n_15: 16 |                           d · q_i + m        5

    The byte n_j of a 4-bit block holds q_j in its low half and q_(j+16) in its high half.

These are the blocks of GGUF files, byte for byte. Refuses to know files, names and kernels: a runner takes
`data` as it is, or asks for floats.

    >>> weight = QuantTensor("q8_0", (1, 32), torch.zeros(1, 34, dtype=torch.uint8))
    >>> weight.dequantize().shape
    torch.Size([1, 32])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

Format = Literal["q8_0", "q4_0", "q4_1"]
GROUP = 32
"""Weights that share a scale, in every format here."""
BLOCK_BYTES: dict[Format, int] = {"q8_0": 34, "q4_0": 18, "q4_1": 20}
_NUM_SCALES: dict[Format, int] = {"q8_0": 1, "q4_0": 1, "q4_1": 2}
_CHUNK_BYTES = 2 << 20
_TEMPORARY_BYTES = 6
"""A weight's share of a chunk's temporary tensors: a float32, and at most two bytes of whole numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantTensor:
    """One matrix in one of the formats above.

    Attributes:
        format: how its blocks are laid out.
        shape: (out, in); in is a multiple of 32.
        data: uint8 (out, in / 32 · bytes per block), perhaps a view of a mapped file: copy before keeping.
    """

    format: Format
    shape: tuple[int, int]
    data: Tensor

    def __post_init__(self) -> None:
        rows, columns = self.shape
        assert columns % GROUP == 0, self.shape
        assert self.data.dtype == torch.uint8, self.data.dtype
        expected = (rows, columns // GROUP * BLOCK_BYTES[self.format])
        assert tuple(self.data.shape) == expected, (self.data.shape, expected)

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.data.nbytes

    def numel(self) -> int:
        """Weights."""
        return self.shape[0] * self.shape[1]

    def isfinite(self) -> Tensor:
        """For each scale, whether it is a number: bool (out, in / 32, 1 or 2). Then so is every weight."""
        return _scales(self.format, self._blocks()).isfinite()

    def select_rows(self, index: Tensor) -> Self:
        """The rows named by `index` (int64), in that order; a copy of the stored bytes."""
        return type(self)(self.format, (len(index), self.shape[1]), self.data[index])

    @classmethod
    def join(cls, parts: Sequence[QuantTensor]) -> Self:
        """Rows of the first part, then of the next; all of one format and width. Copies the stored bytes."""
        first = parts[0]
        assert all((part.format, part.shape[1]) == (first.format, first.shape[1]) for part in parts)
        rows = sum(part.shape[0] for part in parts)
        return cls(first.format, (rows, first.shape[1]), torch.cat([part.data for part in parts]))

    def dequantize(self) -> Tensor:
        """The weights as float32 (out, in), on the device of `data`."""
        out = torch.empty(self.shape, dtype=torch.float32, device=self.data.device)
        self.dequantize_into(out)
        return out

    def dequantize_into(self, out: Tensor) -> None:
        """Fill `out`, of any float type and on any device; computed in float32, then rounded to `out`'s type.

        Works through the rows in chunks: temporary memory is 2 MiB, which a cache holds, or a row's if more.
        """
        assert tuple(out.shape) == self.shape, (out.shape, self.shape)
        step = max(1, _CHUNK_BYTES // (_TEMPORARY_BYTES * self.shape[1]))
        for rows, blocks in zip(torch.split(out, step), torch.split(self._blocks(), step), strict=True):
            rows.copy_(_dequantize(self.format, blocks).flatten(1))  # (rows, in)

    def _blocks(self) -> Tensor:
        """(out, in / 32, bytes per block), a view."""
        return self.data.view(self.shape[0], -1, BLOCK_BYTES[self.format])


def _scales(kind: Format, blocks: Tensor) -> Tensor:
    """The float16 at the head of each block, as float32: (..., bytes) → (..., 1 or 2)."""
    return blocks.view(torch.float16)[..., : _NUM_SCALES[kind]].float()


def _dequantize(kind: Format, blocks: Tensor) -> Tensor:
    """(rows, blocks, bytes) → float32 (rows, blocks, 32)."""
    scales = _scales(kind, blocks)
    scale, rest = scales[..., :1], blocks[..., 2 * _NUM_SCALES[kind] :]
    if kind == "q8_0":
        return rest.view(torch.int8) * scale
    values = torch.empty((*rest.shape[:-1], GROUP), dtype=torch.float32, device=rest.device)
    values[..., : GROUP // 2] = rest & 15
    values[..., GROUP // 2 :] = rest >> 4
    if kind == "q4_0":
        return values.sub_(8.0).mul_(scale)
    return values.mul_(scale).add_(scales[..., 1:])  # rounded twice, as the formula says: not fused
