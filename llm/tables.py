"""Which blocks a sequence gets, shares, copies and leaves behind: the block tables of one engine. No torch.

A sequence that starts takes over what is computed of its tokens already: every full block that the index
finds by name, and of the block after these as many tokens as some block there has in common with it, copied,
since it goes on differently. The last token is always computed. What a sequence has computed is listed block
by block as it goes on, its reply too, so that a chat's next turn finds it; the block it had begun is listed
when it leaves.

Refuses to know who is to run and who has to go (scheduler.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llm.blocks import BlockPool
from llm.config import EngineConfig
from llm.prefix import Entry, next_name, root_name
from llm.sequence import Sequence

Copies = list[tuple[int, int]]
"""(from, to) blocks whose contents move before a step is computed."""


@dataclass(slots=True)
class _Found:
    """What is computed already of a sequence's tokens.

    Attributes:
        blocks: full ones, in order.
        tail: the block that begins like the tokens after these; it goes on differently, so it is copied.
        num_tail: tokens of it.
    """

    blocks: list[int] = field(default_factory=list)
    tail: int = -1
    num_tail: int = 0


class BlockTables:
    """Gives sequences their blocks. Called from the engine's thread only.

    Attributes:
        pool: the blocks.
        num_queries: tokens of prompts that were looked up, once each, before they first ran.
        num_hits: of these, how many were found.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.pool = BlockPool(config.total_blocks)
        self.num_queries = 0
        self.num_hits = 0
        self._size = config.block_size
        self._caches = config.enable_prefix_caching

    def start(self, sequence: Sequence) -> Copies | None:
        """Blocks for all of a sequence's tokens, with what is computed of them already; None when too few are
        free.
        """
        found = self._find(sequence)
        missing = self._num_blocks(len(sequence)) - len(found.blocks)
        room = self.pool.num_free - sum(map(self.pool.is_cached, found.blocks))
        if missing > room:
            return None
        if found.num_tail and missing + self.pool.is_cached(found.tail) > room:
            found.num_tail = 0  # to be copied it would have to stay, and there is nothing else to take
        kept = [found.tail] if found.num_tail else []
        self.pool.share([*found.blocks, *kept])
        sequence.block_ids = [*found.blocks, *self.pool.take(missing)]
        self.pool.give_back(kept)  # copied before anything is computed, whoever takes it in this step
        sequence.num_writable = len(sequence.block_ids) * self._size
        sequence.num_listed = len(found.blocks)
        sequence.num_computed = len(found.blocks) * self._size + found.num_tail
        self._count(sequence)
        return [(source, sequence.block_ids[len(found.blocks)]) for source in kept]

    def extend(self, sequence: Sequence, num_new: int) -> Copies | None:
        """Blocks for the sequence's next tokens, and one of its own where another reads the one they go into;
        None when too few are free.
        """
        index = sequence.num_computed // self._size
        copies = index < len(sequence.block_ids) and self.pool.is_shared(sequence.block_ids[index])
        missing = max(0, self._num_blocks(sequence.num_computed + num_new) - len(sequence.block_ids))
        if missing + copies > self.pool.num_free:
            return None
        sequence.block_ids += self.pool.take(missing)
        sequence.num_writable = len(sequence.block_ids) * self._size
        if not copies:
            return []
        shared, (own,) = sequence.block_ids[index], self.pool.take(1)
        sequence.block_ids = [*sequence.block_ids[:index], own, *sequence.block_ids[index + 1 :]]
        self.pool.give_back([shared])
        return [(shared, own)]

    def fork(self, leader: Sequence, fork: Sequence) -> None:
        """A fork holds what its leader has computed; whichever writes first needs a block of its own."""
        leader.num_writable = 0
        fork.block_ids = list(leader.block_ids)
        self.pool.share(fork.block_ids)
        fork.names = list(leader.names)
        fork.num_computed, fork.num_listed = leader.num_computed, leader.num_listed
        fork.num_cached = leader.num_cached

    def list_full(self, sequence: Sequence) -> None:
        """A sequence has gone on: the blocks that are full now can be found."""
        if not self._caches:
            return
        for index in range(sequence.num_listed, sequence.num_computed // self._size):
            tokens = sequence.tokens(index * self._size, (index + 1) * self._size)
            entry = Entry(self._name(sequence, index), tuple(tokens), self._name(sequence, index + 1))
            self.pool.list_block(sequence.block_ids[index], entry)
            sequence.num_listed += 1

    def release(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take a sequence's blocks back.

        Args:
            forget: something went wrong: what it computed serves nobody else.
        """
        if self._caches and not forget:
            self._list_begun(sequence)
        self.pool.give_back(sequence.block_ids, forget=forget)
        sequence.block_ids = []
        sequence.num_computed = sequence.num_writable = sequence.num_listed = 0

    def _list_begun(self, sequence: Sequence) -> None:
        """The block that is not full: its last holder leaves it to be found."""
        index, num_tokens = divmod(sequence.num_computed, self._size)
        if num_tokens and not self.pool.is_shared(sequence.block_ids[index]):
            tokens = sequence.tokens(sequence.num_computed - num_tokens, sequence.num_computed)
            self.pool.list_block(sequence.block_ids[index], Entry(self._name(sequence, index), tuple(tokens)))

    def _find(self, sequence: Sequence) -> _Found:
        """What is computed already, short of the tokens whose outputs are wanted."""
        found, most = _Found(), sequence.num_reusable
        if not self._caches or not most:
            return found
        for index in range(most // self._size):
            block = self.pool.index.find(self._name(sequence, index + 1))
            if block is None:
                break
            found.blocks.append(block)
        start = len(found.blocks) * self._size
        rest = sequence.tokens(start, min(start + self._size, most))
        parent = self._name(sequence, len(found.blocks))
        found.tail, found.num_tail = self.pool.index.closest(parent, tuple(rest))
        return found

    def _name(self, sequence: Sequence, index: int) -> bytes:
        """The name before the sequence's block of that index; each is made once."""
        names = sequence.names
        if not names:
            names.append(root_name(sequence.client, sequence.cache_salt, sequence.adapter))
        while len(names) <= index:
            start = (len(names) - 1) * self._size
            names.append(next_name(names[-1], sequence.tokens(start, start + self._size)))
        return names[index]

    def _count(self, sequence: Sequence) -> None:
        """A prompt is looked up once: what it finds of itself after a preemption is no hit."""
        if self._caches and not sequence.num_preemptions and not sequence.wants_whole_prompt:
            sequence.num_cached = sequence.num_computed
            self.num_queries += len(sequence.prompt)
            self.num_hits += sequence.num_cached

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._size)
