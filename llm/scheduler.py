"""Which tokens are computed next: continuous batching, chunked prefill, preemption by recompute. No torch.

Every step is a Batch of chunks. A decoding sequence brings a chunk of one token, a new one a stretch of its
prompt, as much as the step's token budget leaves after the decoders, and as there is time for while they wait
(pace.py). Sequences join and leave between steps. When blocks run out the youngest running sequence gives its
own back and waits to be recomputed; nobody else notices. Which blocks a sequence has, and what it finds
computed, is up to tables.py.

Refuses to know logits, text, threads and devices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from llm.batch import Batch, Chunk, Drawn
from llm.config import EngineConfig
from llm.errors import StepFailed
from llm.pace import Pace, Room
from llm.sequence import Accepted, FinishReason, Sequence, Status, TokenEvent
from llm.speculation import Speculation
from llm.tables import BlockTables, Copies
from llm.waiting import WaitingLine


class Scheduler:
    """Waiting and running sequences of one engine. Called from that engine's thread only."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.tables = BlockTables(config)
        self.blocks = self.tables.pool
        self.pace = Pace(config.max_step_ms / 1e3)
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []  # oldest first
        self.num_waiting = 0
        """Sequences that do not run yet, forks included; may be read from any thread."""
        self.num_preemptions = 0
        self.num_tokens = 0
        self.speculation = Speculation(config, self.pace)

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
        self.num_waiting += 1 + len(sequence.forks)
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
            for event in self._end(sequence, FinishReason.ERROR, fault(message), forget=True)
        ]

    def schedule(self) -> Batch | None:
        """Choose the next step's tokens and give them blocks, or None when nothing runs and nothing waits."""
        chunks: list[Chunk] = []
        copies: Copies = []
        running = tuple(self.running)
        prefill = running[-1] if running and running[-1].num_uncomputed > 1 else None  # see check_integrity
        for sequence in running if prefill is None else running[:-1]:
            if sequence.num_computed < sequence.num_writable or self._make_room(sequence, copies):
                chunks.append(Chunk(sequence, sequence.num_computed, 1))
        room = self.pace.room(len(chunks), self.config.max_num_batched_tokens)
        if prefill is not None and room and prefill.status is Status.RUNNING:
            chunks.append(self._prefill(prefill, room))
        while self.waiting and room and self._admit(copies):
            chunks.append(self._prefill(self.running[-1], room))
        if self.speculation.most:
            chunks = self._with_drafts(chunks, room.tokens)
        return Batch(chunks, copies) if chunks else None

    def learn(self, batch: Batch, seconds: float) -> None:
        """A batch took so long."""
        if batch.num_guessed:
            self.pace.learn_guesses(batch.num_decoding, seconds, batch.num_guessed)
        else:
            others = batch.num_tokens - batch.num_decoding
            self.pace.learn(batch.num_decoding, seconds, others, batch.num_attended)

    def commit(self, batch: Batch, drawn: Drawn) -> list[TokenEvent]:
        """Record a step: what is computed now, the tokens drawn for `batch.asking`, and who is finished."""
        now, size = time.monotonic(), len(batch.chunks)
        events = self._commit_prompts(batch, drawn, now, size)
        assert len(batch.asking) == len(drawn.tokens), (len(batch.asking), len(drawn.tokens))
        for i, (sequence, token) in enumerate(zip(batch.asking, drawn.tokens, strict=True)):
            if (given := batch.given[i]) is not None and not self._is_right(sequence, batch.places[i], given):
                continue
            accepted = drawn.accepted[i] if drawn.accepted else None
            if token < 0 or accepted is Accepted.REFUSED:
                error = StepFailed(_why_no_token(sequence))
                events += self._end(sequence, FinishReason.ERROR, error, forget=token < 0)
                continue
            sequence.output.append(token)
            self.num_tokens += 1
            is_end = _is_end(sequence, token, accepted)
            reason = self._reason_to_stop(sequence, accepted, is_end)
            logprob = drawn.logprobs[i] if drawn.logprobs else None
            events.append(
                TokenEvent(
                    sequence.id,
                    token,
                    reason,
                    is_text=not is_end,
                    logprob=logprob,
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
        block_size = self.config.block_size
        for chunk in batch.chunks:
            sequence = chunk.sequence
            sequence.num_computed += chunk.length
            if chunk.length > 1 or sequence.num_computed % block_size == 0:
                self.tables.list_full(sequence)
            if sequence.embeds:
                if (mean := _pooled(chunk, next(hidden))) is not None:
                    self._leave(sequence)
                    stop = FinishReason.STOP
                    events.append(
                        TokenEvent(sequence.id, None, stop, embedding=mean, at=now, batch_size=size)
                    )
            elif sequence.forks and chunk.wants_token:
                self._start_forks(sequence)
        return events

    def sequences(self) -> Iterator[Sequence]:
        """Everything that has not ended."""
        for sequence in (*self.running, *self.waiting):
            yield sequence
            yield from sequence.forks

    def check_integrity(self) -> None:
        """Blocks, statuses and progress agree; called by tests after every scenario."""
        self.blocks.check_integrity(block for s in self.running for block in s.block_ids)
        assert all(not s.block_ids and s.status is Status.WAITING for s in self.waiting)
        assert all(f.leader is s and not f.block_ids for s in self.sequences() for f in s.forks)
        assert all(s.leader is None for s in (*self.running, *self.waiting))
        assert all(s.status is Status.RUNNING and 0 <= s.num_computed < len(s) for s in self.running)
        assert self.num_waiting == sum(s.status is Status.WAITING for s in self.sequences())
        assert self._num_rows <= self.config.max_num_seqs
        # A prefill that does not end takes what is left of the room, so nobody is admitted behind it.
        assert all(s.num_uncomputed == 1 for s in self.running[:-1]), "a prefill is not the last"

    def _with_drafts(self, chunks: list[Chunk], budget: int) -> list[Chunk]:
        """Guesses, where all decode and nobody else wants the room."""
        if not all(c.length == 1 and c.wants_token and not c.sequence.forks for c in chunks):
            return chunks
        drafts = self.speculation.drafts([chunk.sequence for chunk in chunks], budget)
        drafted = []
        for chunk, draft in zip(chunks, drafts, strict=True):
            has_room = draft and self.tables.extend(chunk.sequence, 1 + len(draft)) is not None
            drafted.append(replace(chunk, draft=tuple(draft)) if has_room else chunk)
            self.speculation.num_drafted += len(drafted[-1].draft)
        return drafted

    def _is_right(self, sequence: Sequence, place: int, given: int) -> bool:
        """Whether the reply has come to where a guess stands, with that guess: then what its row computed is
        the sequence's next token's, keys and values too.
        """
        if sequence.status is not Status.RUNNING or len(sequence.output) != place:
            return False
        if sequence.output[-1] != given:
            return False
        sequence.num_computed += 1
        self.tables.list_full(sequence)
        self.speculation.num_accepted += 1
        return True

    def _prefill(self, sequence: Sequence, room: Room) -> Chunk:
        """The sequence's next tokens, as many as fit; its blocks are there since it was admitted."""
        length = room.take(sequence.num_computed, sequence.num_uncomputed)
        assert sequence.num_computed + length <= sequence.num_writable
        return Chunk(sequence, sequence.num_computed, length)

    def _make_room(self, sequence: Sequence, copies: Copies) -> bool:
        """A place for a decoder's next token, preempting the youngest while there is none; False when that is
        the sequence itself. What is robbed may be back in the same step, if the robber has its tokens.
        """
        if sequence.status is not Status.RUNNING:
            return False  # an older one has robbed it
        while (moved := self.tables.extend(sequence, 1)) is None:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        copies += moved
        return True

    def _admit(self, copies: Copies) -> bool:
        """Start the first waiting sequence if the batch has rows for it and its forks, and the pool its whole
        prompt.
        """
        sequence = self.waiting.first()
        if self._num_rows + 1 + len(sequence.forks) > self.config.max_num_seqs:
            return False
        moved = self.tables.start(sequence)
        if moved is None:
            return False
        copies += moved
        self.waiting.pop()
        self.num_waiting -= 1
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
            self.tables.fork(leader, fork)
            fork.started_at = leader.started_at
            fork.status = Status.RUNNING
        after = self.running.index(leader) + 1
        self.running[after:after] = leader.forks
        self.num_waiting -= len(leader.forks)
        leader.forks = []

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be recomputed from its first token."""
        self.running.remove(sequence)
        self.tables.release(sequence)
        sequence.hidden_sum = []
        sequence.num_preemptions += 1
        sequence.status = Status.WAITING
        self.waiting.put_back(sequence)
        self.num_waiting += 1
        self.num_preemptions += 1

    def _reason_to_stop(
        self, sequence: Sequence, accepted: Accepted | None, is_end: bool
    ) -> FinishReason | None:
        if is_end or accepted is Accepted.COMPLETE:
            return FinishReason.STOP
        if len(sequence.output) >= sequence.params.max_tokens or len(sequence) >= self.config.max_model_len:
            return FinishReason.LENGTH
        return None

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: StepFailed | None = None,
        *,
        forget: bool = False,
    ) -> list[TokenEvent]:
        """End a sequence without a token: its last event, unless it had ended.

        Args:
            forget: what it computed is not to be trusted.
        """
        if sequence.status is Status.FINISHED:
            return []
        self._leave(sequence, forget=forget)
        return [TokenEvent(sequence.id, None, reason, error, at=time.monotonic())]

    def _leave(self, sequence: Sequence, *, forget: bool = False) -> None:
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
        self.num_waiting -= sequence.status is Status.WAITING
        self.tables.release(sequence, forget=forget)
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


def _pooled(chunk: Chunk, hidden: list[float]) -> tuple[float, ...] | None:
    """Add up a chunk's hidden states; the mean of all once the prompt is complete."""
    sequence = chunk.sequence
    sums = sequence.hidden_sum or [0.0] * len(hidden)
    sequence.hidden_sum = [a + b for a, b in zip(sums, hidden, strict=True)]
    if chunk.stop < len(sequence):
        return None
    return tuple(value / len(sequence) for value in sequence.hidden_sum)


def _why_no_token(sequence: Sequence) -> str:
    matcher = sequence.matcher
    if matcher is not None and matcher.error is not None:
        return f"the reply's grammar cannot go on: {matcher.error}"
    return "the model produced logits that are not finite"
