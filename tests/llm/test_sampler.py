"""The batched sampler against its slow twin, and draws that depend on (seed, choice, position) alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import SamplingParams
from llm.sampler import INVALID
from llm.sampler.draws import prepare, sample, sample_reference, uniform

PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 50, 200, 299, 300, 301]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 1e-6]),
    seed=st.integers(-(2**63), 2**63 - 1),
    choice=st.integers(0, 7),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PARAMS, st.integers(0, 100)), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_batch_of_different_rows_draws_what_each_row_draws_alone(
    rows: list[tuple[SamplingParams, int]], seed: int
) -> None:
    logits = torch.randn(len(rows), 300, generator=torch.Generator().manual_seed(seed)) * 3
    params, positions = [p for p, _ in rows], [n for _, n in rows]
    alone = [sample_reference(logits[i], p, n) for i, (p, n) in enumerate(rows)]
    assert sample(logits, prepare(params, positions), 300) == alone


def frequencies(params: SamplingParams, logits: torch.Tensor, draws: int = 4000) -> list[float]:
    rows = prepare([params] * draws, list(range(draws)))
    counts = torch.bincount(
        torch.tensor(sample(logits.expand(draws, -1), rows, len(logits))), minlength=len(logits)
    )
    return (counts / draws).tolist()


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    for measured, wanted in zip(
        frequencies(SamplingParams(1, 1.0, seed=3), logits), (0.1, 0.2, 0.3, 0.4), strict=True
    ):
        assert abs(measured - wanted) < 0.03


def test_top_p_keeps_the_token_that_crosses_p() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    measured = frequencies(SamplingParams(1, 1.0, top_p=0.5, seed=3), logits)
    assert measured[:2] == [0.0, 0.0]
    assert abs(measured[2] - 3 / 7) < 0.03


def test_top_k_keeps_k() -> None:
    measured = frequencies(SamplingParams(1, 1.0, top_k=2, seed=3), torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    assert [m > 0 for m in measured] == [False, False, True, True]


def test_a_padded_vocabulary_is_never_drawn() -> None:
    logits = torch.zeros(3, 8)
    logits[:, 5:] = 50.0
    params = [SamplingParams(1, t, top_k=k, seed=1) for t, k in ((0.0, 0), (1.0, 0), (1.0, 3))]
    assert all(token < 5 for n in range(50) for token in sample(logits, prepare(params, [n] * 3), 5))


def test_a_row_that_is_not_finite_is_invalid_and_alone() -> None:
    logits = torch.zeros(4, 10)
    logits[:3, 4] = float("nan")
    params = [
        SamplingParams(1, 0.0),
        SamplingParams(1, 1.0),
        SamplingParams(1, 1.0, top_k=2),
        SamplingParams(1, 1.0),
    ]
    tokens = sample(logits, prepare(params, [0] * 4), 10)
    assert tokens[:3] == [INVALID] * 3
    assert tokens[3] >= 0


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 7), st.integers(0, 10**6))
def test_uniform_is_a_pure_function_in_range(seed: int, choice: int, position: int) -> None:
    u = uniform(seed, choice, position)
    assert 0.0 <= u < 1.0
    assert u == uniform(seed, choice, position)


def test_uniform_is_spread_over_seed_choice_and_position() -> None:
    for draws in (
        [uniform(s, 0, 0) for s in range(4000)],
        [uniform(1, c, 0) for c in range(4000)],
        [uniform(1, 0, p) for p in range(4000)],
        [uniform(1, c, p) for c in range(8) for p in range(500)],
    ):
        assert len(set(draws)) == 4000
        assert abs(sum(draws) / 4000 - 0.5) < 0.03
        assert max(sum(a <= d < a + 0.1 for d in draws) for a in (0, 0.3, 0.6, 0.9)) < 480


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", [{"top_k": 50}, {"top_p": 0.9}, {"top_k": 64, "top_p": 0.5}, {"top_k": 0}])
def test_equal_logits_are_drawn_in_id_order_whatever_the_company(
    dtype: torch.dtype, params: dict[str, float]
) -> None:
    """16-bit logits tie often; which of them a top-k keeps must not depend on the batch."""
    for seed in range(20):
        row = torch.randn(1, 5000, generator=torch.Generator().manual_seed(seed)).to(dtype)
        own = SamplingParams(1, 1.0, seed=seed, **params)  # type: ignore[arg-type]
        wide = SamplingParams(1, 1.0, top_k=700, seed=seed)
        company = sample(row.repeat(2, 1), prepare([own, wide], [0, 0]), 5000)
        assert company == [sample_reference(row[0], own, 0), sample_reference(row[0], wide, 0)]
        assert company[:1] == sample(row, prepare([own], [0]), 5000)


@pytest.mark.parametrize("temperature", [1e-30, 1e-308, 5e-324])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.9), (0, 5e-324), (5, 5e-324)])
def test_the_smallest_numbers_draw_the_best_token(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)) * 30
    params = SamplingParams(1, temperature, top_k=top_k, top_p=top_p, seed=9)
    best = int(logits.argmax())
    assert sample(logits, prepare([params], [0]), 300) == [best]
    assert sample_reference(logits[0], params, 0) == best


@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {}, {"top_k": 50}, {"top_k": 300}, {"top_p": 0.9}, {"top_p": 0.999}]
)
def test_masked_logits_are_never_drawn(params: dict[str, float]) -> None:
    """Fewer tokens left than top_k keeps; none left is an error of that row."""
    logits = torch.full((2, 300), float("-inf"))
    logits[0, [7, 70, 270]] = torch.tensor([0.0, 1.0, 0.5])
    for seed in range(30):
        own = SamplingParams(**{"max_tokens": 1, "temperature": 2.0, "seed": seed} | params)  # type: ignore[arg-type]
        first, second = sample(logits, prepare([own, own], [0, 0]), 300)
        assert first == sample_reference(logits[0], own, 0)
        assert first in (7, 70, 270)
        assert second == INVALID


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 100}])
def test_one_logit_that_is_not_a_number_is_enough(value: float, params: dict[str, float]) -> None:
    logits = torch.zeros(2, 100)
    logits[0, 99] = value
    own = SamplingParams(**{"max_tokens": 1} | params)  # type: ignore[arg-type]
    first, second = sample(logits, prepare([own, own], [0, 0]), 100)
    assert first == INVALID
    assert second >= 0
