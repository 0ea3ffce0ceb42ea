"""Log probabilities, row by row, against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from llm.sampler.logprobs import measure

LOGITS = torch.randn(4, 12, generator=torch.Generator().manual_seed(3)) * 5


def test_values_ranks_and_the_best() -> None:
    expected = LOGITS[:, :10].log_softmax(-1)  # two rows of padding count for nothing
    found = measure(LOGITS, [3, 9, 0, 5], [2, 0, None, 10], 10)
    assert found[2] is None
    for row, logprob in ((0, found[0]), (1, found[1]), (3, found[3])):
        assert logprob is not None
        assert logprob.value == pytest.approx(float(expected[row, logprob.token_id]), abs=1e-5)
        assert logprob.rank == 1 + int((expected[row] > expected[row, logprob.token_id]).sum())
        best, ids = expected[row].topk(len(logprob.top))
        assert [token for token, _ in logprob.top] == ids.tolist()
        assert [value for _, value in logprob.top] == pytest.approx(best.tolist(), abs=1e-5)
    assert [len(f.top) for f in found if f is not None] == [2, 0, 10]


def test_more_alternatives_than_there_are_ids() -> None:
    (found,) = measure(LOGITS[:1], [0], [20], 10)
    assert found is not None and len(found.top) == 10
    assert sum(math.exp(value) for _, value in found.top) == pytest.approx(1, abs=1e-5)


def test_nothing_is_measured_for_a_row_without_a_token() -> None:
    assert measure(LOGITS[:2], [-1, 4], [3, None], 10) == [None, None]


def test_half_precision_logits_are_measured_in_single() -> None:
    (half,) = measure(LOGITS[:1].bfloat16(), [4], [0], 12)
    expected = float(LOGITS[:1].bfloat16().float().log_softmax(-1)[0, 4])
    assert half is not None and half.value == pytest.approx(expected, abs=1e-5)
