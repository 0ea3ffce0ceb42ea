"""KV caches behind one call: the cache stores keys and values *and* attends, since layout decides the kernel.

`concat` is the slow twin (training, oracles), `paged` serves.
"""

from typing import Protocol

from torch import Tensor


class KVCache(Protocol):
    """Where a model's layers keep what later tokens look back at."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """Store k and v, then attend causally.

        Args:
            layer: index of the transformer block.
            q: queries of the new tokens, (..., H, D).
            k, v: keys and values of the same tokens, (..., K, D).
            window: a token sees itself and this many - 1 before it; None for all.

        Returns:
            Weighted values, same shape as q. The scale is 1/sqrt(D).
        """
