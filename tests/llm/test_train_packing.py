"""Packed conversations learn exactly what they would learn alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.kv import KVCache
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.train.attention import Apart
from llm.train.batches import Batch, collate
from llm.train.data import Example
from llm.train.loss import head_loss
from llm.train.packing import PackedBatches, collate_packed, pack
from tests.fakes import tiny_model

LLAMA = {"norm": "rms", "activation": "swiglu", "rope_theta": 100.0, "num_heads": 4}
SHAPES: dict[str, dict[str, object]] = {
    "learned positions": {},
    "rotary, grouped heads": LLAMA | {"num_kv_heads": 2},
    "sliding window": LLAMA | {"num_kv_heads": 4, "sliding_window": 3},
}


def examples(lengths: list[int], seed: int = 0) -> list[Example]:
    random = np.random.default_rng(seed)
    return [
        Example(random.integers(1, 257, n).astype(np.int32), random.random(n) < 0.5) if n > 2
        else Example(np.array([n, 7], dtype=np.int32), np.array([False, True]))
        for n in lengths
    ]  # fmt: skip


def gradients(model: Decoder, batch: Batch, cache: KVCache) -> tuple[torch.Tensor, list[torch.Tensor]]:
    positions = torch.arange(batch.ids.shape[1]) if batch.positions is None else batch.positions
    loss = head_loss(model, model(batch.ids, positions, cache), batch)
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_rows_have_the_loss_and_the_gradients_of_one_conversation_per_row(
    shape: str, written_out: bool
) -> None:
    model = tiny_model(dtype=torch.float64, **SHAPES[shape])
    chats = examples([9, 5, 2, 12, 7, 4])
    alone = collate(chats, 0.25)
    packed = collate_packed([[chats[3], chats[1], chats[2]], [chats[0]], [chats[4], chats[5]]], 0.25)
    assert packed.segments is not None
    loss, grads = gradients(model, alone, NoCache())
    same_loss, same_grads = gradients(model, packed, Apart(packed.segments, written_out))
    torch.testing.assert_close(same_loss, loss, rtol=1e-12, atol=0)
    for one, two in zip(same_grads, grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_without_the_mask_it_would_show() -> None:
    model = tiny_model(dtype=torch.float64)
    chats = examples([9, 5])
    packed = collate_packed([chats])
    apart = gradients(model, packed, Apart(torch.where(packed.segments >= 0, 0, -1), True))[0]
    assert abs(float(apart - gradients(model, collate(chats), NoCache())[0])) > 1e-3


def test_a_row_says_whose_each_token_is() -> None:
    one = Example(np.array([5, 6, 7], dtype=np.int32), np.array([False, False, True]))
    two = Example(np.array([8, 9], dtype=np.int32), np.array([False, True]))
    batch = collate_packed([[one, two], [two]])
    assert batch.segments is not None and batch.positions is not None
    assert batch.ids.tolist() == [[5, 6, 8], [8, 0, 0]]
    assert batch.targets.tolist() == [[-100, 7, 9], [9, -100, -100]]
    assert batch.segments.tolist() == [[0, 0, 1], [0, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_parts_of_a_batch_bring_their_segments_and_positions() -> None:
    chats = examples([9, 5, 12, 4])
    packed = collate_packed([chats[:2], [chats[3]], [chats[2]]])
    first, second = packed.split(2)
    for part, rows in ((first, slice(2)), (second, slice(2, 3))):
        length = part.ids.shape[1]
        assert part.segments is not None and part.positions is not None
        assert torch.equal(part.segments, packed.segments[rows, :length])
        assert torch.equal(part.positions, packed.positions[rows, :length])
        assert part.num_targets == int((packed.targets[rows] != -100).sum())


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_every_conversation_is_in_one_row_that_has_room_for_it(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert sum(sum(lengths[i] for i in row) <= 32 for row in rows) <= 1, "two half-empty rows would be one"


def test_an_epoch_sees_every_chat_once_and_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    chats = [Example(np.full(2 + n % 7, n + 1, dtype=np.int32), np.ones(2 + n % 7, bool)) for n in range(50)]
    batches, again = (PackedBatches(chats, window=16, batch_size=4, seed=3) for _ in range(2))
    steps = batches.steps_per_epoch

    def seen(epoch: int) -> list[int]:
        rows = (batches[epoch * steps + step] for step in range(steps))
        return [i for b in rows for i in b.ids[(b.positions == 0) & (b.segments >= 0)].tolist()]

    assert Counter(seen(0)) == Counter(seen(1)) == Counter(range(1, 51))
    assert seen(0) != seen(1)
    assert torch.equal(batches[steps + 1].ids, again[steps + 1].ids)
