"""Rotary positions: each pair of a head's numbers turns by an angle that grows with the position.

    angle(position, i) = position · theta^(-2i/D) / factors[i]        i = 0 … D/2 - 1

The pairs are (i, i + D/2), Hugging Face's layout; a format with neighbours (2i, 2i + 1) is permuted as it is
loaded. Variants that stretch the context differ in `factors` alone; the functions here compute them from the
numbers that configurations carry. Sources: Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN), Llama 3's
reference code. Refuses to know files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llm.config import ModelConfig


class Rotary:
    """The angles' cosines and sines by position, made on first use where they are used.

    A table, not a formula per step: a position's numbers are the same bits in every batch.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions (...): each (..., 1, D/2), to be broadcast over heads."""
        key = (positions.device, dtype)
        if key not in self._tables:
            with torch.inference_mode(False):  # what is made while serving may be trained with later
                self._tables[key] = _tables(self._config, *key)
        cos, sin = self._tables[key]
        return cos[positions][..., None, :], sin[positions][..., None, :]


def _tables(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(num_positions, D/2) each. In float32, as models of this kind were trained, then rounded to dtype."""
    assert config.rope_theta is not None
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # (D/2,)
    if config.rope_factors:
        frequencies = frequencies / torch.tensor(config.rope_factors, dtype=torch.float32)
    angles = torch.arange(config.num_positions, dtype=torch.float32)[:, None] * frequencies
    scale = config.rope_attention_scale
    return (angles.cos() * scale).to(device, dtype), (angles.sin() * scale).to(device, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head's pairs: x (..., H, D), cos and sin (..., 1, D/2) → (..., H, D)."""
    first, second = x.chunk(2, dim=-1)  # each (..., H, D/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def linear_factors(head_dim: int, factor: float) -> tuple[float, ...]:
    """Position interpolation: every frequency slowed alike (Chen et al. 2023)."""
    return (factor,) * (head_dim // 2)


def llama3_factors(
    head_dim: int,
    theta: float,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_positions: int,
) -> tuple[float, ...]:
    """Llama 3.1's: slow waves are stretched by `factor`, fast ones stay, those between are blended.

    Args:
        low_freq_factor, high_freq_factor: waves longer than original_positions / low are slow, those shorter
            than original_positions / high are fast.
        original_positions: the context before stretching.
    """
    factors = []
    for i in range(head_dim // 2):
        turns = original_positions * theta ** (-2 * i / head_dim) / (2 * math.pi)
        kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        factors.append(1 / ((1 - kept) / factor + kept))
    return tuple(factors)


def yarn_factors(
    head_dim: int,
    theta: float,
    factor: float,
    original_positions: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> tuple[float, ...]:
    """YaRN's: as Llama 3's, blended linearly over the dimensions between two numbers of turns.

    Args:
        beta_fast, beta_slow: dimensions that turn more often than beta_fast in the original context stay,
            those that turn less often than beta_slow are stretched by `factor`.
        truncate: widen the range between them to whole dimensions, as the released code does.
    """

    def dimension(turns: float) -> float:
        """The dimension whose wave turns this often within the original context."""
        return head_dim * math.log(original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    fast, slow = dimension(beta_fast), dimension(beta_slow)
    low = max(math.floor(fast) if truncate else fast, 0)
    high = min(math.ceil(slow) if truncate else slow, head_dim - 1)
    span = high - low or 0.001
    stretched = [min(max((i - low) / span, 0.0), 1.0) for i in range(head_dim // 2)]
    return tuple(1 / (share / factor + 1 - share) for share in stretched)


def yarn_attention_scale(factor: float, mscale: float = 1.0) -> float:
    """How much YaRN sharpens attention when the configuration does not say; mscale is a weight on it."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
