"""The sampler in C against torch's: the same tokens for the same draws, on every instruction set.

Two float64 sums in different orders may put the border between two tokens a few 1e-16 apart, so a draw may
differ where its uniform number lies that near; `differing` shows of every difference that it is one of those.
"""

from __future__ import annotations

import ctypes
import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from llm.config import SamplingParams
from llm.grammar import expand
from llm.runner.native.binding import load
from llm.runner.native.build import built_library
from llm.runner.native.sampler import NativeSampler
from llm.sampler import INVALID, Asked
from llm.sampler.draws import sample_reference, uniform
from llm.sampler.eager import EagerSampler
from llm.sampler.logits import adjust, adjust_reference
from llm.sequence import Sequence
from tests.llm.native_models import CONFIGS, bits_of, isas, native

ISAS = isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="needs a CPU with AVX2 and a C compiler")
ALL = ["portable", *ISAS]
MOST = 50_000
EAGER = EagerSampler()
NEAR = 1e-12
"""Of the whole weight: what a border may be off by, with sums of 50,000 float64."""


@cache
def sampler(isa: str, num_threads: int = 1) -> NativeSampler:
    """For rows of up to MOST ids; kept, so that every test finds what others left in it."""
    config = replace(CONFIGS["one layer"], vocab_size=MOST)
    return native(config, library=built_library(isa), num_threads=num_threads).sampler


def everyone() -> list[NativeSampler]:
    return [sampler("portable"), *(sampler(isa, num_threads) for isa in ISAS for num_threads in (1, 2))]


def noise(rows: int, vocab_size: int, seed: int, size: float = 3.0, ties: bool = False) -> Tensor:
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * size
    return (logits * 4).round() / 4 if ties else logits


def differing(logits: Tensor, asked: Asked, found: list[int], expected: list[int], vocab_size: int) -> int:
    """How many rows have another token; of each it is shown that its draw lies on the border of the two."""
    different = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
    for i in different:
        sequence, params = asked.sequences[i], asked.sequences[i].params
        row = adjust_reference(
            logits[asked.rows[i], :vocab_size].double(), params, sequence.prompt, sequence.output
        )
        assert is_border(row, params, asked.positions[i], found[i], expected[i]), (found[i], expected[i])
    return len(different)


def is_border(row: Tensor, params: SamplingParams, position: int, one: int, other: int) -> bool:
    """Whether shifts by NEAR of the uniform number and of top-p give both tokens."""
    draws = set()
    for shift in (-NEAR, NEAR):
        for top_p in {params.top_p, min(params.top_p + NEAR, 1.0), max(params.top_p - NEAR, 1e-300)}:
            draws.add(textbook(row, replace(params, top_p=top_p), uniform_of(params, position) + shift))
    return {one, other} <= draws


def uniform_of(params: SamplingParams, position: int) -> float:
    return uniform(params.seed, params.choice, position)


def textbook(row: Tensor, params: SamplingParams, u: float) -> int:
    """`sample_reference`, with any uniform number."""
    scaled = (row - row.max()) / max(params.temperature, 1e-307)
    kept, ids = scaled.softmax(-1), torch.arange(len(row))
    if params.top_k or params.top_p < 1.0:
        kept, ids = kept.sort(descending=True, stable=True)
        kept = kept[: params.top_k or None]
        mass = kept.cumsum(-1)
        kept = kept[: int((mass - kept < params.top_p * mass[-1]).sum())]
    mass = kept.cumsum(-1)
    return int(ids[min(int(torch.searchsorted(mass, u * mass[-1], right=True)), len(kept) - 1)])


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    temperature=st.sampled_from([0.0, 1e-30, 0.01, 0.3, 1.0, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 3, 50, 200, 400]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 1e-6, 5e-324]),
    min_p=st.sampled_from([0.0, 0.0, 1e-9, 0.02, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.3]),
    frequency_penalty=st.just(0.0) | st.floats(-2, 2),
    presence_penalty=st.just(0.0) | st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, 30), st.floats(-100, 100), max_size=4).map(
        lambda bias: tuple(bias.items())
    ),
    stop_token_ids=st.frozensets(st.integers(0, 40), max_size=3),
    min_tokens=st.integers(0, 4),
    seed=st.integers(-(2**63), 2**63 - 1),
    choice=st.integers(0, 7),
)


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    ids = st.lists(st.integers(0, 30), max_size=8)
    matcher: Any = object() if draw(st.integers(0, 3)) == 0 else None
    return Sequence([1, *draw(ids)], draw(PARAMS), draw(ids), matcher=matcher)


def random_masks(asking: list[Sequence], vocab_size: int, rng: random.Random) -> NDArray[np.uint8] | None:
    """Of each sequence with a matcher; some allow little."""
    ruled = sum(sequence.matcher is not None for sequence in asking)
    if not ruled:
        return None
    share = rng.choice([0.02, 0.5, 0.99])
    bits = np.random.default_rng(rng.randrange(99)).random((ruled, 32 * (vocab_size // 32 + 1))) < share
    return np.packbits(bits, axis=1, bitorder="little")


@settings(max_examples=80, deadline=None)
@given(
    asking=st.lists(sequences(), min_size=1, max_size=9),
    vocab_size=st.sampled_from([1, 3, 41, 63, 64, 65, 128, 300, 301]),
    padding=st.integers(0, 3),
    ties=st.booleans(),
    size=st.sampled_from([1e-3, 3.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_any_batch_draws_what_torch_draws(
    asking: list[Sequence], vocab_size: int, padding: int, ties: bool, size: float, seed: int
) -> None:
    asking = [within(sequence, vocab_size) for sequence in asking]
    rng = random.Random(seed)
    logits = noise(len(asking) + 1, vocab_size + padding, seed, size, ties)
    logits[:, vocab_size:] = 1000.0
    asked = Asked.next(asking, [rng.randrange(len(logits)) for _ in asking])  # forks share a row
    masks = random_masks(asking, vocab_size, rng)
    before = logits.clone()
    expected = EAGER.draw(logits, asked, vocab_size, masks)
    for each in everyone():
        found = each.draw(logits, asked, vocab_size, masks)
        if masks is None:
            assert differing(logits, asked, found, expected, vocab_size) <= 1
        else:
            assert found == expected
    assert torch.equal(logits, before)


def within(sequence: Sequence, vocab_size: int) -> Sequence:
    """The same with ids of a smaller vocabulary."""
    params = sequence.params
    bias = tuple((token, amount) for token, amount in params.logit_bias if token < vocab_size)
    return Sequence(
        [token % vocab_size for token in sequence.prompt],
        replace(params, logit_bias=bias),
        [token % vocab_size for token in sequence.output],
        matcher=sequence.matcher,
    )


MIXES: list[dict[str, float]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    {"top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.95},
    {"temperature": 2.0, "top_p": 0.9999},
    {"top_k": 700},
    {"top_k": 5000, "top_p": 0.9},
    {"top_k": 49_000},
    {"top_k": 60_000},
    {"min_p": 0.05},
    {"temperature": 5.0, "min_p": 1e-4, "top_p": 0.99},
]


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_a_large_vocabulary(mix: dict[str, float], ties: bool) -> None:
    """Many candidates, on many rungs."""
    check_large(mix, 3.0, ties, vocab_size=49_152 if ties else 49_157)


@pytest.mark.parametrize("mix", [{"top_p": 0.9}, {"top_k": 700}, {"top_k": 4000, "top_p": 0.3}], ids=str)
@pytest.mark.parametrize("size", [1e-6, 0.0])
def test_a_large_vocabulary_without_opinion(mix: dict[str, float], size: float) -> None:
    """Next to nothing is between the best and the worst: few different numbers; all equal, on one rung."""
    check_large(mix, size, False, vocab_size=20_001)


def check_large(mix: dict[str, float], size: float, ties: bool, vocab_size: int) -> None:
    logits = noise(1, vocab_size, 5, size, ties)
    params = [SamplingParams(9, **{"seed": seed} | mix) for seed in range(4)]  # type: ignore[arg-type]
    asked = Asked.next([Sequence([1], own) for own in params], [0] * len(params))
    expected = EAGER.draw(logits, asked, vocab_size)
    found = [each.draw(logits, asked, vocab_size) for each in everyone()]
    assert all(tokens == found[0] for tokens in found)
    assert differing(logits, asked, found[0], expected, vocab_size) <= 1


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.99999}, {"top_k": 300}], ids=str)
def test_the_border_between_two_tokens_is_where_it_should_be(cut: dict[str, float]) -> None:
    """The second and the third, whose float32 logits are neighbours on either side of it: weights in float32
    would be too coarse.
    """
    num_near = 0
    row = torch.full((400,), -800.0)
    for seed in range(300):
        params = SamplingParams(9, 1.0, seed=seed, **cut)  # type: ignore[arg-type]
        u = uniform_of(params, 0)
        if not 0.81 < u < 0.999:
            continue
        second = np.float64(np.float32(-0.2 - 0.1 * (seed % 7)))
        row[0], row[1] = 0.0, float(second)
        border = np.float32(np.log((1 + np.exp(second)) * (1 / u - 1)))
        for third in (np.nextafter(border, np.float32(99)), border, np.nextafter(border, np.float32(-99))):
            row[2] = float(third)
            expected = sample_reference(row, params, 0)
            asked = Asked.next([Sequence([1], params)])
            found = [each.draw(row[None], asked, len(row)) for each in everyone()]
            assert found == [[expected]] * len(found)
            mass = 1 + np.exp(second)
            num_near += abs(mass / (mass + np.exp(np.float64(third))) - u) < 1e-8
    assert num_near > 50


def test_penalties_are_summed_in_float64() -> None:
    """And rounded once: as torch's float32, they move no border."""
    rng = random.Random(7)
    own = [
        SamplingParams(9, frequency_penalty=rng.uniform(-2, 2), presence_penalty=rng.uniform(-2, 2))
        for _ in range(64)
    ]
    asked = Asked.next([Sequence([1], params, [0, 0, 0, 1]) for params in own])
    logits = torch.zeros(64, 2)
    check_adjusted(logits, asked, None)


def test_the_token_that_reaches_top_p_is_the_last() -> None:
    """Equal weights, whose sums are exact: half of four are the first two, and a hair more are three."""
    logits = torch.zeros(1, 4)
    for top_p, kept in ((0.5, {0, 1}), (0.5000000001, {0, 1, 2}), (0.25, {0}), (1.0, {0, 1, 2, 3})):
        own = [SamplingParams(9, top_p=top_p, top_k=4, seed=seed) for seed in range(60)]
        asked = Asked.next([Sequence([1], params) for params in own], [0] * 60)
        assert all(set(each.draw(logits, asked, 4)) == kept for each in everyone())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.9])
def test_min_p_cuts_between_two_neighbours(temperature: float) -> None:
    """The least float32 that stays and the greatest that goes."""
    for min_p in (0.5, 0.3, 0.011):
        lowest = np.float32(5.0) + np.float32(temperature * np.log(min_p))
        logits = torch.tensor([[5.0, float(lowest), float(np.nextafter(lowest, np.float32(-99)))]])
        own = [SamplingParams(9, temperature, min_p=min_p, seed=seed) for seed in range(200)]
        asked = Asked.next([Sequence([1], params) for params in own], [0] * 200)
        expected = EAGER.draw(logits, asked, 3)
        assert set(expected) == {0, 1}
        assert all(each.draw(logits, asked, 3) == expected for each in everyone())


def test_a_border_is_known_by_its_neighbourhood() -> None:
    """What `differing` holds on to."""
    params = SamplingParams(9, 1.0, seed=3)
    border = float(np.log(1 / uniform_of(params, 0) - 1))
    assert is_border(torch.tensor([0.0, border], dtype=torch.float64), params, 0, 0, 1)
    assert not is_border(torch.tensor([0.0, border + 1e-9], dtype=torch.float64), params, 0, 0, 1)


@pytest.mark.parametrize("isa", ALL)
def test_weights_are_powers_of_e(isa: str) -> None:
    """Within a unit and a half of the last place, with the same bits on every instruction set."""
    x = np.concatenate([-np.geomspace(1e-6, 707, 4000), [0.0, -707.99]]).astype(np.float32)
    out = weights(isa, x)
    exact = np.exp(x.astype(np.longdouble))
    assert (np.abs(out - exact) <= 1.5 * np.spacing(exact.astype(np.float64))).all()
    assert np.array_equal(out, weights("portable", x))
    assert weights(isa, np.array([0, -0.0, -709, -1e30, -np.inf], np.float32)).tolist() == [1, 1, 0, 0, 0]


def weights(isa: str, x: NDArray[np.float32]) -> NDArray[np.float64]:
    out = np.empty(len(x))
    load(built_library(isa)).kernel_weigh(x.ctypes.data, len(x), 0.0, 1.0, out.ctypes.data)
    return out


@settings(max_examples=25, deadline=None)
@given(
    asking=st.lists(sequences(), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    bad=st.sampled_from([0.0, np.nan, np.inf, -np.inf]),
)
def test_logits_are_adjusted_to_the_bit(asking: list[Sequence], seed: int, bad: float) -> None:
    """float32 in the order of torch's, so that no penalty moves a border."""
    vocab_size = 77
    logits = noise(len(asking), vocab_size, seed)
    logits[0, seed % 40] = bad
    asking = [Sequence(s.prompt, replace(s.params, min_p=0.0), s.output, matcher=s.matcher) for s in asking]
    check_adjusted(logits, Asked.next(asking), random_masks(asking, vocab_size, random.Random(seed)))


def check_adjusted(logits: Tensor, asked: Asked, masks: NDArray[np.uint8] | None) -> None:
    vocab_size = logits.shape[1]
    bias = None if masks is None else expand(masks, logits.device)
    expected = adjust(logits, asked, vocab_size, bias).numpy()[:, :vocab_size]
    for isa in ALL:
        each = sampler(isa)
        each.draw(logits, asked, vocab_size, masks)  # leaves the arrays filled
        for i, row in enumerate(expected):
            found = np.empty(vocab_size, np.float32)
            load(built_library(isa)).kernel_adjust(ctypes.byref(each._ballot.draws), i, found.ctypes.data)
            assert np.array_equal(bits_of(found), bits_of(row.copy())), isa


def test_what_has_been_said_is_counted_as_it_is_said() -> None:
    """Sequences join, are left out, come back: each draws what torch draws from its whole history."""
    rng, vocab_size = random.Random(4), 90
    penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.2}
    mixes = [
        penalties,
        {"repetition_penalty": 0.8},
        {"frequency_penalty": 0.7},
        {},
        {"temperature": 0.0} | penalties,
    ]
    crowd = [
        Sequence(
            [rng.randrange(vocab_size) for _ in range(rng.randint(1, 90))],
            SamplingParams(300, seed=i, **mixes[i % 5]),  # type: ignore[arg-type]
            [rng.randrange(vocab_size) for _ in range(rng.choice([0, 20]))],
        )
        for i in range(12)
    ]
    for number in range(120):
        asking = crowd if number % 3 else rng.sample(crowd, rng.randint(1, 11))
        logits = noise(len(asking), vocab_size, number, 1.0)
        asked = Asked.next(asking)
        expected = EAGER.draw(logits, asked, vocab_size)
        assert all(sampler(isa).draw(logits, asked, vocab_size) == expected for isa in ISAS)
        for sequence, token in zip(asking, expected, strict=True):
            sequence.output.append(token)
    assert max(len(sequence.output) for sequence in crowd) > 70


def test_a_sequence_brings_several_rows() -> None:
    """Each at a position of its own: the draws of later steps, in one."""
    logits = noise(40, 200, 8)
    first = Sequence([1], SamplingParams(50, seed=5, min_tokens=3, stop_token_ids=frozenset(range(150))), [7])
    other = Sequence([1], SamplingParams(50, 0.7, top_k=40, seed=6, choice=3), [1] * 9)
    asked = Asked([first] * 30 + [other] * 10, [*range(1, 31), *range(9, 19)], rows=list(range(39, -1, -1)))
    expected = EAGER.draw(logits, asked, 200)
    assert min(expected[:2]) >= 150 > min(expected[2:30]), "ends are forbidden at two of the positions"
    for each in everyone():
        assert each.draw(logits, asked, 200) == expected
    for i in range(40):
        alone = Asked([asked.sequences[i]], [asked.positions[i]], [asked.rows[i]])
        assert sampler(ISAS[0], 2).draw(logits, alone, 200) == [expected[i]]


def test_a_crowd_is_larger_than_the_arrays() -> None:
    logits = noise(100, 64, 9)
    asked = Asked.next([Sequence([1], SamplingParams(9, seed=i)) for i in range(100)])
    expected = EAGER.draw(logits, asked, 64)
    for each in everyone():
        assert each.draw(logits, asked, 64) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 15, 63, 64, 99])
def test_one_logit_that_is_not_a_number_is_enough(value: float, place: int) -> None:
    """Wherever it is, forbidden or not; rows beside it do not see it."""
    kinds = [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_k": 99}, {"top_p": 0.5}, {"min_p": 0.5}]
    own: list[SamplingParams] = [SamplingParams(9, **kind) for kind in kinds]  # type: ignore[arg-type]
    masks = np.zeros((1, 16), np.uint8)
    masks[0, 5] = 1  # id 40
    logits = torch.zeros(2, 100)
    logits[0, place] = value
    for params in own:
        asked = Asked.next([Sequence([1], params), Sequence([1], params)])
        ruled = Asked.next([Sequence([1], params, matcher=object())])  # type: ignore[arg-type]
        for each in everyone():
            first, second = each.draw(logits, asked, 100)
            assert (first, second >= 0) == (INVALID, True)
            assert each.draw(logits, ruled, 100, masks) == [INVALID]
            assert each.draw(logits[1:], ruled, 100, masks) == [40]


def test_a_row_that_allows_nothing_is_invalid() -> None:
    logits = torch.full((1, 70), -torch.inf)
    for kind in ({"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}):
        asked = Asked.next([Sequence([1], SamplingParams(9, **kind))])  # type: ignore[arg-type]
        assert all(each.draw(logits, asked, 70) == [INVALID] for each in everyone())


@pytest.mark.parametrize(("vocab_size", "ties"), [(5, False), (130, False), (3001, False), (3001, True)])
def test_log_probabilities_are_torchs(vocab_size: int, ties: bool) -> None:
    """Values to float32, ranks exactly, the best in order, equal ones by id; the same bits everywhere."""
    rng = random.Random(vocab_size)
    logits = noise(30, vocab_size + 2, vocab_size, 4.0, ties)
    logits[:, vocab_size:] = 1000.0
    rows = [rng.randrange(30) for _ in range(40)]
    best = logits[:, :vocab_size].argmax(-1).tolist()
    tokens = [rng.choice([-1, rng.randrange(vocab_size), best[row]]) for row in rows]
    num_top = [rng.choice([None, 0, 1, 5, 20]) for _ in rows]
    expected = EAGER.measure(logits, rows, tokens, num_top, vocab_size)
    found = sampler("portable").measure(logits, rows, tokens, num_top, vocab_size)
    for row, wanted, logprob in zip(rows, expected, found, strict=True):
        if wanted is None or logprob is None:
            assert wanted is logprob
            continue
        assert (logprob.token_id, logprob.rank) == (wanted.token_id, wanted.rank)
        assert logprob.value == pytest.approx(wanted.value, abs=4e-6)
        order = logits[row, :vocab_size].sort(descending=True, stable=True).indices
        assert [token for token, _ in logprob.top] == order[: len(wanted.top)].tolist()
        assert [v for _, v in logprob.top] == pytest.approx([v for _, v in wanted.top], abs=4e-6)
    for each in everyone():
        assert each.measure(logits, rows, tokens, num_top, vocab_size) == found


def test_log_probabilities_of_what_is_no_number_are_torchs() -> None:
    logits = noise(4, 50, 1)
    logits[0, 3], logits[1, 3], logits[2, 2:] = torch.nan, torch.inf, -torch.inf
    arguments = ([0, 1, 2, 3], [5, 3, 0, 1], [3, 3, 3, 3], 50)
    expected = EAGER.measure(logits, *arguments)
    for each in everyone():
        found = each.measure(logits, *arguments)
        assert repr(found[:3]) == repr(expected[:3])  # NaN is like no other
        assert found[3] is not None and expected[3] is not None
        assert found[3].value == pytest.approx(expected[3].value, abs=4e-6)
