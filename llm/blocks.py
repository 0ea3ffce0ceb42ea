"""Who holds which KV block, and which are free. Ids only: the runner owns the storage behind them. No torch.

A block that is given back keeps its keys and values until somebody needs the room. If the index can find it,
it is cached: free, but taken only when no empty one is left, the least recently used first.

>>> pool = BlockPool(4)
>>> pool.take(2)
[0, 1]
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from llm.prefix import Entry, PrefixIndex


class BlockPool:
    """A fixed number of blocks, each empty, cached, or held, by one sequence or several that begin alike.

    Attributes:
        index: what is found in held and cached blocks.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.index = PrefixIndex()
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._holders: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken: empty or cached."""
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def is_cached(self, block: int) -> bool:
        """Whether the block counts as free, and would not if it were shared."""
        return block in self._cached

    def is_shared(self, block: int) -> bool:
        """Whether to write into the block would change what another sequence reads."""
        return self._holders[block] > 1

    def take(self, count: int) -> list[int]:
        """Hand out `count` free blocks; the caller has looked at `num_free` first."""
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        taken = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """One more sequence holds each of these, which are held or cached."""
        for block in block_ids:
            if block in self._cached:
                del self._cached[block]
                self._holders[block] = 1
            else:
                assert block in self._holders, f"block {block} shared but not held"
                self._holders[block] += 1

    def list_block(self, block: int, entry: Entry) -> None:
        """From now on the index finds a held block by what it says."""
        assert block in self._holders, f"block {block} listed but not held"
        self.index.add(block, entry)

    def give_back(self, block_ids: Sequence[int], *, forget: bool = False) -> None:
        """A sequence no longer holds these, which are in the order of its tokens. Of those that nobody holds
        now the later ones are taken before the earlier, without which they are not found.

        Args:
            forget: what is in those is not to be found again.
        """
        for block in reversed(block_ids):
            assert block in self._holders, f"block {block} given back but not held"
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if forget and block in self.index:
                self.index.remove(block)
            if block in self.index:
                self._cached[block] = None
            else:
                self._empty.append(block)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self.index.remove(block)
        return block

    def check_integrity(self, held: Iterable[int] = ()) -> None:
        """Every block is empty, cached, or held by as many as name it in `held`; what is listed is not
        empty.
        """
        claimed = Counter(held)
        assert claimed == self._holders, f"held {self._holders}, sequences claim {dict(claimed)}"
        assert len(self._empty) == len(set(self._empty)), "a block is free twice"
        assert not set(self._empty) & (self._holders.keys() | self._cached.keys()), "a block is free and held"
        assert not self._cached.keys() & self._holders.keys(), "a block is cached and held"
        assert len(self._empty) + len(self._cached) + len(self._holders) == self.num_blocks, "a block is lost"
        self.index.check_integrity()
        assert all(block in self.index for block in self._cached), "a cached block cannot be found"
        assert not any(block in self.index for block in self._empty), "an empty block is listed"
