"""Who holds which KV block. Ids only: the runner owns the storage behind them. No torch.

>>> pool = BlockPool(4)
>>> pool.take(2)
[0, 1]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class BlockPool:
    """A fixed number of blocks, each free or held by one sequence or several with the same beginning."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hand out `count` free blocks; the caller has looked at `num_free` first."""
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """One more sequence holds each of these."""
        for block in block_ids:
            assert block in self._holders, f"block {block} shared but not held"
            self._holders[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether to write into the block would change what another sequence reads."""
        return self._holders[block] > 1

    def give_back(self, block_ids: Iterable[int]) -> None:
        """A sequence no longer holds these; the last one's are free."""
        for block in block_ids:
            assert block in self._holders, f"block {block} given back but not held"
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._free.append(block)

    def check_integrity(self, held: Iterable[int] = ()) -> None:
        """Every block is free or held, and by as many as name it in `held`."""
        claimed = Counter(held)
        assert claimed == self._holders, f"held {self._holders}, sequences claim {dict(claimed)}"
        assert len(self._free) == len(set(self._free)), "a block is free twice"
        assert set(self._free).isdisjoint(self._holders), "a block is free and held"
        assert len(self._free) + len(self._holders) == self.num_blocks, "a block is lost"
