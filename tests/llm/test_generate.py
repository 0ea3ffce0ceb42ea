"""The oracles agree with each other and stop where the model's positions end."""

import pytest
import torch

from llm.bench.cache import attention_pairs
from llm.config import SamplingParams
from llm.generate import generate_cached, generate_naive
from llm.kv.concat import ConcatCache, NoCache
from llm.sequence import FinishReason
from tests.fakes import tiny_model

LOOPS = [generate_naive, generate_cached]


@pytest.mark.parametrize("loop", LOOPS)
def test_past_the_last_position_it_stops_with_length(loop: object) -> None:
    """The course's loop indexes its position table beyond the end here and crashes."""
    tokens, reason = loop(tiny_model(), [1] * 60, SamplingParams(max_tokens=50, temperature=0.0))  # type: ignore[operator]
    assert (len(tokens), reason) == (4, FinishReason.LENGTH)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_shorter_limit_than_the_model_has(loop: object) -> None:
    params = SamplingParams(max_tokens=50, temperature=0.0)
    assert len(loop(tiny_model(), [1] * 10, params, 16)[0]) == 6  # type: ignore[operator]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_token_ends_the_reply_and_is_part_of_its_ids(loop: object) -> None:
    free = generate_naive(tiny_model(), [1, 2], SamplingParams(max_tokens=20, temperature=0.0))[0]
    params = SamplingParams(max_tokens=20, temperature=0.0, stop_token_ids=frozenset({free[5]}))
    tokens, reason = loop(tiny_model(), [1, 2], params)  # type: ignore[operator]
    assert (tokens, reason) == (free[: free.index(free[5]) + 1], FinishReason.STOP)


def test_hidden_states_do_not_depend_on_how_the_context_arrives() -> None:
    model = tiny_model(dtype=torch.float64)
    ids = torch.randint(257, (1, 20), generator=torch.Generator().manual_seed(0))
    whole = model(ids, torch.arange(20), NoCache())
    cache, parts = ConcatCache(), []
    for start, stop in ((0, 7), (7, 8), (8, 20)):
        parts.append(model(ids[:, start:stop], torch.arange(start, stop), cache))
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-12)


def test_attention_work_is_counted_right() -> None:
    """Against counting every pair of every pass by hand."""
    naive = cached = past = 0
    for n in range(5, 5 + 7):
        naive += sum(query + 1 for query in range(n))
        cached += sum(query + 1 for query in range(past, n))
        past = n
    assert attention_pairs(5, 7) == (naive, cached)
