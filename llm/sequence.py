"""One reply being made: its tokens, how far it is computed, which blocks it holds. No torch.

A Sequence is created on the event loop, handed to one engine, and from then on touched by that engine's
thread alone; what comes back are TokenEvents.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Protocol

from llm.config import SamplingParams
from llm.draft import PromptLookup
from llm.errors import EngineError

_ids = itertools.count()


class Status(Enum):
    """WAITING ⇄ RUNNING → FINISHED; preemption is the way back."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended. The first two are OpenAI's; the others never reach a client as a
    finish_reason.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Accepted(Enum):
    """What a drawn token means to the grammar of its reply."""

    GOES_ON = "goes on"
    COMPLETE = "complete"
    """The token is text, and nothing may follow it."""
    END = "end"
    """The token ends the reply and is no text."""
    REFUSED = "refused"
    """Not allowed here: the reply cannot go on."""


class Matcher(Protocol):
    """Where one reply stands in its grammar; see llm/grammar."""

    @property
    def error(self) -> str | None:
        """Why it cannot go on: one line."""

    def accept(self, token: int) -> Accepted:
        """Move on by the token that was drawn."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """How probable the model thought one token, before penalties, bias, grammar and temperature.

    Attributes:
        token_id: the token.
        value: natural logarithm of its probability.
        rank: 1 for the most probable token.
        top: the most probable tokens and their values, best first, as many as were asked for.
    """

    token_id: int
    value: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class TokenEvent:
    """One step's outcome for one sequence, on its way from the engine to whoever submitted it. Made for each
    token, so it is not frozen, which would cost as much again; nobody changes one.

    Attributes:
        sequence_id: of the sequence.
        token_id: the new token, or None when the step brought none: a part of the prompt was scored, or the
            sequence ended without one.
        finish: set on the last event of a sequence and on no other.
        error: for whoever waits, when finish is ERROR.
        is_text: the token belongs to the reply's text; false for one that ends it.
        logprob: of the token, when the sequence asks.
        prompt_logprobs: of the prompt's tokens from the second on, in order, as they are computed.
        embedding: mean hidden state of the prompt, on the only event of a sequence that embeds.
        at: when the step ended, in seconds of time.monotonic().
        batch_size: sequences that the step computed together.
    """

    sequence_id: int
    token_id: int | None
    finish: FinishReason | None = None
    error: EngineError | None = None
    is_text: bool = True
    logprob: Logprob | None = None
    prompt_logprobs: tuple[Logprob, ...] = ()
    embedding: tuple[float, ...] | None = None
    at: float = field(default=0.0, compare=False)
    batch_size: int = field(default=0, compare=False)


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt, reply so far, and the state the scheduler keeps.

    Attributes:
        prompt: ids the reply follows; at least one.
        params: how tokens are drawn and when to stop.
        output: ids drawn so far, a stop token included.
        matcher: state of the grammar that the reply follows; like `output` it survives preemption.
        priority: lower numbers leave the queue first.
        client: whose it is; within a priority the clients take turns, and none gets another's keys and
            values.
        cache_salt: of the same client's, it gets only those of sequences with the same salt.
        adapter: what is computed beside the base's weights, by its name; "" for nothing.
        embeds: no reply: the mean of the prompt's hidden states is what is wanted.
        forks: other replies to the same prompt; they start from this one's keys and values.
        leader: whose fork this is, until it starts.
        num_computed: leading tokens whose keys and values are in the cache.
        num_cached: of the prompt's, those that were there before it first ran.
        num_scored: leading prompt positions whose log probabilities have been handed out.
        block_ids: KV blocks held, in order; block i holds tokens [i·P, (i+1)·P). The list grows in place; any
            other change makes a new one.
        num_writable: tokens for which there are blocks, and nobody else reads the last of them.
        num_listed: leading blocks that other sequences can find.
        names: of these and of more, for finding them; see llm/prefix.py.
        lookup: where its tokens have stood together before, once guesses are made.
        num_preemptions: how often the blocks were taken away again.
        submitted_at, started_at: when it was made and first scheduled, in seconds of time.monotonic().
        hidden_sum: of the hidden states computed so far, when it embeds.
    """

    prompt: list[int]
    params: SamplingParams
    output: list[int] = field(default_factory=list)
    matcher: Matcher | None = None
    priority: int = 0
    client: str = ""
    cache_salt: str = ""
    adapter: str = ""
    embeds: bool = False
    forks: list[Sequence] = field(default_factory=list)
    leader: Sequence | None = None
    num_computed: int = 0
    num_cached: int = 0
    num_scored: int = 0
    block_ids: list[int] = field(default_factory=list)
    num_writable: int = 0
    num_listed: int = 0
    names: list[bytes] = field(default_factory=list)
    lookup: PromptLookup | None = None
    status: Status = Status.WAITING
    num_preemptions: int = 0
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    id: int = field(default_factory=lambda: next(_ids))
    hidden_sum: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to be computed before the next one can be drawn; 1 while decoding."""
        return len(self) - self.num_computed

    @property
    def wants_whole_prompt(self) -> bool:
        """Whether every position's output is asked for, not only the last one's."""
        return self.embeds or self.params.prompt_logprobs is not None

    @property
    def num_reusable(self) -> int:
        """Leading tokens that need not be computed here, if their keys and values are somewhere: those whose
        output nobody waits for. The last token's always is.
        """
        if self.embeds:
            return 0
        is_scored = self.params.prompt_logprobs is None or self.num_scored == len(self.prompt) - 1
        return len(self) - 1 if is_scored else self.num_scored

    def tokens(self, start: int, stop: int) -> list[int]:
        """Ids [start, stop) of prompt and reply together."""
        edge = len(self.prompt)
        if start >= edge:
            return self.output[start - edge : stop - edge]
        return self.prompt[start:stop] + self.output[: max(0, stop - edge)]
