"""Any mix of rows gives every sequence the bits it has alone, token by token, in memory as it was found.

The slow twin is the same runner with one row a step. Memory is full of NaN before a sequence comes, or holds
what others left.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm.batch import Batch, Chunk
from llm.config import ModelConfig, SamplingParams
from llm.runner.native.runner import NativeRunner
from llm.runner.native.weights import Quantization
from llm.sequence import Sequence as Tokens
from tests.llm.native_models import (
    BLOCK,
    CONFIGS,
    SCORED,
    Rows,
    bits_of,
    engine_config,
    ids,
    isas,
    kept,
    mixed,
    native,
    random_model,
    run,
    tables,
)

pytestmark = pytest.mark.skipif(not isas(), reason="needs a CPU with AVX2 and a C compiler")
NUM_BLOCKS = 100


def poison(runner: NativeRunner) -> None:
    """Every number of the KV pool becomes NaN, in either type."""
    _, keys, values = kept(runner)
    keys[:] = 0xFF
    values[:] = 0xFF


@st.composite
def networks(draw: st.DrawFn) -> ModelConfig:
    """The shapes that attention and matrices branch on, and any window."""
    base = CONFIGS[
        draw(st.sampled_from(["gpt2", "qwen3", "groups of 7", "odd widths", "odd heads", "llama"]))
    ]
    num_layers = draw(st.integers(1, 3))
    return replace(
        base,
        num_layers=num_layers,
        sliding_window=draw(st.none() | st.integers(1, 60) | st.integers(100, 150)),
        num_full_layers=draw(st.integers(0, num_layers)),
    )


def one_by_one(runner: NativeRunner, sequences: list[Tokens]) -> Rows:
    """Each sequence alone, a token a step, in blocks of its own; rows under the other sequence's id."""
    found: Rows = {}
    for sequence in sequences:
        blocks = list(range(-(-len(sequence) // BLOCK)))
        twin = Tokens(sequence.prompt, sequence.params, block_ids=blocks, embeds=sequence.embeds)
        logits, hidden = run(runner, [Batch([Chunk(twin, at, 1)]) for at in range(len(twin))])
        rows = hidden if sequence.embeds else logits
        found |= {(sequence.id, position): row for (_, position), row in rows.items()}
    return found


@settings(max_examples=60)
@given(
    network=networks(),
    lengths=st.lists(st.integers(1, 60) | st.sampled_from([150, 176]), min_size=1, max_size=8),
    embeds=st.integers(0, 8),
    most=st.integers(1, 40),
    formats=st.sampled_from([("none", False), ("none", True), ("int8", True), ("int4", False)]),
    num_threads=st.integers(1, 3),
    poisoned=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_mix_gives_the_bits_of_one_row_at_a_time(
    network: ModelConfig,
    lengths: list[int],
    embeds: int,
    most: int,
    formats: tuple[Quantization, bool],
    num_threads: int,
    poisoned: bool,
    seed: int,
) -> None:
    rng = random.Random(seed)
    config = engine_config(network, NUM_BLOCKS, max_num_batched_tokens=8 * 40)
    runner = native(network, config, quantization=formats[0], half_kv=formats[1], num_threads=num_threads)
    sequences = [
        Tokens(ids(rng, length), SCORED, block_ids=table, embeds=i == embeds)
        for i, (length, table) in enumerate(zip(lengths, tables(rng, lengths, NUM_BLOCKS), strict=True))
    ]
    expected = one_by_one(runner, sequences)
    if poisoned:
        poison(runner)
    logits, hidden = run(runner, mixed(rng, sequences, most))
    found = logits | hidden
    assert found.keys() == expected.keys()
    for key, row in found.items():
        assert np.isfinite(row).all()
        assert np.array_equal(row.view(np.int32), expected[key].view(np.int32)), key


@pytest.mark.parametrize("name", ["course", "qwen3", "window", "odd heads", "heads of 80"])
@pytest.mark.parametrize("half_kv", [False, True])
def test_what_an_earlier_owner_left_is_not_seen(name: str, half_kv: bool) -> None:
    """Every way to begin a block: at its start, in its middle, by a decoder, by a copy."""
    rng = random.Random(1)
    prompt = ids(rng, 75)

    def drive(runner: NativeRunner, cuts: list[int]) -> Rows:
        sequence = Tokens(prompt, SCORED, block_ids=[9, 4, 17, 2, 30])
        edges = [0, *cuts, len(prompt)]
        steps = [Batch([Chunk(sequence, a, b - a)]) for a, b in zip(edges, edges[1:], strict=False)]
        fork = Tokens(prompt[:40] + prompt[:20], SCORED, block_ids=[9, 4, 12, 13], num_scored=40)
        cut = next(i for i, step in enumerate(steps) if step.chunks[0].stop == 40)
        steps.insert(cut + 1, Batch([Chunk(fork, 40, 15)], copies=[(17, 12)]))
        found, _ = run(runner, steps)
        return {(int(key == fork.id), at): row for (key, at), row in found.items()}

    fresh = drive(native(name, half_kv=half_kv), [40])
    for cuts in ([40], [1, 40], [16, 40, 48], [7, 15, 17, 33, 40, 41, 64], list(range(1, 75))):
        runner = native(name, half_kv=half_kv)
        poison(runner)
        found = drive(runner, cuts)
        assert found.keys() == fresh.keys()
        assert all(np.array_equal(found[key].view(np.int32), fresh[key].view(np.int32)) for key in fresh)


def test_a_neighbour_that_overflows_spoils_nobody() -> None:
    """One whose activations are no numbers beside others, and its blocks after it."""
    network = replace(CONFIGS["course"], num_layers=2)
    runner, clean = native(network), native(network)
    for each in (runner, clean):
        kept(each)[0]._floats["positions.weight"][90:95] = (
            1e38  # position 90 and on: a sum of squares is infinite
        )
    rng = random.Random(2)
    lengths = [95, 40, 33]
    bad, *good = (
        Tokens(ids(rng, length), SCORED, block_ids=table)
        for length, table in zip(lengths, tables(rng, lengths), strict=True)
    )
    spoilt, _ = run(runner, [Batch([Chunk(bad, 0, 89)]), Batch([Chunk(bad, 89, 6)])])
    assert not np.isfinite(spoilt[bad.id, 93]).all(), "it does overflow"
    good[1].block_ids = bad.block_ids[::-1][:3]  # freed, and given to the next
    steps = [Batch([Chunk(bad, 93, 1), Chunk(good[0], 0, 40)], copies=[])]
    bad.block_ids = [40, 41, 42, 43, 44, 45]
    found, _ = run(runner, [*steps, Batch([Chunk(good[1], 0, 20)]), Batch([Chunk(good[1], 20, 13)])])
    expected, _ = run(clean, [Batch([Chunk(good[0], 0, 40)]), Batch([Chunk(good[1], 0, 33)])])
    for key, row in expected.items():
        assert np.array_equal(bits_of(found[key]), bits_of(row)), key


@pytest.mark.parametrize("part", ["keys", "values"])
def test_keys_and_values_beyond_float16_are_bounded(part: str) -> None:
    """Not infinite, which times a weight of zero is no number: an earlier row of the same step would see a
    later token.
    """
    network = replace(CONFIGS["course"], num_layers=3)  # a model that no other test has
    model, width = random_model(network), network.width
    rows = slice(width, 2 * width) if part == "keys" else slice(2 * width, 3 * width)
    prompt = ids(random.Random(0), 40)
    with torch.no_grad():
        model.blocks[0].get_parameter("attention.qkv.weight")[rows] *= 1.5e4
    runner = native(network, half_kv=True)

    def drive(sizes: list[int]) -> list[NDArray[np.float32]]:
        sequence = Tokens(prompt, SCORED, block_ids=[5, 1, 9])
        edges = np.cumsum([0, *sizes]).tolist()
        steps = [Batch([Chunk(sequence, a, n)]) for a, n in zip(edges, sizes, strict=False)]
        found, _ = run(runner, steps)
        return [row for _, row in sorted(found.items())]

    whole = np.stack(drive([40]))
    assert np.isfinite(whole).all()
    for sizes in ([1] * 40, [3, 37], [17, 23]):
        assert np.array_equal(np.stack(drive(sizes)).view(np.int32), whole.view(np.int32))


def test_a_silent_step_leaves_what_it_should() -> None:
    """Prompts whose logits nobody wants are computed all the same."""
    rng = random.Random(4)
    runner = native("llama")
    prompt = ids(rng, 50)
    quiet = SamplingParams(max_tokens=1)
    sequence = Tokens(prompt, quiet, block_ids=[3, 1, 7, 5])
    found, _ = run(runner, [Batch([Chunk(sequence, a, n)]) for a, n in ((0, 20), (20, 29), (49, 1))])
    whole = Tokens(prompt, quiet, block_ids=[10, 11, 12, 13])
    expected, _ = run(runner, [Batch([Chunk(whole, 0, 50)])])
    assert list(found) == [(sequence.id, 49)]
    assert np.array_equal(found[sequence.id, 49], expected[whole.id, 49])
    assert random_model("llama").config.num_positions > 50
