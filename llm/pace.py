"""How much of a prompt a step has time for while others wait for their next token: learned from past steps.

A step beside decoders should last no longer than a bound. What it lasts is taken to be what the decoders take
alone, so much for each token of a prompt, and so much for each token that stands before one, since attention
reads them all: on a CPU a token of SmolLM2 with 4,000 before it costs four times what the first does. A price
that was wrong is corrected along what the step was made of (normalised least mean squares), so that a run of
short prompts does not make the server forget what long ones cost. Before any prompt was timed a token of one
is taken to cost as much as a decoder, which is too much on every device, as the first guess at the rest is.

    >>> pace = Pace(0.1); pace.learn(num_decoding=8, seconds=0.010)
    >>> pace.learn(num_decoding=8, seconds=0.060, num_prefill=100)
    >>> room = pace.room(num_decoding=8, num_tokens=1024); room.take(start=0, wanted=4000)
    180

Refuses to know clocks, sequences and devices.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

LEAST = 16
"""Tokens of a prompt that a step has time for in any case: it has to come to its end."""
SURE = 0.5
"""Part of a step's time that is at least its prompts', whatever the decoders took before: a hiccup is not
theirs.
"""
CORRECTION = 0.5
"""Part of a wrong guess that the next one makes up for."""
SURPRISE = 2.0
"""A step counts as at most so many times what it was expected to last: it may have been held up by others."""
DEPTH = 1000.0
"""Tokens before one that cost as much as it does, as long as nobody knows; and weigh as much in corrections.
SmolLM2-135M, which has much attention for its size, is about so on a CPU.
"""


SLOWLY = 0.9
"""Part of what is known of guesses that the next step with some leaves: one step says little of them."""
DOUBT = 0.99
"""A price that was too high is a hundredth lower the next time: nobody would ever learn that it was wrong."""


@dataclass(slots=True)
class _Mean:
    """Seconds for a unit, over what was seen; by default the last step counts as much as all before it."""

    kept: float = 0.5
    seconds: float = 0.0
    units: float = 0.0

    def add(self, units: float, seconds: float) -> None:
        self.seconds = self.seconds * self.kept + seconds
        self.units = self.units * self.kept + units

    @property
    def value(self) -> float:
        return self.seconds / self.units if self.units else 0.0


class Pace:
    """The seconds of an engine's steps.

    Args:
        max_seconds: what a step beside decoders should last at most; 0 for no bound.
    """

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._decoders = _Mean()  # of a step
        self._row = _Mean()  # of a decoder in it
        self._token = 0.0  # of a prompt
        self._depth = 0.0  # for each DEPTH tokens before it
        self._guesses: dict[int, _Mean] = defaultdict(lambda: _Mean(SLOWLY))  # one, beside so many decoders

    def learn_guesses(self, num_decoding: int, seconds: float, num_guessed: int) -> None:
        """A step computed so many decoders' tokens, and guesses at what follows them."""
        self._guesses[num_decoding].add(num_guessed, max(seconds - self._decoders.value, 0.0))

    def doubt_guesses(self, num_decoding: int) -> None:
        """What a guess costs beside so many was too much for one."""
        self._guesses[num_decoding].seconds *= DOUBT

    def learn(self, num_decoding: int, seconds: float, num_prefill: int = 0, num_attended: int = 0) -> None:
        """A step computed so many decoders' tokens and so many of prompts, which had so many before them, all
        added up.
        """
        if not num_prefill:
            self._decoders.add(1, seconds)
            self._row.add(num_decoding, seconds)
            return
        others = self._decoders.value if num_decoding else 0.0
        mine = max(seconds - others, SURE * seconds)
        depths = num_attended / DEPTH
        if not self._token:
            self._token = self._depth = mine / (num_prefill + depths)
            return
        expected = num_prefill * self._token + depths * self._depth
        wrong = min(mine, SURPRISE * expected) - expected
        share = CORRECTION * wrong / (num_prefill * num_prefill + depths * depths)
        # No token is free, or the next chunk would be the whole prompt.
        self._token = max(self._token + share * num_prefill, self._token / 2)
        self._depth = max(self._depth + share * depths, 0.0)

    @property
    def decoders(self) -> float:
        """Seconds of a step that decoders have to themselves."""
        return self._decoders.value

    @property
    def token(self) -> float:
        """Seconds that a prompt's first token takes; 0 before the first step."""
        return self._token or self._row.value

    def guess(self, num_decoding: int) -> float:
        """Seconds that a guess more takes beside so many decoders. Unlike a prompt's token it asks for scores
        of every token there is, and on a CPU for another tile of rows or a part of one: nobody knows before
        it was tried.
        """
        return self._guesses[num_decoding].value or self.token

    def room(self, num_decoding: int, num_tokens: int) -> Room:
        """What a step of at most so many tokens has for prompts beside so many decoders."""
        is_bound = num_decoding and self._max_seconds
        seconds = self._max_seconds - self.decoders if is_bound else math.inf
        return Room(self, num_tokens - num_decoding, seconds)

    def cost(self, start: int, length: int) -> float:
        """Seconds that so many tokens of a prompt take, from `start` on."""
        return length * (self.token + (start + length / 2) * self._depth / DEPTH)

    def fits(self, start: int, seconds: float) -> float:
        """Tokens of a prompt that take so long, from `start` on; a fraction, or infinite."""
        first = self.token + start * self._depth / DEPTH
        if math.isinf(seconds) or not first:
            return math.inf
        if seconds <= 0:
            return 0
        # n of them cost n · first + n² / 2 · depth; this form of the root is good for a depth of nothing.
        return 2 * seconds / (first + math.sqrt(first * first + 2 * seconds * self._depth / DEPTH))


@dataclass(slots=True)
class Room:
    """What one step has left for prompts; false when that is nothing worth a prompt's beginning.

    Attributes:
        tokens: at most, and at most what takes `seconds`, but LEAST for the first prompt.
    """

    pace: Pace
    tokens: int
    seconds: float
    is_untouched: bool = True

    def __bool__(self) -> bool:
        return self.tokens > 0 and (self.is_untouched or self.pace.fits(0, self.seconds) >= LEAST)

    def take(self, start: int, wanted: int) -> int:
        """How many of a prompt's `wanted` tokens are computed, from `start` on: one at least, where there is
        room. One that does not get all takes all there is.
        """
        least = LEAST if self.is_untouched else 1
        length = int(min(wanted, self.tokens, max(least, self.pace.fits(start, self.seconds))))
        self.is_untouched = False
        self.tokens -= self.tokens if length < wanted else length
        self.seconds -= self.pace.cost(start, length)
        return length
