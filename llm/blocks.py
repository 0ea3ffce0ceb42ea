"""Who holds which KV block. Ids only: the runner owns the storage behind them. No torch.

>>> pool = BlockPool(4)
>>> pool.take(2)
[0, 1]
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """A fixed number of blocks, each free or held by exactly one sequence."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hand out `count` free blocks; the caller has looked at `num_free` first."""
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        self._held.update(taken)
        return taken

    def give_back(self, block_ids: list[int]) -> None:
        """Take blocks back from the sequence that held them."""
        for block in block_ids:
            assert block in self._held, f"block {block} given back but not held"
            self._held.remove(block)
            self._free.append(block)

    def check_integrity(self, held: Iterable[int] = ()) -> None:
        """Every block is free or held, none twice, and the held ones are those in `held`."""
        claimed = list(held)
        assert len(claimed) == len(set(claimed)), f"a block is held twice: {sorted(claimed)}"
        assert set(claimed) == self._held, f"held {sorted(self._held)}, sequences claim {sorted(claimed)}"
        assert len(self._free) == len(set(self._free)), "a block is free twice"
        assert set(self._free).isdisjoint(self._held), "a block is free and held"
        assert len(self._free) + len(self._held) == self.num_blocks, "a block is lost"
