"""A runner for tests that computes nothing: it remembers what every place in a block stands for.

The slow, obvious twin of the prefix cache: a place's key and value depend on whose the sequence is, on its
salt and on its tokens up to there, so that is what is written; and before a chunk is computed everything it
reads is compared with what it should find.
"""

from __future__ import annotations

from llm.batch import Batch, Drawn
from llm.config import EngineConfig
from llm.scheduler import Scheduler
from llm.sequence import Sequence, TokenEvent

Meaning = tuple[str, str, tuple[int, ...]]


class Blackboard:
    """Takes batches in the order in which they were scheduled."""

    def __init__(self, config: EngineConfig) -> None:
        self.size = config.block_size
        self.places: dict[tuple[int, int], Meaning] = {}
        self.num_copies = 0
        self.num_reused_sources = 0

    def run(self, batch: Batch) -> None:
        """Copy, check what is read, write."""
        written: set[int] = set()
        sources: set[int] = set()
        for source, target in batch.copies:
            assert source not in written, "what is copied is what was computed in earlier steps"
            assert target not in written, "two copies into one block"
            written.add(target)
            self.num_reused_sources += target in sources
            sources.add(source)
            for place in range(self.size):
                self.places.pop((target, place), None)
                if (source, place) in self.places:
                    self.places[target, place] = self.places[source, place]
        self.num_copies += len(batch.copies)
        for chunk in batch.chunks:
            for position in range(chunk.start):
                found = self.places.get(self._place(chunk.sequence, position))
                assert found == meaning(chunk.sequence, position), f"position {position}: {found}"
            for position in range(chunk.start, chunk.stop):
                self.places[self._place(chunk.sequence, position)] = meaning(chunk.sequence, position)

    def _place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.block_ids[position // self.size], position % self.size


def meaning(sequence: Sequence, position: int) -> Meaning:
    """What the key and value of a position depend on."""
    return sequence.client, sequence.cache_salt, tuple(sequence.tokens(0, position + 1))


class Rehearsal:
    """A scheduler on a blackboard, driven by hand.

    Attributes:
        num_computed: tokens, all steps together.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.scheduler = Scheduler(config)
        self.board = Blackboard(config)
        self.num_computed = 0

    def step(self, token: int = 7) -> list[TokenEvent] | None:
        """One step, in which every sequence draws the same token; None when there is nothing to do."""
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        self.board.run(batch)
        self.num_computed += batch.num_tokens
        drawn = Drawn(
            [token] * len(batch.asking),
            scores=[()] * len(batch.scores),
            hidden=[[0.0] for chunk in batch.chunks if chunk.sequence.embeds],
        )
        events = self.scheduler.commit(batch, drawn)
        self.scheduler.check_integrity()
        return events

    def finish(self, *sequences: Sequence, token: int = 7) -> int:
        """Add these and step until nothing is left to do; how many tokens were computed meanwhile."""
        before = self.num_computed
        for sequence in sequences:
            self.scheduler.add(sequence)
        while self.step(token) is not None:
            pass
        pool = self.scheduler.blocks
        assert pool.num_free == pool.num_blocks
        return self.num_computed - before
