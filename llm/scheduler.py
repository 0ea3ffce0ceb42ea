"""Which tokens are computed next: continuous batching, chunked prefill, preemption by recompute. No torch.

Every step is a Batch of chunks. A decoding sequence brings a chunk of one token, a new one a stretch of its
prompt, as much as the step's token budget leaves after the decoders. Sequences join and leave between steps.
When blocks run out the youngest running sequence gives its own back and waits to be recomputed; nobody else
notices.

Refuses to know logits, text, threads and devices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from llm.blocks import BlockPool
from llm.config import EngineConfig
from llm.errors import StepFailed
from llm.sequence import Accepted, FinishReason, Logprob, Sequence, Status, TokenEvent
from llm.waiting import WaitingLine


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + length) of one sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def wants_token(self) -> bool:
        """The chunk reaches the sequence's end: its last position draws the next token."""
        return self.stop == len(self.sequence) and not self.sequence.embeds

    @property
    def scored(self) -> range:
        """Positions whose logits are wanted because the prompt has a next token there, and nobody knows yet
        how probable that one is.
        """
        sequence = self.sequence
        if sequence.params.prompt_logprobs is None:
            return range(0)
        return range(max(self.start, sequence.num_scored), min(self.stop, len(sequence.prompt) - 1))


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: decoders first, then prefill chunks.

    Attributes:
        chunks: what is computed; T tokens in all.
        copies: (from, to) blocks whose contents move before anything is computed.
        rows: of the T tokens those whose logits are wanted, ascending; M of them.
        asking: sequences that draw a token in this step, a chunk's own before its forks.
        draws: of each asking sequence its row among the M.
        scores: of each chunk with scored positions its first row among the M.
    """

    chunks: list[Chunk]
    copies: list[tuple[int, int]] = field(default_factory=list)
    rows: list[int] = field(init=False, default_factory=list)
    asking: list[Sequence] = field(init=False, default_factory=list)
    draws: list[int] = field(init=False, default_factory=list)
    scores: list[tuple[Chunk, int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        offset = 0  # of the chunk's first token among the T
        for chunk in self.chunks:
            if scored := chunk.scored:
                self.scores.append((chunk, len(self.rows)))
                self.rows.extend(offset + position - chunk.start for position in scored)
            if chunk.wants_token:
                group = [chunk.sequence, *chunk.sequence.forks]
                self.asking.extend(group)
                self.draws.extend([len(self.rows)] * len(group))
                self.rows.append(offset + chunk.length - 1)
            offset += chunk.length

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step found out, for `commit`.

    Attributes:
        tokens: of `batch.asking`; below 0 where the logits allow none.
        logprobs: of the same sequences; empty when none asks.
        accepted: what each one's grammar says; empty when none has one.
        scores: of each chunk of `batch.scores`.
        hidden: of each embedding chunk in order, the sum of its hidden states.
    """

    tokens: list[int]
    logprobs: list[Logprob | None] = field(default_factory=list)
    accepted: list[Accepted | None] = field(default_factory=list)
    scores: list[tuple[Logprob, ...]] = field(default_factory=list)
    hidden: list[list[float]] = field(default_factory=list)


class Scheduler:
    """Waiting and running sequences of one engine. Called from that engine's thread only."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = BlockPool(config.total_blocks)
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence and its forks; `llm.waiting` says who is next. The prompt fits the model: checked
        by whoever made it.
        """
        limit = self.config.max_model_len - (not sequence.embeds)
        assert 0 < len(sequence.prompt) <= limit, len(sequence.prompt)
        most = self.config.max_num_seqs - 1  # forks that can start together with their leader
        later = sequence.forks[most:]
        del sequence.forks[most:]
        self.waiting.add(sequence)
        if later:
            first, first.leader, first.forks = later[0], None, later[1:]
            for fork in first.forks:
                fork.leader = first
            self.add(first)

    def abort(self, sequence: Sequence) -> list[TokenEvent]:
        """End a sequence wherever it is; its blocks are free on return. One event, or none if it had
        ended.
        """
        return self._end(sequence, FinishReason.ABORT)

    def fail(self, batch: Batch, fault: type[StepFailed], message: str) -> list[TokenEvent]:
        """End every sequence of a batch whose forward pass raised, each with an error of its own."""
        return [
            event
            for chunk in batch.chunks
            for sequence in (*chunk.sequence.forks, chunk.sequence)
            for event in self._end(sequence, FinishReason.ERROR, error=fault(message))
        ]

    def schedule(self) -> Batch | None:
        """Choose the next step's tokens and give them blocks, or None when nothing runs and nothing waits."""
        chunks: list[Chunk] = []
        copies: list[tuple[int, int]] = []
        budget = self.config.max_num_batched_tokens
        for sequence in list(self.running):  # decoders first, see check_integrity
            if budget and sequence.status is Status.RUNNING and self._make_room(sequence, budget, copies):
                budget -= self._plan(sequence, budget, chunks)
        while self.waiting and budget and self._admit():
            budget -= self._plan(self.running[-1], budget, chunks)
        # Admission took a whole prompt's blocks, so only decoders lack one, and they rob only the younger:
        # nobody planned above has lost its blocks since, and what was robbed is too little to return now.
        assert all(chunk.sequence.status is Status.RUNNING for chunk in chunks)
        return Batch(chunks, copies) if chunks else None

    def commit(self, batch: Batch, drawn: Drawn) -> list[TokenEvent]:
        """Record a step: what is computed now, the tokens drawn for `batch.asking`, and who is finished."""
        now, size = time.monotonic(), len(batch.chunks)
        events = self._commit_prompts(batch, drawn, now, size)
        assert len(batch.asking) == len(drawn.tokens), (len(batch.asking), len(drawn.tokens))
        for i, (sequence, token) in enumerate(zip(batch.asking, drawn.tokens, strict=True)):
            accepted = drawn.accepted[i] if drawn.accepted else None
            if token < 0 or accepted is Accepted.REFUSED:
                events += self._end(sequence, FinishReason.ERROR, error=StepFailed(_why_no_token(sequence)))
                continue
            sequence.output.append(token)
            events.append(
                TokenEvent(
                    sequence.id,
                    token,
                    reason := self._reason_to_stop(sequence, token, accepted),
                    is_text=not _is_end(sequence, token, accepted),
                    logprob=drawn.logprobs[i] if drawn.logprobs else None,
                    at=now,
                    batch_size=size,
                )
            )
            if reason is not None:
                self._leave(sequence)
        return events

    def _commit_prompts(self, batch: Batch, drawn: Drawn, now: float, size: int) -> list[TokenEvent]:
        """What is computed now, prompts scored and embedded, and forks that start from a complete prompt."""
        events: list[TokenEvent] = []
        for (chunk, _), scores in zip(batch.scores, drawn.scores, strict=True):
            chunk.sequence.num_scored = chunk.scored.stop
            events.append(
                TokenEvent(chunk.sequence.id, None, prompt_logprobs=scores, at=now, batch_size=size)
            )
        hidden = iter(drawn.hidden)
        for chunk in batch.chunks:
            sequence = chunk.sequence
            sequence.num_computed += chunk.length
            if sequence.embeds:
                part = next(hidden)
                sums = sequence.hidden_sum or [0.0] * len(part)
                sequence.hidden_sum = [a + b for a, b in zip(sums, part, strict=True)]
                if chunk.stop == len(sequence):
                    mean = tuple(value / len(sequence) for value in sequence.hidden_sum)
                    self._leave(sequence)
                    events.append(
                        TokenEvent(
                            sequence.id, None, FinishReason.STOP, embedding=mean, at=now, batch_size=size
                        )
                    )
            elif chunk.wants_token and sequence.forks:
                self._start_forks(sequence)
        return events

    def sequences(self) -> Iterator[Sequence]:
        """Everything that has not ended."""
        for sequence in (*self.running, *self.waiting):
            yield sequence
            yield from sequence.forks

    @property
    def num_waiting(self) -> int:
        """Sequences that do not run yet, forks included; may be read from any thread."""
        queued = sum(1 + len(sequence.forks) for sequence in self.waiting)
        return queued + sum(len(sequence.forks) for sequence in list(self.running))

    def check_integrity(self) -> None:
        """Blocks, statuses and progress agree; called by tests after every scenario."""
        self.blocks.check_integrity(block for s in self.running for block in s.block_ids)
        assert all(not s.block_ids and s.status is Status.WAITING for s in self.waiting)
        assert all(f.leader is s and not f.block_ids for s in self.sequences() for f in s.forks)
        assert all(s.leader is None for s in (*self.running, *self.waiting))
        assert all(s.status is Status.RUNNING and 0 <= s.num_computed < len(s) for s in self.running)
        assert self._num_rows <= self.config.max_num_seqs
        # A prefill that does not end takes what is left of the budget, so nobody is admitted behind it.
        assert all(s.num_uncomputed == 1 for s in self.running[:-1]), "a prefill is not the last"

    def _plan(self, sequence: Sequence, budget: int, chunks: list[Chunk]) -> int:
        chunk = Chunk(sequence, sequence.num_computed, min(sequence.num_uncomputed, budget))
        chunks.append(chunk)
        return chunk.length

    def _make_room(self, sequence: Sequence, budget: int, copies: list[tuple[int, int]]) -> bool:
        """Blocks for the sequence's next chunk, preempting the youngest while there are too few."""
        length = min(sequence.num_uncomputed, budget)
        while self._blocks_missing(sequence, length) + self._must_copy(sequence) > self.blocks.num_free:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        if self._must_copy(sequence):
            index = sequence.num_computed // self.config.block_size
            shared, (own,) = sequence.block_ids[index], self.blocks.take(1)
            copies.append((shared, own))
            sequence.block_ids[index] = own
            self.blocks.give_back([shared])
        sequence.block_ids += self.blocks.take(self._blocks_missing(sequence, length))
        return True

    def _must_copy(self, sequence: Sequence) -> bool:
        """The next token goes into a block that another fork of the prompt reads."""
        index = sequence.num_computed // self.config.block_size
        return index < len(sequence.block_ids) and self.blocks.is_shared(sequence.block_ids[index])

    def _admit(self) -> bool:
        """Start the first waiting sequence if the batch has rows for it and its forks, and the pool its whole
        prompt.
        """
        sequence = self.waiting.first()
        missing = self._blocks_missing(sequence, len(sequence))
        num_rows = self._num_rows + 1 + len(sequence.forks)
        if num_rows > self.config.max_num_seqs or missing > self.blocks.num_free:
            return False
        self.waiting.pop()
        sequence.block_ids += self.blocks.take(missing)
        sequence.status = Status.RUNNING
        sequence.started_at = sequence.started_at or time.monotonic()
        self.running.append(sequence)
        return True

    @property
    def _num_rows(self) -> int:
        """Sequences that decode together now, or will once a prompt with forks is complete."""
        return len(self.running) + sum(len(sequence.forks) for sequence in self.running)

    def _start_forks(self, leader: Sequence) -> None:
        """The prompt is computed: its forks run beside it, on the same blocks until they write."""
        for fork in leader.forks:
            fork.leader = None
            fork.block_ids = list(leader.block_ids)
            self.blocks.share(fork.block_ids)
            fork.num_computed = leader.num_computed
            fork.started_at = leader.started_at
            fork.status = Status.RUNNING
        after = self.running.index(leader) + 1
        self.running[after:after] = leader.forks
        leader.forks = []

    def _blocks_missing(self, sequence: Sequence, num_new: int) -> int:
        needed = -(-(sequence.num_computed + num_new) // self.config.block_size)
        return max(0, needed - len(sequence.block_ids))

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be recomputed from its first token."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        sequence.hidden_sum = []
        sequence.num_preemptions += 1
        sequence.status = Status.WAITING
        self.waiting.put_back(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.blocks.give_back(sequence.block_ids)
        sequence.block_ids = []

    def _reason_to_stop(
        self, sequence: Sequence, token: int, accepted: Accepted | None
    ) -> FinishReason | None:
        if accepted is Accepted.COMPLETE or _is_end(sequence, token, accepted):
            return FinishReason.STOP
        if len(sequence.output) >= sequence.params.max_tokens or len(sequence) >= self.config.max_model_len:
            return FinishReason.LENGTH
        return None

    def _end(
        self, sequence: Sequence, reason: FinishReason, error: StepFailed | None = None
    ) -> list[TokenEvent]:
        """End a sequence without a token: its last event, unless it had ended."""
        if sequence.status is Status.FINISHED:
            return []
        self._leave(sequence)
        return [TokenEvent(sequence.id, None, reason, error, at=time.monotonic())]

    def _leave(self, sequence: Sequence) -> None:
        """The one way out: queues, forks, blocks and status together."""
        if sequence.leader is not None:
            sequence.leader.forks.remove(sequence)
            sequence.leader = None
        else:
            self._hand_over(sequence)
            if sequence.status is Status.RUNNING:
                self.running.remove(sequence)
            elif sequence in self.waiting:
                self.waiting.remove(sequence)
        self._release(sequence)
        sequence.status = Status.FINISHED

    def _hand_over(self, leader: Sequence) -> None:
        """Forks whose leader goes before the prompt is computed: the first of them leads now, in its place in
        the queue, or at the head when it had started.
        """
        if not leader.forks:
            return
        first, *others = leader.forks
        leader.forks, first.leader, first.forks = [], None, others
        for fork in others:
            fork.leader = first
        if leader.status is Status.WAITING:
            self.waiting.replace(leader, first)
        else:
            self.waiting.put_back(first)


def _is_end(sequence: Sequence, token: int, accepted: Accepted | None) -> bool:
    """Whether a token ends the reply and is no text. Where a grammar has a stop id as text, it is text."""
    return token in sequence.params.stop_token_ids if accepted is None else accepted is Accepted.END


def _why_no_token(sequence: Sequence) -> str:
    matcher = sequence.matcher
    if matcher is not None and matcher.error is not None:
        return f"the reply's grammar cannot go on: {matcher.error}"
    return "the model produced logits that are not finite"
