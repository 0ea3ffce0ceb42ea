"""The cheap losses are the dear one: rows without a target, sampled columns, shared rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.kv.concat import NoCache, causal_attention
from llm.model import Decoder
from llm.train.attention import WrittenOut
from llm.train.batches import IGNORE, Batch
from llm.train.loss import Candidates, head_loss
from llm.train.vocabulary import SharedRows
from tests.fakes import tiny_model

SEEN = np.array([3, 9, 40, 41, 100, 3, 200], dtype=np.int32)


def batch_of(seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    ids = torch.from_numpy(random.choice(SEEN, (3, 12)).astype(np.int64))
    targets = torch.from_numpy(random.choice(SEEN, (3, 12)).astype(np.int64))
    weights = torch.from_numpy(random.choice([0.0, 0.5, 1.0], (3, 12)).astype(np.float32))
    return Batch(ids, targets.where(weights > 0, IGNORE), weights)


def hidden_of(model: Decoder, batch: Batch) -> torch.Tensor:
    return model(batch.ids, torch.arange(batch.ids.shape[1]), NoCache())


@pytest.mark.parametrize("tied", [True, False])
def test_loss_is_the_weighted_mean_over_all_positions(tied: bool) -> None:
    model, batch = tiny_model(tied_head=tied), batch_of()
    hidden = hidden_of(model, batch)
    logits = model.logits(hidden).flatten(0, 1)
    losses = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORE, reduction="none")
    expected = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
    torch.testing.assert_close(head_loss(model, hidden, batch), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_sampled_loss_with_all_others_is_the_full_loss(tied: bool) -> None:
    model, batch = tiny_model(tied_head=tied), batch_of()
    hidden = hidden_of(model, batch)
    everything = Candidates(SEEN, 257, num_negatives=1000, seed=1)
    assert everything.num_negatives == 257 - 6
    torch.testing.assert_close(head_loss(model, hidden, batch, everything), head_loss(model, hidden, batch))


def test_sampled_normaliser_is_right_on_average() -> None:
    """exp of the sampled log-sum is an unbiased estimate of the full sum, thanks to log(N / K)."""
    scores = torch.randn(257, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    candidates = Candidates(SEEN, 257, num_negatives=25, seed=1)
    total = 0.0
    for step in range(2000):
        ids, added = candidates.draw(step)
        total += float((scores[ids] + added).exp().sum()) / 2000
    assert total == pytest.approx(float(scores.exp().sum()), rel=0.01)


def test_a_draw_belongs_to_its_step() -> None:
    candidates = Candidates(SEEN, 257, num_negatives=10, seed=1)
    ids, added = candidates.draw(5)
    assert ids[:6].tolist() == [3, 9, 40, 41, 100, 200]
    assert len(set(ids.tolist())) == 16
    assert added.tolist() == pytest.approx([0.0] * 6 + [math.log(251 / 10)] * 10)
    assert torch.equal(ids, candidates.draw(5)[0])
    assert not torch.equal(ids, candidates.draw(6)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_shared_rows_give_the_loss_of_the_model_they_expand_to(tied: bool) -> None:
    model, batch = tiny_model(tied_head=tied), batch_of()
    shared = SharedRows(SEEN, 257, num_shared=4)
    small = shared.shrink(model)
    assert small.config.vocab_size == 6 + 4
    whole = shared.expand(small)
    assert whole.config == model.config
    rows = shared.apply(batch)
    cheap = head_loss(small, hidden_of(small, rows), rows, log_counts=shared.log_counts)
    torch.testing.assert_close(cheap, head_loss(whole, hidden_of(whole, batch), batch))


def test_shared_rows_keep_the_seen_ids_and_deal_out_the_others() -> None:
    model = tiny_model()
    shared = SharedRows(SEEN, 257, num_shared=4)
    whole = shared.expand(shared.shrink(model))
    seen = sorted(set(SEEN.tolist()))
    assert torch.equal(whole.tokens.weight[seen], model.tokens.weight[seen])
    assert len(whole.tokens.weight.unique(dim=0)) == 6 + 4
    assert shared.log_counts.exp().sum().item() == pytest.approx(257)
    assert shared.log_counts[6:].exp().round().tolist() == [63, 63, 63, 62]


def test_more_shared_rows_than_other_ids_change_nothing() -> None:
    model, batch = tiny_model(), batch_of()
    shared = SharedRows(SEEN, 257, num_shared=10_000)
    assert shared.num_rows == 257
    assert torch.equal(shared.expand(shared.shrink(model)).tokens.weight, model.tokens.weight)
    every = SharedRows(np.arange(257, dtype=np.int32), 257, num_shared=8)
    assert torch.equal(every.apply(batch).ids, batch.ids)
    assert torch.equal(every.log_counts, torch.zeros(257))


@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 4, 33), (4, 2, 9), (2, 2, 300), (1, 1, 1)])
def test_written_out_attention_is_attention(heads: int, kv_heads: int, length: int) -> None:
    random = torch.Generator().manual_seed(1)
    q = torch.randn(2, length, heads, 8, generator=random, dtype=torch.float64, requires_grad=True)
    k = torch.randn(2, length, kv_heads, 8, generator=random, dtype=torch.float64)
    v = torch.randn(2, length, kv_heads, 8, generator=random, dtype=torch.float64)
    ours, theirs = WrittenOut().attend(0, q, k, v), causal_attention(q, k, v)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    (mine,) = torch.autograd.grad(ours.square().sum(), q)
    (other,) = torch.autograd.grad(theirs.square().sum(), q)
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
