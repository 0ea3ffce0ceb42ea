"""What one sequence asks of a sampler, as C reads it: parameters written once, history counted as it grows.

Refuses to know batches and logits.
"""

from __future__ import annotations

import math

import numpy as np

from llm.config import SamplingParams
from llm.runner.native.binding import Sampling
from llm.sequence import Sequence

SEED_BITS = (1 << 64) - 1
LAST_ID = (1 << 31) - 1
"""What C counts ids with; a checkpoint may name an end beyond its vocabulary, which C leaves out."""


class Recipe:
    """A sequence's parameters, its bias and its history, with the arrays that C is told of.

    Attributes:
        sampling: the structure; its arrays live as long as this.
        is_growing: the history counts, since there are penalties.
    """

    def __init__(self, sequence: Sequence) -> None:
        params = sequence.params
        self._output = sequence.output
        self.is_growing = params.has_penalties
        self.sampling = _plain(params)
        self._bias(params)
        if params.min_tokens and sequence.matcher is None:  # a grammar says itself where a reply may end
            self._forbid(params)
        if self.is_growing:
            # Only repetition looks at the prompt.
            self._begin(sequence.prompt if params.repetition_penalty != 1.0 else [])

    def catch_up(self, told: Sampling) -> None:
        """Count what was said since the last time, and tell C of it, where it reads this sequence's."""
        said = self._output[self._num_counted :]
        if len(self._places) + len(said) > len(self._seen):
            self._make_room(2 * (len(self._places) + len(said)))
        for token in said:
            place = self._places.setdefault(token, len(self._places))
            self._seen[place] = token
            self._counts[place] += 1
        self._num_counted += len(said)
        told.num_seen = len(self._places)
        told.seen, told.counts = self._addresses

    def _begin(self, prompt: list[int]) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._num_counted = 0
        self._seen = np.array(list(self._places), np.int32)
        self._counts = np.zeros_like(self._seen)
        self._make_room(len(self._places) + 64)

    def _make_room(self, count: int) -> None:
        self._seen, self._counts = (
            np.concatenate([old, np.zeros(count - len(old), np.int32)]) for old in (self._seen, self._counts)
        )
        self._addresses = self._seen.ctypes.data, self._counts.ctypes.data

    def _bias(self, params: SamplingParams) -> None:
        self._biased = np.array([token for token, _ in params.logit_bias], np.int32)
        self._amounts = np.array([amount for _, amount in params.logit_bias], np.float32)
        self.sampling.num_biased = len(self._biased)
        self.sampling.biased, self.sampling.amounts = self._biased.ctypes.data, self._amounts.ctypes.data

    def _forbid(self, params: SamplingParams) -> None:
        self._ends = np.array([token for token in params.stop_token_ids if token <= LAST_ID], np.int32)
        self.sampling.num_ends, self.sampling.ends = len(self._ends), self._ends.ctypes.data
        self.sampling.min_tokens = params.min_tokens


def _plain(params: SamplingParams) -> Sampling:
    min_p = math.log(params.min_p) if params.min_p and params.temperature > 0.0 else -math.inf
    return Sampling(
        seed=params.seed & SEED_BITS,
        temperature=params.temperature,
        top_p=params.top_p,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        repetition=params.repetition_penalty,
        min_p=params.temperature * min_p if min_p > -math.inf else -math.inf,
        choice=params.choice,
        top_k=params.top_k,
    )
