"""Keys and values of many sequences in fixed blocks, and attention over them in plain torch.

    pool: (L, 2, N, P, K, D)      block table of one sequence: [7, 2, 9, …]  token t lives in block table[t
        // P], row t % P

`PagedKV` owns the storage for the life of an engine; `PagedStep` is one step's view of it, the cache that
the model sees: it scatters the new keys and values, then attends, all decoders in one call and each prefill
chunk in its own. Refuses to know which blocks are free (blocks.py) and why these tokens are computed now
(scheduler.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.config import EngineConfig, ModelConfig
from llm.errors import OptionError
from llm.hardware import usable_memory
from llm.kv.concat import seen_mask


class PagedKV:
    """The storage behind block ids.

    Raises:
        OptionError: the device has no room for it.
    """

    def __init__(
        self, model: ModelConfig, engine: EngineConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.block_size = engine.block_size
        self.device = device
        shape = (
            model.num_layers,
            2,
            engine.total_blocks,
            engine.block_size,
            model.num_kv_heads,
            model.head_dim,
        )
        self.pool = _allocate(shape, device, dtype)  # (L, 2, N, P, K, D)

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Contents of blocks to others, (from, to) each, all read before any is written."""
        if blocks:
            sources, targets = zip(*blocks, strict=True)
            self.pool[:, :, list(targets)] = self.pool[:, :, list(sources)]

    @property
    def num_bytes(self) -> int:
        return self.pool.numel() * self.pool.element_size()


def _allocate(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, or a line that names what to lower. A CPU hands out memory it does not have, so that is compared
    first; there a page counts once it is written, since torch's own zeros would fill gigabytes at the start.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    try:
        if device.type != "cpu":
            return torch.zeros(shape, device=device, dtype=dtype)
        if num_bytes > usable_memory():
            raise MemoryError
        return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(shape)
    except (RuntimeError, MemoryError):  # torch's out-of-memory errors are RuntimeErrors
        raise OptionError(
            f"a KV cache of {shape[2]} blocks of {shape[3]} tokens needs {num_bytes / 1e9:.1f} GB, "
            f"more than {device} has: lower --max-num-seqs or --max-model-len"
        ) from None


class PagedStep:
    """One step's cache: T tokens of several sequences, side by side.

    Args:
        kv: the storage.
        tables: block ids of each sequence, in order.
        starts: of each sequence, how many tokens were computed before.
        lengths: of each sequence, how many tokens this step computes; sum is T. Sequences of length 1 come
            first.
    """

    def __init__(
        self, kv: PagedKV, tables: Sequence[list[int]], starts: list[int], lengths: list[int]
    ) -> None:
        self._kv = kv
        self._num_decodes = next((i for i, n in enumerate(lengths) if n > 1), len(lengths))
        slots = [
            table[t // kv.block_size] * kv.block_size + t % kv.block_size
            for table, start, length in zip(tables, starts, lengths, strict=True)
            for t in range(start, start + length)
        ]
        self._slots = torch.tensor(slots, device=kv.device)  # (T,)
        self._clear_fresh(tables, starts, lengths)
        self._prefills = [
            (self._used(table, start + length), start, length)
            for table, start, length in zip(tables, starts, lengths, strict=True)
        ][self._num_decodes :]
        if self._num_decodes:
            self._plan_decodes(
                tables[: self._num_decodes], [start + 1 for start in starts[: self._num_decodes]]
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """See KVCache. q (T, H, D), k and v (T, K, D) → (T, H, D)."""
        keys, values = self._kv.pool[layer].unbind()  # each (N, P, K, D)
        keys.flatten(0, 1)[self._slots] = k
        values.flatten(0, 1)[self._slots] = v
        out = torch.empty_like(q)
        if self._num_decodes:
            out[: self._num_decodes] = self._decode(q[: self._num_decodes], keys, values, window)
        row = self._num_decodes
        for blocks, start, length in self._prefills:
            chunk = slice(row, row + length)
            out[chunk] = self._prefill(q[chunk], keys, values, blocks, start, window)
            row += length
        return out

    def _clear_fresh(self, tables: Sequence[list[int]], starts: list[int], lengths: list[int]) -> None:
        """Zero the blocks that this step begins and does not fill. A mask hides what the last owner left
        there, but 0 × NaN is NaN: one sequence's overflow would reach the next.
        """
        size = self._kv.block_size
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        fresh = [
            table[end // size]
            for table, start, end in zip(tables, starts, ends, strict=True)
            if end % size and end // size * size >= start
        ]
        if fresh:
            self._kv.pool[:, :, fresh] = 0

    def _used(self, table: list[int], num_tokens: int) -> Tensor:
        return torch.tensor(
            table[: -(-num_tokens // self._kv.block_size)], device=self._kv.device
        )  # (blocks,)

    def _plan_decodes(self, tables: Sequence[list[int]], num_tokens: list[int]) -> None:
        """Pad the decoders' block tables to the longest; what lies beyond a sequence's end is masked."""
        width = max(-(-n // self._kv.block_size) for n in num_tokens)
        padded = [(table + [table[0]] * width)[:width] for table in tables]
        self._tables = torch.tensor(padded, device=self._kv.device)  # (B, blocks)
        self._ends = torch.tensor(num_tokens, device=self._kv.device)[:, None]  # (B, 1)
        self._tokens = torch.arange(width * self._kv.block_size, device=self._kv.device)  # (S,)
        self._longest = max(num_tokens)
        ragged = min(num_tokens) < len(self._tokens)
        self._mask = (self._tokens < self._ends)[:, None, None] if ragged else None  # (B, 1, 1, S)

    def _decode_mask(self, window: int | None) -> Tensor | None:
        """Tokens that each decoder sees, (B, 1, 1, S), or None for all."""
        if window is None or window >= self._longest:
            return self._mask
        seen = (self._tokens < self._ends) & (self._tokens >= self._ends - window)  # (B, S)
        return seen[:, None, None]

    def _decode(self, q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
        """One query per sequence: q (B, H, D), keys and values (N, P, K, D) → (B, H, D)."""
        k = keys[self._tables].flatten(1, 2).transpose(1, 2)  # (B, K, S, D)
        v = values[self._tables].flatten(1, 2).transpose(1, 2)  # (B, K, S, D)
        grouped = q.shape[1] != k.shape[1]
        mask = self._decode_mask(window)
        out = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, enable_gqa=grouped)
        return out[:, :, 0]

    def _prefill(
        self, q: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, start: int, window: int | None
    ) -> Tensor:
        """A chunk of one prompt: q (T, H, D), its tokens start..start+T-1 → (T, H, D)."""
        end = start + q.shape[0]
        k = keys[blocks].flatten(0, 1)[:end].transpose(0, 1)[None]  # (1, K, S+T, D)
        v = values[blocks].flatten(0, 1)[:end].transpose(0, 1)[None]  # (1, K, S+T, D)
        grouped = q.shape[1] != k.shape[1]
        query = q.transpose(0, 1)[None]  # (1, H, T, D)
        if start == 0 and (window is None or window >= end):
            out = F.scaled_dot_product_attention(query, k, v, is_causal=True, enable_gqa=grouped)
        else:
            seen = seen_mask(q.shape[0], end, window, q.device)  # (T, S+T)
            out = F.scaled_dot_product_attention(query, k, v, attn_mask=seen, enable_gqa=grouped)
        return out[0].transpose(0, 1)  # (T, H, D)
