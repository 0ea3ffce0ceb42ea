"""One step's work and what came of it: chunks of sequences in, drawn tokens out. No torch.

The scheduler makes batches, runners compute them, the sampler draws for them, and the scheduler records what
was drawn. Refuses to know why these chunks were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llm.sequence import Accepted, Logprob, Sequence


@dataclass(slots=True)
class Chunk:
    """Tokens [start, start + length) of one sequence, to be computed in this step. Made for each row of each
    step, so it is not frozen, which would cost as much again; nobody changes one.

    Attributes:
        draft: guesses at the tokens after these, computed with them; only where the chunk wants a token.
    """

    sequence: Sequence
    start: int
    length: int
    draft: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def positions(self) -> range:
        """Of what is computed, the draft included."""
        return range(self.start, self.stop + len(self.draft))

    @property
    def tokens(self) -> list[int]:
        """Ids of what is computed, the draft included."""
        return [*self.sequence.tokens(self.start, self.stop), *self.draft]

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


@dataclass(slots=True)
class Batch:
    """One step's work: decoders first, then prefill chunks. Nobody changes one.

    Attributes:
        chunks: what is computed; T tokens in all.
        copies: (from, to) blocks whose contents move, in this order, before anything is computed. A source
            may be a later copy's target, but no target is a later source.
        rows: of the T tokens those whose logits are wanted, ascending; M of them.
        asking: sequences that draw a token in this step, a chunk's own before its forks; one with a draft
            again for each of its tokens.
        draws: of each asking sequence its row among the M.
        places: of each, where in its reply the token will stand.
        given: of each the draft's token that its row was computed with, None where it is none: what is drawn
            there counts only if the reply has come to that place with that token.
        scores: of each chunk with scored positions its first row among the M.
        num_tokens: T.
        num_decoding: chunks of one token: sequences that wait for their next and nothing else.
        num_attended: tokens that stand before those of the other chunks, all added up.
        num_guessed: tokens of drafts, among the T.
    """

    chunks: list[Chunk]
    copies: list[tuple[int, int]] = field(default_factory=list)
    rows: list[int] = field(init=False, default_factory=list)
    asking: list[Sequence] = field(init=False, default_factory=list)
    draws: list[int] = field(init=False, default_factory=list)
    places: list[int] = field(init=False, default_factory=list)
    given: list[int | None] = field(init=False, default_factory=list)
    scores: list[tuple[Chunk, int]] = field(init=False, default_factory=list)
    num_tokens: int = field(init=False, default=0)
    num_decoding: int = field(init=False, default=0)
    num_attended: int = field(init=False, default=0)
    num_guessed: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        rows, asking, draws = self.rows, self.asking, self.draws
        offset = 0  # of the chunk's first token among the T
        for chunk in self.chunks:
            sequence, length = chunk.sequence, chunk.length
            if sequence.params.prompt_logprobs is not None and (scored := chunk.scored):
                self.scores.append((chunk, len(rows)))
                rows.extend(offset + position - chunk.start for position in scored)
            offset += length
            if length == 1:
                self.num_decoding += 1
            else:
                self.num_attended += length * (2 * chunk.start + length - 1) // 2
            if chunk.wants_token:
                members = 1 + len(sequence.forks)
                asking.append(sequence)
                asking += sequence.forks
                draws += [len(rows)] * members
                self.places += [len(member.output) for member in asking[-members:]]
                self.given += [None] * members
                rows.append(offset - 1)
                if chunk.draft:
                    self._add_draft(chunk, offset)
                    offset += len(chunk.draft)
        self.num_tokens = offset

    def _add_draft(self, chunk: Chunk, offset: int) -> None:
        """A draft's tokens stand behind the chunk's own, from `offset` on, and each draws."""
        count = len(chunk.draft)
        place = self.places[-1] + 1
        self.asking += [chunk.sequence] * count
        self.draws += range(len(self.rows), len(self.rows) + count)
        self.places += range(place, place + count)
        self.given += chunk.draft
        self.rows += range(offset, offset + count)
        self.num_guessed += count


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
