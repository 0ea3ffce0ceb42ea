"""How many guesses a step computes beside the tokens it must: those that make tokens come faster. No torch.

A row more makes a step dearer, by what such rows were found to cost beside so many decoders; it brings a
token more as often as it and all before it in its draft are right. So guesses are added while each brings
more tokens per second than the step has without it. To one stream on a CPU a step is mostly the reading of
weights and a row costs little: many guesses may be wrong. Sixteen streams share that reading, and only what
is quoted word for word pays.

Refuses to know where guesses come from (draft.py) and what is drawn (the model alone says that).
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from llm.config import EngineConfig
from llm.draft import PromptLookup
from llm.pace import Pace
from llm.sequence import Sequence


class Speculation:
    """Drafts for the decoders of one engine.

    Args:
        config: how long drafts may be, and sequences.
        pace: what steps cost.

    Attributes:
        most: tokens in a draft; 0 for none at all.
        num_drafted: tokens guessed and computed.
        num_accepted: of these, how many came.
    """

    def __init__(self, config: EngineConfig, pace: Pace) -> None:
        self.most = config.num_speculative_tokens
        self._max_model_len = config.max_model_len
        self.pace = pace
        self.num_drafted = 0
        self.num_accepted = 0

    def drafts(self, decoders: Rows[Sequence], budget: int) -> list[list[int]]:
        """Guesses at what follows the next token of each, where they pay.

        Args:
            decoders: sequences that compute one token in this step, and draw the one after it.
            budget: guesses that the step has room for.
        """
        tokens, seconds = float(len(decoders)), self.pace.decoders
        price = self.pace.guess(len(decoders))
        drafts: list[list[int]] = []
        was_too_much = False
        for sequence in decoders:
            draft, rate, right = *self._guess(sequence, budget), 1.0
            for count in range(len(draft)):
                right *= rate
                if right * seconds <= price * tokens:
                    was_too_much = True
                    del draft[count:]
                    break
                tokens, seconds = tokens + right, seconds + price
            budget -= len(draft)
            drafts.append(draft)
        if was_too_much and not any(drafts):
            self.pace.doubt_guesses(len(decoders))
        return drafts

    def _guess(self, sequence: Sequence, budget: int) -> tuple[list[int], float]:
        """As many guesses as there is room for, and how often such were right; none where a row would be
        drawn from other scores than the model's for the tokens before it.
        """
        params = sequence.params
        left = min(params.max_tokens - len(sequence.output), self._max_model_len - len(sequence))
        room = min(left - 1, self.most, budget)
        if room < 1 or params.has_penalties or sequence.matcher is not None:
            return [], 0.0
        if sequence.lookup is None:
            sequence.lookup = PromptLookup(sequence.prompt)
        lookup = sequence.lookup
        lookup.extend(sequence.tokens(len(lookup), len(sequence)))
        return lookup.guess(room), lookup.rate
