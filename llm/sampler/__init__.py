"""Logits to tokens and to log probabilities, behind one small interface.

A row is drawn for a sequence at a position of its reply; usually each sequence brings one row, at the end of
its reply. `eager` does it with torch, on any device, and is the oracle; the native runner has its own
(`llm.runner.native.sampler`). A runner's output names the one that fits it. Refuses to know batches, text and
devices.

    draws.py      temperature, top-k, top-p, greedy: one token per row, of (seed, choice, position)
    logits.py     what changes logits before: penalties, bias, forbidden ends, grammar, min-p
    logprobs.py   how probable the model itself thought a token, and the best others
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm.sequence import Logprob, Sequence

INVALID = -1
"""Drawn for a row whose logits are not finite: that sequence ends with an error, its batch mates do not."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows that want a token, M of them.

    Attributes:
        sequences: whose each is. One without penalties and grammar may bring several, at different positions.
        positions: of the token in the sequence's reply.
        rows: of the logits.
    """

    sequences: list[Sequence]
    positions: list[int]
    rows: list[int]

    @classmethod
    def next(cls, sequences: Rows[Sequence], rows: list[int] | None = None) -> Asked:
        """Each sequence's next token; the logits' rows in the same order when they are not named."""
        positions = [len(sequence.output) for sequence in sequences]
        return cls(list(sequences), positions, list(range(len(positions))) if rows is None else rows)


class Sampler(Protocol):
    """Draws and measures. For one thread at a time."""

    def draw(
        self, logits: Tensor, asked: Asked, vocab_size: int, masks: NDArray[np.uint8] | None = None
    ) -> list[int]:
        """One token per row asked.

        Args:
            logits: (·, V), left as they are; ids from vocab_size on are padding, never drawn.
            asked: M rows, with each sequence's prompt and reply so far.
            vocab_size: ids the tokenizer knows.
            masks: of the sequences that follow a grammar, in order: `llm.grammar.next_masks`.

        Returns:
            M ids; INVALID where a row's logits are not finite.
        """

    def measure(
        self,
        logits: Tensor,
        rows: Rows[int],
        tokens: Rows[int],
        num_top: Rows[int | None],
        vocab_size: int,
    ) -> list[Logprob | None]:
        """Log probabilities as the model gave them.

        Args:
            logits: (·, V).
            rows: of the logits, A of them.
            tokens: of each row the token that is asked about; below 0 for none.
            num_top: of each row how many of the best to name; None for a row that does not ask.
            vocab_size: ids the tokenizer knows; those beyond count for nothing.

        Returns:
            A, one for each row that asks about a token.
        """
