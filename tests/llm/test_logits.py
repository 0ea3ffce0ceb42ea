"""Penalties, bias and min-p: the batch's way against the formulas, id by id."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.config import SamplingParams
from llm.sampler import Asked
from llm.sampler.logits import adjust, adjust_reference, is_adjusted
from llm.sequence import Sequence

VOCAB = 12
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=15)
BIAS = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=4)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    presence_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    logit_bias=BIAS.map(lambda bias: tuple(bias.items())),
)
ROWS = st.lists(
    st.tuples(PARAMS, st.lists(st.integers(0, VOCAB - 1), min_size=1), IDS), min_size=1, max_size=4
)


def sequence(params: SamplingParams, prompt: list[int], output: list[int]) -> Sequence:
    return Sequence(prompt, params, output)


@given(rows=ROWS, seed=st.integers(0, 99), padding=st.integers(0, 3))
def test_a_batch_is_adjusted_by_the_formulas(
    rows: list[tuple[SamplingParams, list[int], list[int]]], seed: int, padding: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), VOCAB + padding, generator=generator, dtype=torch.float64) * 4
    logits[:, VOCAB:] = 1000.0  # what padding says counts for nothing
    before = logits.clone()
    adjusted = adjust(logits, Asked.next([sequence(*row) for row in rows]), VOCAB)
    assert torch.equal(logits, before), "the runner's tensor is left as it is"
    for found, given_row, (params, prompt, output) in zip(adjusted, logits, rows, strict=True):
        expected = adjust_reference(given_row[:VOCAB], params, prompt, output)
        assert torch.allclose(found[:VOCAB], expected, rtol=1e-12, atol=1e-12)


def test_rows_that_ask_for_nothing_share_the_tensor() -> None:
    logits = torch.randn(2, VOCAB)
    greedy = SamplingParams(max_tokens=1, temperature=0.0, min_p=0.5)
    assert not is_adjusted(greedy), "the most probable token is above any share of itself"
    asked = Asked.next([sequence(greedy, [1], []), sequence(SamplingParams(1), [1], [2])])
    assert adjust(logits, asked, VOCAB) is logits


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"repetition_penalty": 2.0}, [1.0, -2.0, 0.5, 3.0]),
        ({"frequency_penalty": 0.5}, [2.0, -1.0, -0.5 + 0.5, 3.0]),
        ({"presence_penalty": 0.25}, [2.0, -1.0, 0.75, 3.0]),
        ({"logit_bias": ((0, -100.0), (3, 1.0))}, [-98.0, -1.0, 1.0, 4.0]),
        ({"min_p": 0.3}, [2.0, -math.inf, -math.inf, 3.0]),
    ],
)
def test_one_of_each_by_hand(changes: dict[str, object], expected: list[float]) -> None:
    """Prompt 0 and 1, reply 2 and 2."""
    params = replace(SamplingParams(max_tokens=9), **changes)  # type: ignore[arg-type]
    logits = torch.tensor([[2.0, -1.0, 1.0, 3.0]])
    assert adjust(logits, Asked.next([sequence(params, [0, 1], [2, 2])]), 4)[0].tolist() == expected


def test_halves_are_widened_before_they_are_changed() -> None:
    params = SamplingParams(max_tokens=1, presence_penalty=0.001)
    logits = torch.tensor([[8.0, 1.0]], dtype=torch.bfloat16)
    assert adjust(logits, Asked.next([sequence(params, [1], [0])]), 2)[0, 0].item() == pytest.approx(7.999)


def test_a_row_that_is_not_finite_stays_so() -> None:
    params = SamplingParams(max_tokens=1, min_p=0.1, repetition_penalty=1.5)
    assert adjust(torch.full((1, 4), math.nan), Asked.next([sequence(params, [1], [])]), 4).isnan().all()
