"""Guesses how a reply goes on, from what it and its prompt have said before. No torch.

Prompt lookup decoding (Saxena 2023): when the last few tokens have stood together before, what followed them
then may follow again, in code, lists, quotations and edited text nearly always does. The guess is computed
together with the token it follows, and kept as far as the model draws the same: a guess changes when tokens
come, never which.

Every guess is compared with what was drawn, also when nobody computed it, so `rate` costs nothing to know and
a reply that begins to quote is noticed while drafts are off. Refuses to know models, batches and what a row
of a step costs.

    >>> lookup = PromptLookup([7, 1, 2, 3, 4, 5, 7, 1, 2])
    >>> lookup.guess(3)
    [3, 4, 5]
"""

from __future__ import annotations

from collections.abc import Iterable

NGRAM = 3
"""Tokens that must have stood together before. Two agree by chance too often, four miss the start of a
quote.
"""
FIRST_RATE = 0.5
"""What is believed of the first guesses."""
MEMORY = 8
"""The rate is a mean over about so many of the last guesses."""


class PromptLookup:
    """One sequence's tokens, and where each run of `NGRAM` of them stood last.

    Attributes:
        rate: how often, lately, the token that would have been guessed was the one that came.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self.rate = FIRST_RATE
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # a run → the place of what followed it last
        for token in tokens:
            self._append(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def guess(self, count: int) -> list[int]:
        """Up to so many tokens that may come next; none where nothing like the end has been before. A run
        that reaches the end goes on with its own beginning: what repeats itself is guessed to go on doing so.
        """
        place = self._follows.get(self._end())
        if place is None:
            return []
        found = self._tokens[place : place + count]
        period = len(self._tokens) - place
        while len(found) < count:
            found.append(found[-period])
        return found

    def extend(self, tokens: Iterable[int]) -> None:
        """Tokens that have come."""
        for token in tokens:
            place = self._follows.get(self._end())
            if place is not None:
                self.rate += ((self._tokens[place] == token) - self.rate) / MEMORY
            self._append(token)

    def _end(self) -> tuple[int, ...]:
        return tuple(self._tokens[-NGRAM:])

    def _append(self, token: int) -> None:
        if len(self._tokens) >= NGRAM:
            self._follows[self._end()] = len(self._tokens)
        self._tokens.append(token)
