"""Attention for training: the scores written out on a CPU, and several sequences in one row kept apart.

torch's fused kernel is slow backwards on a CPU: 64 rows of 56 tokens, 6 heads of 32, bfloat16 on two Zen 4
cores take 33 ms fused, forward and backward, and 9 ms written out. The slow twin of `WrittenOut` is
`NoCache`, which every other device and long windows use; that of `Apart` is one sequence per row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.kv.concat import causal_attention, seen_mask

LONGEST = 256
"""Tokens up to which the T × T scores are worth their memory."""


class WrittenOut:
    """A cache that keeps nothing and attends by two matrix products and a softmax."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        length = q.shape[1]
        if length > LONGEST or q.shape[2] != k.shape[2] or window is not None:
            return causal_attention(q, k, v, window)
        return written_out(q, k, v, seen_mask(length, length, None, q.device))


class Apart:
    """A cache that keeps nothing; a token sees what came before it in its own sequence, and nothing else.

    Args:
        segments: (B, T) which of its row's sequences each token belongs to.
        written_out: the scores by hand where the rows are short, as `WrittenOut`.
    """

    def __init__(self, segments: Tensor, written_out: bool) -> None:
        self._together = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
        self._written_out = written_out and segments.shape[1] <= LONGEST

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        length = q.shape[1]
        seen = (self._together & seen_mask(length, length, window, q.device)).unsqueeze(1)  # (B, 1, T, T)
        grouped = q.shape[2] != k.shape[2]
        if self._written_out and not grouped:
            return written_out(q, k, v, seen)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H|K, T, D)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)
        return out.transpose(1, 2)  # (B, T, H, D)


def written_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention by its formula.

    Args:
        q, k, v: (B, T, H, D).
        seen: which keys each query sees, broadcastable to (B, H, T, T); every query sees one.

    Returns:
        (B, T, H, D)
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, T)
    unseen = torch.zeros(seen.shape, device=q.device).masked_fill(~seen, -torch.inf)
    precise = scores.to(torch.promote_types(scores.dtype, torch.float32))
    shares = (precise + unseen).softmax(-1).to(v.dtype)
    attended: Tensor = shares @ v  # (B, H, T, D)
    return attended.transpose(1, 2)  # (B, T, H, D)
