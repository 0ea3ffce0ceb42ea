"""A weight kept as it is stored: small whole numbers in groups of 32 that share a scale.

A row of `in` numbers is `in / 32` blocks, one after the other; a scale is a little-endian float16.

    format   block, in bytes                                            w_i =              bits a weight
    q8_0     | d 2 | q_0 ... q_31: one signed byte each, 32 |           d · q_i            8.5
    q4_0     | d 2 | n_0 ... n_15: 16 |                                 d · (q_i - 8)      4.5
    q4_1     | d 2 | m 2 | n_0 ... n_15: 16 |                           d · q_i + m        5

    The byte n_j of a 4-bit block holds q_j in its low half and q_(j+16) in its high half.

These are the blocks of GGUF files, byte for byte; `quantize` makes them from floats. Refuses to know files,
names and kernels: a runner takes `data` as it is, or asks for floats.

    >>> weight = quantize(torch.arange(-64.0, 64.0).view(2, 64) * 2, "q8_0")
    >>> weight.nbytes, weight.dequantize()[0, :3]
    (136, tensor([-127.9922, -125.9766, -123.9609]))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

Format = Literal["q8_0", "q4_0", "q4_1"]
Fit = Literal["nearest", "fitted"]
GROUP = 32
"""Weights that share a scale, in every format here."""
BLOCK_BYTES: dict[Format, int] = {"q8_0": 34, "q4_0": 18, "q4_1": 20}
_NUM_SCALES: dict[Format, int] = {"q8_0": 1, "q4_0": 1, "q4_1": 2}
_CHUNK_BYTES = 2 << 20
_TEMPORARY_BYTES = 6
"""A weight's share of a chunk's temporary tensors: a float32, and at most two bytes of whole numbers."""
_FIT_BYTES = 16
"""The same when quantising: the weights, what they become, and two steps between, all float32."""
_FITS = 3
"""Rounds of least squares for q4_1: they take 14 % off the squared error; the next three would take 1 %."""
_NORMAL, _STEP = 2.0**-14, 2.0**-24
"""Float16's least number of full precision, and the distance between those below it."""
_ALMOST_HALF = 0.5 - 2.0**-25
"""Added before a fraction is cut off: halves go away from zero, as with 0.5, but 0.49999997 does not."""


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


def pad_inputs(weight: Tensor) -> Tensor:
    """(out, in) → (out, in rounded up to a multiple of 32): zeros at the end of rows, or `weight` itself."""
    missing = -weight.shape[1] % GROUP
    return torch.nn.functional.pad(weight, (0, missing)) if missing else weight


def quantize(weight: Tensor, format: Format, fit: Fit = "fitted") -> QuantTensor:
    """Floats (out, in) of any type and strides, in a multiple of 32 (`pad_inputs`), rounded to a format.

    In q8_0 and q4_0 the bytes are those of GGUF's own quantiser, except where float16 has fewer than 11 bits
    for the scale (q8_0: no weight of the group beyond 0.0077): there the scale is rounded up and the weights
    to multiples of it. In q4_1, scale and minimum are fitted to the group, see `fit_q4_1`, or with "nearest"
    its least and greatest weight are codes 0 and 15. Works through the rows in chunks: temporary memory is
    about 2 MiB, or a row's if more.

    Raises:
        ValueError: a group's scale is no float16: NaN, infinity, or weights far beyond ±65504.
    """
    rows, columns = weight.shape
    assert weight.is_floating_point() and columns % GROUP == 0, (weight.dtype, columns)
    shape = (rows, columns // GROUP, BLOCK_BYTES[format])
    blocks = torch.empty(shape, dtype=torch.uint8, device=weight.device)
    step = max(1, _CHUNK_BYTES // (_FIT_BYTES * max(1, columns)))
    for start in range(0, rows, step):
        some = weight.detach()[start : start + step].float().contiguous()
        groups = some.view(-1, columns // GROUP, GROUP)
        scales, codes = _round_q4_1(groups, fit) if format == "q4_1" else _FIT[format](groups)
        scales = scales.half()
        _check_scales(format, scales, start)
        _store(format, blocks[start : start + step], scales, codes)
    return QuantTensor(format, (rows, columns), blocks.flatten(1))


def assemble_q4_1(scales: Tensor, codes: Tensor) -> QuantTensor:
    """A matrix from the scale and minimum of each group, (out, in / 32, 2), and 0..15, (out, in / 32, 32).

    Raises:
        ValueError: a scale is no float16.
    """
    rows, groups = codes.shape[:2]
    blocks = torch.empty((rows, groups, BLOCK_BYTES["q4_1"]), dtype=torch.uint8)
    scales = scales.half()
    _check_scales("q4_1", scales, 0)
    _store("q4_1", blocks, scales, codes)
    return QuantTensor("q4_1", (rows, groups * GROUP), blocks.flatten(1))


def _check_scales(kind: Format, scales: Tensor, start: int) -> None:
    """Float16 (rows, blocks, 1 or 2) of the rows from `start` on. Raises ValueError."""
    if bool(scales.isfinite().all()):
        return
    row, group, which = (~scales.isfinite()).nonzero()[0].tolist()
    raise ValueError(
        f"row {start + row}, inputs {group * GROUP} to {group * GROUP + GROUP - 1}: the {kind} "
        f"{'minimum' if which else 'scale'} of these weights would be {scales[row, group, which].item()} "
        "in float16, which ends at ±65504"
    )


def _store(kind: Format, blocks: Tensor, scales: Tensor, codes: Tensor) -> None:
    """Fill (rows, blocks, bytes) from scales and whole numbers; a fraction of `codes` is cut off."""
    num_scales = _NUM_SCALES[kind]
    blocks.view(torch.float16)[..., :num_scales] = scales
    rest = blocks[..., 2 * num_scales :]
    if kind == "q8_0":
        rest.view(torch.int8).copy_(codes)
        return
    whole = codes.to(torch.uint8)
    torch.bitwise_or(whole[..., : GROUP // 2], whole[..., GROUP // 2 :] << 4, out=rest)


def _fit_q8_0(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, blocks, 32) → scales (rows, blocks, 1) and codes (rows, blocks, 32), float32 before cutting."""
    scale = _storable(groups.abs().amax(-1, keepdim=True) / 127)
    codes = groups * _inverse(scale)
    return scale, codes.add_(torch.copysign(torch.tensor(_ALMOST_HALF), codes))


def _fit_q4_0(groups: Tensor) -> tuple[Tensor, Tensor]:
    """As _fit_q8_0; the weight farthest from zero becomes -8 times the scale, whatever its sign."""
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = _storable(peak / -8)
    return scale, (groups * _inverse(scale)).add_(8.5).clamp_(0, 15)


def _round_q4_1(groups: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
    """As _fit_q8_0, with a scale and a minimum for each group."""
    fitted = fit_q4_1(groups, 0 if fit == "nearest" else _FITS)
    return fitted, nearest_q4_1(groups, fitted[..., :1], fitted[..., 1:])


def fit_q4_1(groups: Tensor, rounds: int = _FITS) -> Tensor:
    """Weights (..., 32) → their scale d and minimum m, (..., 2), as float16 will hold them.

    Lines through the least and the greatest weight serve the two worst; from there d and m and the whole
    numbers are chosen in turns, each the best for the other (least squares; nearest number).
    """
    minimum = groups.amin(-1, keepdim=True)
    scale = (groups.amax(-1, keepdim=True) - minimum) / 15
    mean = groups.mean(-1, keepdim=True)
    for _ in range(rounds):
        codes = nearest_q4_1(groups, scale, minimum)
        middle = codes.mean(-1, keepdim=True)
        codes.sub_(middle)
        slope = (codes * groups).sum(-1, keepdim=True)
        spread = codes.square_().sum(-1, keepdim=True)
        scale = torch.where(spread == 0, scale, slope / spread)  # 0: all weights of the group are equal
        minimum = mean - scale * middle
    return torch.cat([_storable(scale), minimum], -1).half().float()


def nearest_q4_1(groups: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The whole numbers 0..15, as floats, that come closest to `groups`."""
    return (groups - minimum).mul_(_inverse(scale)).round_().clamp_(0, 15)


def _storable(scale: Tensor) -> Tensor:
    """The scale; below float16's normal numbers its next step away from zero, so that codes stay small."""
    steps = (scale / _STEP).abs().ceil() * _STEP
    return torch.where(scale.abs() < _NORMAL, torch.copysign(steps, scale), scale)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 of 0."""
    return torch.where(scale == 0, 0, 1 / scale)


_FIT: dict[Format, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "q8_0": _fit_q8_0,
    "q4_0": _fit_q4_0,
}
