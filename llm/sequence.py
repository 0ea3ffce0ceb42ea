"""One reply being made: its tokens, how far it is computed, which blocks it holds. No torch.

A Sequence is created on the event loop, handed to one engine, and from then on touched by that engine's
thread alone; what comes back are TokenEvents.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from llm.config import SamplingParams

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


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step's outcome for one sequence, on its way from the engine to whoever submitted it.

    Attributes:
        sequence_id: of the sequence.
        token_id: the new token, or None when the sequence ended without one.
        finish: set on the last event of a sequence and on no other.
        error: one line, when finish is ERROR.
    """

    sequence_id: int
    token_id: int | None
    finish: FinishReason | None = None
    error: str | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt, reply so far, and the state the scheduler keeps.

    Attributes:
        prompt: ids the reply follows; at least one.
        params: how tokens are drawn and when to stop.
        output: ids drawn so far, a stop token included.
        num_computed: leading tokens whose keys and values are in the cache.
        block_ids: KV blocks held, in order; block i holds tokens [i·P, (i+1)·P).
        num_preemptions: how often the blocks were taken away again.
    """

    prompt: list[int]
    params: SamplingParams
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    num_preemptions: int = 0
    id: int = field(default_factory=lambda: next(_ids))

    def __len__(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to be computed before the next one can be drawn; 1 while decoding."""
        return len(self) - self.num_computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Ids [start, stop) of prompt and reply together."""
        edge = len(self.prompt)
        if start >= edge:
            return self.output[start - edge : stop - edge]
        return self.prompt[start:stop] + self.output[: max(0, stop - edge)]
