"""Which tokens are computed next: continuous batching, chunked prefill, preemption by recompute. No torch.

Every step is a Batch of chunks. A decoding sequence brings a chunk of one token, a new one a stretch of its
prompt, as much as the step's token budget leaves after the decoders. Sequences join and leave between steps.
When blocks run out the youngest running sequence gives its own back and waits to be recomputed; nobody else
notices.

Refuses to know logits, text, threads and devices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from llm.blocks import BlockPool
from llm.config import EngineConfig
from llm.sequence import FinishReason, Sequence, Status, TokenEvent


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + length) of one sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def wants_token(self) -> bool:
        """The chunk reaches the sequence's end: its last position draws the next token."""
        return self.start + self.length == len(self.sequence)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: decoders first, then prefill chunks."""

    chunks: list[Chunk]

    @property
    def asking(self) -> list[Sequence]:
        """The sequences that draw a token in this step, in chunk order: the M rows of logits."""
        return [chunk.sequence for chunk in self.chunks if chunk.wants_token]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


class Scheduler:
    """Waiting and running sequences of one engine. Called from that engine's thread only."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = BlockPool(config.total_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, first come first served. Its prompt fits the model: checked by whoever made
        it.
        """
        assert 0 < len(sequence.prompt) < self.config.max_model_len, len(sequence.prompt)
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> list[TokenEvent]:
        """End a sequence wherever it is; its blocks are free on return. One event, or none if it had
        ended.
        """
        return self._end(sequence, FinishReason.ABORT)

    def fail(self, batch: Batch, error: str) -> list[TokenEvent]:
        """End every sequence of a batch whose forward pass raised."""
        return [
            event
            for chunk in batch.chunks
            for event in self._end(chunk.sequence, FinishReason.ERROR, error=error)
        ]

    def schedule(self) -> Batch | None:
        """Choose the next step's tokens and give them blocks, or None when nothing runs and nothing waits."""
        chunks: list[Chunk] = []
        budget = self.config.max_num_batched_tokens
        for sequence in list(self.running):  # decoders first, see check_integrity
            if budget and sequence.status is Status.RUNNING and self._make_room(sequence, budget):
                budget -= self._plan(sequence, budget, chunks)
        while self.waiting and budget and self._admit():
            budget -= self._plan(self.running[-1], budget, chunks)
        # Admission took a whole prompt's blocks, so only decoders lack one, and they rob only the younger:
        # nobody planned above has lost its blocks since, and what was robbed is too little to return now.
        assert all(chunk.sequence.status is Status.RUNNING for chunk in chunks)
        return Batch(chunks) if chunks else None

    def commit(self, batch: Batch, tokens: list[int]) -> list[TokenEvent]:
        """Record a step: what is computed now, the tokens drawn for `batch.asking`, and who is finished."""
        events: list[TokenEvent] = []
        asking = batch.asking
        assert len(asking) == len(tokens), (len(asking), len(tokens))
        for chunk in batch.chunks:
            chunk.sequence.num_computed += chunk.length
        for sequence, token in zip(asking, tokens, strict=True):
            if token < 0:
                events += self._end(
                    sequence, FinishReason.ERROR, error="the model produced logits that are not finite"
                )
                continue
            sequence.output.append(token)
            reason = self._reason_to_stop(sequence, token)
            events += (
                [TokenEvent(sequence.id, token)] if reason is None else self._end(sequence, reason, token)
            )
        return events

    def sequences(self) -> Iterator[Sequence]:
        """Everything that has not ended."""
        yield from self.running
        yield from self.waiting

    def check_integrity(self) -> None:
        """Blocks, statuses and progress agree; called by tests after every scenario."""
        self.blocks.check_integrity(block for s in self.running for block in s.block_ids)
        assert all(not s.block_ids and s.status is Status.WAITING for s in self.waiting)
        assert all(s.status is Status.RUNNING and 0 <= s.num_computed < len(s) for s in self.running)
        assert len(self.running) <= self.config.max_num_seqs
        # A prefill that does not end takes what is left of the budget, so nobody is admitted behind it.
        assert all(s.num_uncomputed == 1 for s in self.running[:-1]), "a prefill is not the last"

    def _plan(self, sequence: Sequence, budget: int, chunks: list[Chunk]) -> int:
        chunk = Chunk(sequence, sequence.num_computed, min(sequence.num_uncomputed, budget))
        chunks.append(chunk)
        return chunk.length

    def _make_room(self, sequence: Sequence, budget: int) -> bool:
        """Blocks for the sequence's next chunk, preempting the youngest while there are too few."""
        missing = self._blocks_missing(sequence, min(sequence.num_uncomputed, budget))
        while missing > self.blocks.num_free:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.block_ids += self.blocks.take(missing)
        return True

    def _admit(self) -> bool:
        """Start the first waiting sequence if the batch has a row and the pool its whole prompt."""
        sequence = self.waiting[0]
        missing = self._blocks_missing(sequence, len(sequence))
        if len(self.running) >= self.config.max_num_seqs or missing > self.blocks.num_free:
            return False
        self.waiting.popleft()
        sequence.block_ids += self.blocks.take(missing)
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        return True

    def _blocks_missing(self, sequence: Sequence, num_new: int) -> int:
        needed = -(-(sequence.num_computed + num_new) // self.config.block_size)
        return max(0, needed - len(sequence.block_ids))

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be recomputed from its first token."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.blocks.give_back(sequence.block_ids)
        sequence.block_ids = []

    def _reason_to_stop(self, sequence: Sequence, token: int) -> FinishReason | None:
        if token in sequence.params.stop_token_ids:
            return FinishReason.STOP
        if len(sequence.output) >= sequence.params.max_tokens or len(sequence) >= self.config.max_model_len:
            return FinishReason.LENGTH
        return None

    def _end(
        self, sequence: Sequence, reason: FinishReason, token: int | None = None, error: str | None = None
    ) -> list[TokenEvent]:
        """The one way out: status, queues, blocks and the last event together."""
        if sequence.status is Status.FINISHED:
            return []
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.status = Status.FINISHED
        return [TokenEvent(sequence.id, token, reason, error)]
