"""How much of a prompt a step has time for while others wait for their next token: learned from past steps.

A step beside decoders should last no longer than a bound. What it lasts is taken to be what the decoders take
alone and so much for each token of a prompt; both are means in which a step counts half of the next one's. A
guess that was wrong is so corrected by the step that showed it. Before any prompt was timed a token of one is
taken to cost as much as a decoder, which is too much on every device.

    >>> pace = Pace(0.1); pace.learn(num_decoding=8, num_prefill=0, seconds=0.010)
    >>> pace.learn(num_decoding=8, num_prefill=100, seconds=0.060)
    >>> pace.room()
    180

Refuses to know clocks, sequences and devices.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 16
"""Tokens of a prompt that a step has time for in any case: it has to come to its end."""
SURE = 0.5
"""Part of a step's time that is at least its prompts', whatever the decoders took before: a hiccup is not
theirs.
"""


@dataclass(slots=True)
class _Mean:
    """Seconds for a unit, over what was seen; the last step counts as much as all before it."""

    seconds: float = 0.0
    units: float = 0.0

    def add(self, units: float, seconds: float) -> None:
        self.seconds = self.seconds / 2 + seconds
        self.units = self.units / 2 + units

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
        self._prompt = _Mean()  # of a token

    def learn(self, num_decoding: int, num_prefill: int, seconds: float) -> None:
        """A step computed so many decoders' tokens and so many of prompts."""
        if not num_prefill:
            self._decoders.add(1, seconds)
            self._row.add(num_decoding, seconds)
            return
        others = self._decoders.value if num_decoding else 0.0
        self._prompt.add(num_prefill, max(seconds - others, SURE * seconds))

    @property
    def decoders(self) -> float:
        """Seconds of a step that decoders have to themselves."""
        return self._decoders.value

    @property
    def token(self) -> float:
        """Seconds that a token more takes, of a prompt or guessed; 0 before the first step."""
        return self._prompt.value or self._row.value

    def room(self) -> int | None:
        """Tokens of prompts that a step beside decoders has time for; None for as many as there are."""
        if not self._max_seconds or not self.token:
            return None
        return max(LEAST, int((self._max_seconds - self.decoders) / self.token))
