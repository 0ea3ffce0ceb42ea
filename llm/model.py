"""One config-driven decoder-only transformer: GPT-2's family and Llama's are switches of one network.

Everything a forward pass needs is in its arguments.

    B  rows (sequences)            H  query heads        C  width of the residual stream
    T  new tokens                  K  key/value heads    V  vocabulary
    S  cached tokens               D  head dimension     L  layers
    N  KV blocks                   P  tokens per block   M  rows that want logits

Shapes start with `...`: (B, T) in training and in the oracles, a flat (T,) of many sequences' tokens in
serving; only the cache knows which tokens belong together. Refuses to know tokens' meaning, sampling, files
and devices.

    >>> model = Decoder(config); hidden = model(ids, positions, NoCache()); logits = model.logits(hidden)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config import ModelConfig
from llm.kv import KVCache
from llm.rope import Rotary, rotate

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the new tokens' rotary positions, each (..., 1, D/2)."""

Project = Callable[[nn.Linear, Tensor], Tensor]
"""How a linear of the blocks is computed: (..., in) → (..., out). Adapters compute more than its weights."""


def plainly(linear: nn.Linear, x: Tensor) -> Tensor:
    """The linear and nothing else."""
    y: Tensor = linear(x)
    return y


class Attention(nn.Module):
    """Multi-head attention; where keys and values live is the cache's affair."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, config.window(layer)
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.split = (q_width, kv_width, kv_width)
        self.qkv = nn.Linear(config.width, sum(self.split), bias=config.attention_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.out = nn.Linear(q_width, config.width, bias=config.attention_out_bias)

    def forward(self, x: Tensor, angles: Angles | None, cache: KVCache, project: Project) -> Tensor:
        fused: Any = project(self.qkv, x)  # Any: torch's split and unflatten have no types
        q, k, v = fused.split(self.split, dim=-1)  # (..., H·D), (..., K·D), (..., K·D)
        q = q.unflatten(-1, (self.num_heads, self.head_dim))  # (..., H, D)
        k = k.unflatten(-1, (self.num_kv_heads, self.head_dim))  # (..., K, D)
        v = v.unflatten(-1, (self.num_kv_heads, self.head_dim))  # (..., K, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        attended = cache.attend(self.layer, q, k, v, self.window)  # (..., H, D)
        return project(self.out, attended.flatten(-2))  # (..., C)


class FeedForward(nn.Module):
    """Two projections around a GELU, or three around a gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        gated = config.activation == "swiglu"
        self.gate = nn.Linear(config.width, config.ffn_width, bias=config.ffn_bias) if gated else None
        self.up = nn.Linear(config.width, config.ffn_width, bias=config.ffn_bias)
        self.down = nn.Linear(config.ffn_width, config.width, bias=config.ffn_bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor, project: Project) -> Tensor:
        if self.gate is None:
            hidden = F.gelu(project(self.up, x), approximate=self.approximate)  # (..., ffn_width)
        else:
            hidden = F.silu(project(self.gate, x)) * project(self.up, x)  # (..., ffn_width)
        return project(self.down, hidden)  # (..., C)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, angles: Angles | None, cache: KVCache, project: Project = plainly) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, cache, project)
        x = x + self.ffn(self.ffn_norm(x), project)
        return x


def make_norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The norm over the residual stream that this network uses."""
    if config.norm == "rms":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.norm_bias)


def make_embedding(num_rows: int, width: int) -> nn.Embedding:
    """A table without first values: drawing them costs seconds of imports where nothing is stored (meta)."""
    return nn.Embedding(num_rows, width, _weight=torch.empty(num_rows, width))


class Decoder(nn.Module):
    """Token embedding, learned or rotary positions, L blocks, a final norm and a head.

    Every checkpoint's tensors are translated into the names of these parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = make_embedding(config.vocab_size, config.width)
        learned = config.rope_theta is None
        self.positions = make_embedding(config.num_positions, config.width) if learned else None
        self.rotary = None if learned else Rotary(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, positions: Tensor, cache: KVCache, project: Project = plainly) -> Tensor:
        """Hidden states after the final norm.

        Args:
            ids: token ids (...).
            positions: each token's place in its sequence, broadcastable to ids.
            cache: stores the new keys and values and attends.
            project: computes the linears of the blocks.

        Returns:
            (..., C)
        """
        x = self.tokens(ids)  # (..., C)
        if self.positions is not None:
            x = x + self.positions(positions)  # (..., C)
        angles = None if self.rotary is None else self.rotary(positions, x.dtype)
        for block in self.blocks:
            x = block(x, angles, cache, project)
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token as the next one: (..., C) → (..., V)."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The matrix behind `logits`, (V, C)."""
        return self.tokens.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        return self.tokens.weight.device

    def num_parameters(self) -> int:
        """Numbers in the network, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())


@torch.no_grad()
def init_weights(model: Decoder, seed: int) -> None:
    """GPT-2's initialisation: normal(0, 0.02), residual projections scaled by 1/sqrt(2L), biases 0.

    Source: Radford et al. 2019, section 2.3; the 0.02 from the released code.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = 0.02 / math.sqrt(2 * model.config.num_layers)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            std = residual_std if name.endswith(("attention.out.weight", "ffn.down.weight")) else 0.02
            parameter.normal_(0.0, std, generator=generator)
