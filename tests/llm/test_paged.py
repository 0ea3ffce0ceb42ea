"""The paged cache against the concatenating one, tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import EngineConfig
from llm.errors import OptionError
from llm.kv.concat import ConcatCache
from llm.kv.paged import PagedKV, PagedStep
from tests.fakes import tiny_model

ENGINE = EngineConfig(max_model_len=64, max_num_seqs=4, block_size=4)
MODEL = tiny_model(num_heads=4, num_kv_heads=2).config


def random_qkv(
    num_tokens: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def draw(heads: int) -> torch.Tensor:
        return torch.randn(
            num_tokens, heads, MODEL.head_dim, generator=generator, dtype=torch.float64
        )  # (T, heads, D)

    return draw(MODEL.num_heads), draw(MODEL.num_kv_heads), draw(MODEL.num_kv_heads)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    window=st.sampled_from([None, 1, 3, 8, 100]),
)
def test_paged_attention_equals_concatenated(lengths: list[list[int]], seed: int, window: int | None) -> None:
    """Sequences of any chunk lengths, blocks shuffled, decoders and prefills in one step."""
    generator = torch.Generator().manual_seed(seed)
    kv = PagedKV(MODEL, ENGINE, torch.device("cpu"), torch.float64)
    free = torch.randperm(ENGINE.total_blocks, generator=generator).tolist()
    tables: list[list[int]] = [[free.pop() for _ in range(10)] for _ in lengths]
    caches, starts = [ConcatCache() for _ in lengths], [0] * len(lengths)
    for turn in range(4):
        rows = sorted(
            (i for i, chunks in enumerate(lengths) if turn < len(chunks)), key=lambda i: lengths[i][turn]
        )
        if not rows:
            break
        sizes = [lengths[i][turn] for i in rows]
        q, k, v = random_qkv(sum(sizes), generator)
        step = PagedStep(kv, [tables[i] for i in rows], [starts[i] for i in rows], sizes)
        paged = step.attend(1, q, k, v, window).split(sizes)
        parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        for i, out, (qi, ki, vi) in zip(rows, paged, parts, strict=True):
            oracle = caches[i].attend(1, qi[None], ki[None], vi[None], window)[0]
            assert torch.allclose(out, oracle, atol=1e-12)
            starts[i] += len(out)


def test_layers_do_not_share_storage() -> None:
    kv = PagedKV(MODEL, ENGINE, torch.device("cpu"), torch.float64)
    q, k, v = random_qkv(3, torch.Generator().manual_seed(0))
    PagedStep(kv, [[2]], [0], [3]).attend(0, q, k, v)
    assert kv.pool[0, 0, 2, :3].equal(k)
    assert kv.pool[0, 1, 2, :3].equal(v)
    assert not kv.pool[1].any()
    assert not kv.pool[0, :, [0, 1, 3]].any(), "only this sequence's block is written"


def test_storage_is_what_the_configuration_says() -> None:
    kv = PagedKV(MODEL, ENGINE, torch.device("cpu"), torch.float32)
    tokens = ENGINE.total_blocks * ENGINE.block_size
    assert kv.num_bytes == MODEL.num_layers * 2 * tokens * MODEL.num_kv_heads * MODEL.head_dim * 4
    assert tokens == pytest.approx(4 * 64)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 8])
def test_what_the_last_owner_left_in_a_block_reaches_nobody(length: int) -> None:
    """A sequence whose numbers overflowed gives its blocks back full of NaN; 0 × NaN is NaN."""
    generator = torch.Generator().manual_seed(0)
    kv = PagedKV(MODEL, ENGINE, torch.device("cpu"), torch.float64)
    kv.pool.fill_(float("nan"))
    q, k, v = random_qkv(length + 3, generator)
    cache, start = ConcatCache(), 0
    for size in (length, 1, 2):
        now = slice(start, start + size)
        out = PagedStep(kv, [[5, 0, 3]], [start], [size]).attend(0, q[now], k[now], v[now])
        assert torch.allclose(out, cache.attend(0, q[None, now], k[None, now], v[None, now])[0])
        start += size
    assert kv.pool[:, :, [1, 2, 4]].isnan().all(), "other sequences' blocks are left alone"


def test_a_pool_larger_than_the_machine_is_refused_in_one_line() -> None:
    huge = EngineConfig(max_model_len=1 << 24, max_num_seqs=64, max_num_batched_tokens=64)
    with pytest.raises(OptionError, match=r"needs .* GB, more than cpu has: lower --max-"):
        PagedKV(MODEL, huge, torch.device("cpu"), torch.float32)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_takes_memory_only_as_blocks_are_written(dtype: torch.dtype) -> None:
    """Else a small model with a long context fills gigabytes, and seconds, before its first request."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    kv = PagedKV(MODEL, EngineConfig(max_model_len=1 << 16), torch.device("cpu"), dtype)
    assert kv.pool.dtype == dtype and kv.num_bytes >= 128 << 20
    assert resident() - before < 16 << 20
    assert not kv.pool[:, :, ::997].any()


@pytest.mark.parametrize("window", [5, 6, 7])
def test_a_window_that_hides_one_token_hides_it(window: int) -> None:
    """A decoder with six tokens, alone in its step: the fast path that sees everything begins at six."""
    generator = torch.Generator().manual_seed(1)
    kv, oracle = PagedKV(MODEL, ENGINE, torch.device("cpu"), torch.float64), ConcatCache()
    for start, length in ((0, 5), (5, 1)):
        q, k, v = random_qkv(length, generator)
        out = PagedStep(kv, [[3, 1]], [start], [length]).attend(0, q, k, v, window)
        assert torch.allclose(out, oracle.attend(0, q[None], k[None], v[None], window)[0], atol=1e-12)
