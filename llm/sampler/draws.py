"""Logits to token ids: temperature, top-k, top-p, greedy at 0, for rows that each want something else.

A draw takes one uniform number, and that number is a pure function of (seed, choice, position): neither the
batch nor a preemption changes what a sequence says. `sample` never sorts the vocabulary;
`sample_reference` does, and is its oracle. Refuses to know sequences' text, devices (logits bring theirs)
and who asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.config import SamplingParams
from llm.sampler import INVALID

_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """One round of splitmix64 (Steele, Lea and Flood 2014): 64 bits in, 64 well mixed bits out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that draws the token at `position` of this choice's reply."""
    return (_mix(_mix(_mix(seed & _MASK) ^ choice) ^ position) >> 11) * 2.0**-53


@torch.inference_mode()
def sample_reference(logits: Tensor, params: SamplingParams, position: int) -> int:
    """The sampler's slow twin: one row (V,), a full sort, the textbook's steps in order.

    Returns:
        A token id of the V; logits must be finite or -inf, and not all -inf.
    """
    assert logits.ndim == 1
    if params.temperature == 0.0:
        return int(logits.argmax())
    scaled = (logits.double() - logits.max()) / params.temperature  # at most 0: no temperature overflows
    probabilities = torch.softmax(scaled, dim=-1)  # (V,)
    u = uniform(params.seed, params.choice, position)
    if not params.top_k and params.top_p >= 1.0:
        return _invert(probabilities.cumsum(-1), u)  # nothing is cut, so no order is needed
    kept, ids = probabilities.sort(descending=True, stable=True)  # (V,), (V,)
    if params.top_k:
        kept = kept[: params.top_k]
    mass = kept.cumsum(-1)  # (k,)
    count = int((mass - kept < params.top_p * mass[-1]).sum())  # the token that crosses p stays
    return int(ids[_invert(mass[:count], u)])


def _invert(mass: Tensor, u: float) -> int:
    """Index of the first entry of a cumulative sum that exceeds u × its total."""
    index = int(torch.searchsorted(mass, u * mass[-1], right=True))
    return min(index, len(mass) - 1)


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """What `prepare` made of M rows' parameters: host lists, grouped by the work they need."""

    greedy: list[int]
    full: list[int]
    cut: list[int]
    temperature: list[float]
    top_k: list[int]
    top_p: list[float]
    draws: list[float]


def prepare(params: Rows[SamplingParams], positions: Rows[int]) -> SamplingRows:
    """Host half: group rows and draw their uniform numbers. No tensors.

    Args:
        params: of each row that wants a token, M of them.
        positions: how many tokens each row's reply already has.
    """
    greedy: list[int] = []
    full: list[int] = []
    cut: list[int] = []
    for row, p in enumerate(params):
        (greedy if p.temperature == 0.0 else cut if p.top_k or p.top_p < 1.0 else full).append(row)
    return SamplingRows(
        greedy=greedy,
        full=full,
        cut=cut,
        temperature=[p.temperature for p in params],
        top_k=[p.top_k for p in params],
        top_p=[p.top_p for p in params],
        draws=[uniform(p.seed, p.choice, n) for p, n in zip(params, positions, strict=True)],
    )


@torch.inference_mode()
def sample(logits: Tensor, rows: SamplingRows, vocab_size: int) -> list[int]:
    """Device half: one token per row.

    Args:
        logits: (M, V); V may exceed vocab_size (padding), whose ids are never drawn.
        rows: from `prepare`, for the same M rows in the same order.
        vocab_size: ids the tokenizer knows.

    Returns:
        M ids; INVALID where a row's logits are not finite.
    """
    logits = logits[:, :vocab_size]
    tokens = [INVALID] * len(logits)
    for group, draw in ((rows.greedy, _greedy), (rows.full, _draw_full), (rows.cut, _draw_cut)):
        if group:
            chosen = logits if len(group) == len(logits) else logits[group]
            for row, token in zip(group, draw(chosen, rows, group), strict=True):
                tokens[row] = token
    return tokens


def _greedy(logits: Tensor, rows: SamplingRows, group: list[int]) -> list[int]:
    best, ids = logits.max(dim=-1)
    return ids.where(best.isfinite(), INVALID).tolist()


def _draw_full(logits: Tensor, rows: SamplingRows, group: list[int]) -> list[int]:
    """Nothing is cut: invert the cumulative sum in id order."""
    scaled = _scaled(logits, logits.amax(-1, keepdim=True), rows, group)  # (R, V)
    mass = scaled.exp_().cumsum(-1)  # (R, V), up to a constant of the row
    return _draw(mass, mass[:, -1:], rows, group, None)


def _draw_cut(logits: Tensor, rows: SamplingRows, group: list[int]) -> list[int]:
    """Top-k and top-p among the largest logits only: widen the set until it holds every row's nucleus.

    It does when the last token a row keeps is above the set's smallest: then no token outside is its equal.
    Of equal logits, frequent in 16 bits, the lower ids come first, whatever the other rows ask for.
    """
    vocab_size = logits.shape[-1]
    wanted = [rows.top_k[row] or vocab_size for row in group]
    limit = torch.tensor(wanted, device=logits.device).unsqueeze(1)  # (R, 1)
    top_p = _column(logits, rows.top_p, group)  # (R, 1)
    top = logits.amax(-1, keepdim=True)  # (R, 1)
    open_rows = any(k >= vocab_size for k in wanted)
    total = _scaled(logits, top, rows, group).exp_().sum(-1, keepdim=True) if open_rows else None  # (R, 1)
    width = min(vocab_size, max([64, *(k + 1 for k in wanted if k < vocab_size)]))
    while True:
        best, ids = _largest(logits, width)  # (R, k), (R, k)
        ranks = torch.arange(width, device=logits.device)
        kept = _scaled(best, top, rows, group).exp_().where(ranks < limit, 0.0)  # (R, k), the largest is 1
        mass = kept.cumsum(-1)  # (R, k)
        # An open row's probabilities sum up over the vocabulary, a top-k row's over its k.
        norm = mass[:, -1:] if total is None else total.where(limit >= vocab_size, mass[:, -1:])
        inside = (mass - kept < top_p * norm) & (kept > 0)  # the token that crosses p stays
        inside |= (ranks == 0) & kept.isfinite()  # even for a p that this precision rounds to 0
        smallest = best.where(inside, math.inf).amin(-1)  # (R,)
        if width == vocab_size or bool((smallest > best[:, -1]).all()):
            break
        width = min(vocab_size, width * 8)
    kept_mass = mass.where(inside, -math.inf).amax(-1, keepdim=True)  # (R, 1)
    return _draw(mass, kept_mass, rows, group, ids)


def _largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, descending, equal ones in id order: values and ids, (R, count)."""
    best, ids = logits.topk(count, dim=-1)
    ids, order = ids.sort(dim=-1)
    best, order = best.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return best, ids.gather(-1, order)


def _draw(mass: Tensor, total: Tensor, rows: SamplingRows, group: list[int], ids: Tensor | None) -> list[int]:
    """First entry of each row's cumulative sum that exceeds u × total, mapped through ids."""
    target = _column(mass, rows.draws, group) * total  # (R, 1)
    index = torch.searchsorted(mass, target, right=True)  # (R, 1)
    # u < 1 keeps the target below the total; rounding at the very edge is clamped to the last entry kept.
    last = (mass < total).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
    index = torch.minimum(index, last)
    chosen = index if ids is None else ids.gather(-1, index)
    return chosen.where(total.isfinite() & (total > 0), INVALID).squeeze(1).tolist()


def _scaled(logits: Tensor, top: Tensor, rows: SamplingRows, group: list[int]) -> Tensor:
    """(logits - top) / temperature: at most 0, so that no temperature overflows. Shapes (R, ·), (R, 1)."""
    temperature = _column(logits, rows.temperature, group)  # (R, 1)
    tiny = torch.finfo(temperature.dtype).tiny  # a float32's may round to 0
    return (_wide(logits) - _wide(top)).div_(temperature.clamp_min(tiny))


def _wide(logits: Tensor) -> Tensor:
    """Double precision where the device has it: a cumulative sum over 50,257 floats loses the tail."""
    return logits.float() if logits.device.type == "mps" else logits.double()


def _column(like: Tensor, values: list[float], group: list[int]) -> Tensor:
    """The group's values as a column (R, 1) on like's device."""
    return torch.tensor(
        [values[row] for row in group], device=like.device, dtype=_wide(like[:0]).dtype
    ).unsqueeze(1)
