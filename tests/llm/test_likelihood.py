"""What counts in a text, window by window, and what it adds up to."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.likelihood import Likelihood, ScoredText, likelihood, read_text
from llm.sequence import Logprob


def scores(*values: float) -> list[Logprob]:
    return [Logprob(0, value, 1) for value in values]


def test_only_what_counts_is_added() -> None:
    text = ScoredText([1, 2, 3, 4], [False, True, False, True])
    found = likelihood(text, scores(-1.0, -50.0, -2.0))
    assert (found.nll, found.num_tokens, found.mean) == (3.0, 2, 1.5)
    assert found.perplexity == math.exp(1.5)
    assert found + Likelihood(1.0, 2) == Likelihood(4.0, 4)


def test_nothing_is_nothing_and_the_impossible_is_a_number() -> None:
    none = likelihood(read_text([1]), [])
    assert (none.nll, none.num_tokens, none.mean, none.perplexity) == (0.0, 0, 0.0, 1.0)
    for value in (-math.inf, math.nan):
        assert likelihood(read_text([1, 2]), scores(value)).nll == 9999.0
    assert math.isfinite(Likelihood(99999.0, 1).perplexity)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(2, 9))
def test_in_windows_each_id_counts_once(flags: list[bool], longest: int) -> None:
    text = ScoredText(list(range(len(flags))), [False, *flags[1:]])
    windows = list(text.windows(longest))
    counted = [i for w in windows for i, counts in zip(w.ids, w.counts, strict=True) if counts]
    assert counted == [i for i, counts in enumerate(text.counts) if counts]
    assert all(len(w.ids) <= longest and not w.counts[0] for w in windows)


def test_a_text_in_one_window_is_itself() -> None:
    text = read_text([5, 6, 7])
    assert list(text.windows(3)) == [text] and text.num_scored == 2
    with pytest.raises(AssertionError):
        next(text.windows(1))
