"""What is guessed is what followed last, and what guesses are worth is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm.draft import FIRST_RATE, NGRAM, PromptLookup

TOKENS = st.lists(st.integers(0, 3), max_size=60)


def reference(tokens: list[int], count: int) -> list[int]:
    """The slow twin: looks through everything, from the end."""
    end = tokens[-NGRAM:]
    for start in range(len(tokens) - NGRAM - 1, -1, -1):
        if len(end) == NGRAM and tokens[start : start + NGRAM] == end:
            longer = list(tokens)
            while len(longer) < len(tokens) + count:
                longer.append(longer[start + NGRAM + len(longer) - len(tokens)])
            return longer[len(tokens) :]
    return []


@given(tokens=TOKENS, count=st.integers(1, 12), split=st.integers(0, 60))
def test_a_guess_is_what_followed_the_last_time(tokens: list[int], count: int, split: int) -> None:
    lookup = PromptLookup(tokens[:split])
    lookup.extend(tokens[split:])
    assert len(lookup) == len(tokens)
    assert lookup.guess(count) == reference(tokens, count)


def test_what_was_never_said_is_not_guessed() -> None:
    assert PromptLookup([]).guess(4) == PromptLookup([1, 2, 3]).guess(4) == []
    assert PromptLookup([1, 2, 3, 4]).guess(4) == []


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert PromptLookup([5, 6] * 3).guess(5) == [5, 6, 5, 6, 5]
    assert PromptLookup([9] * 4).guess(3) == [9, 9, 9]


def test_the_rate_follows_what_came_and_waits_where_nothing_was_guessed() -> None:
    quoting = PromptLookup(list(range(50)) + list(range(3)))
    assert quoting.rate == FIRST_RATE
    quoting.extend(range(3, 40))
    assert quoting.rate > 0.95
    quoting.extend([*range(100, 150)])
    steady = quoting.rate
    quoting.extend([*range(200, 220)])
    assert quoting.rate == steady, "nothing was guessed there"
    wrong = PromptLookup([1, 1, 1, 2, 1, 1, 1, 3, 1, 1, 1, 4, 1, 1, 1, 5, 1, 1])
    before = wrong.rate
    wrong.extend([1, 6])
    assert wrong.rate < before
