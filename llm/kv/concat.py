"""The obvious caches: nothing kept, or everything concatenated. One sequence per row, no paging.

`NoCache` sees a whole context at once (training, `generate_naive`). `ConcatCache` is the course's cache:
keys and values of each layer grow by torch.cat. Both are the oracle of `paged`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Softmax attention of the last T tokens over all S+T, query i seeing keys 0..S+i, or the last of them.

    Args:
        q: (B, T, H, D).
        k, v: (B, S+T, K, D); each key/value head serves H/K query heads.
        window: keys that a query sees at most; None for all.

    Returns:
        (B, T, H, D)
    """
    num_new, num_total = q.shape[1], k.shape[1]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H|K, ·, D)
    grouped = q.shape[1] != k.shape[1]
    if window is not None and window < num_total:
        mask = seen_mask(num_new, num_total, window, q.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    elif num_new == num_total:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif num_new == 1:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    else:
        mask = seen_mask(num_new, num_total, None, q.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2)  # (B, T, H, D)


def seen_mask(num_new: int, num_total: int, window: int | None, device: torch.device) -> Tensor:
    """Which of S+T keys each of the last T queries sees: (T, S+T), True for seen."""
    num_cached = num_total - num_new
    mask = torch.ones(num_new, num_total, dtype=torch.bool, device=device).tril(num_cached)
    return mask if window is None else mask.triu(num_cached - window + 1)


class NoCache:
    """Every call brings the whole context; nothing is kept."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        return causal_attention(q, k, v, window)


class ConcatCache:
    """Keys and values of all tokens so far, one growing tensor per layer: (B, S, K, D)."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Tokens cached (S)."""
        return self._kept[0][0].shape[1] if self._kept else 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        if layer in self._kept:
            past_k, past_v = self._kept[layer]
            k, v = torch.cat((past_k, k), dim=1), torch.cat((past_v, v), dim=1)  # (B, S+T, K, D)
        self._kept[layer] = (k, v)
        return causal_attention(q, k, v, window)
