"""The native runner computes what the torch model computes: every switch, every way through a batch."""

from __future__ import annotations

import random
from typing import get_args

import numpy as np
import pytest
import torch

from llm.batch import Batch, Chunk
from llm.config import EngineConfig, SamplingParams
from llm.engine import Engine
from llm.generate import generate_cached, generate_naive
from llm.model import Decoder
from llm.runner.eager import EagerRunner
from llm.runner.native.runner import NativeRunner, kv_block_bytes
from llm.runner.native.weights import Quantization
from llm.sequence import FinishReason, TokenEvent
from llm.sequence import Sequence as Tokens
from tests.llm.native_models import (
    BLOCK,
    CONFIGS,
    SCORED,
    Rows,
    engine_config,
    ids,
    isas,
    mixed,
    native,
    random_model,
    run,
    tables,
)

pytestmark = pytest.mark.skipif(not isas(), reason="needs a CPU with AVX2 and a C compiler")


def oracle(name: str, config: EngineConfig | None = None) -> EagerRunner:
    """The torch model in float64, from the same float32 weights."""
    model = Decoder(CONFIGS[name])
    model.load_state_dict(random_model(name).state_dict())
    return EagerRunner(model.double().eval(), config or engine_config(model.config))


def assert_close(found: Rows, expected: Rows, share: float = 2e-5) -> None:
    """Within a share of the largest number; measured: 3e-6 at most."""
    assert found.keys() == expected.keys() and found
    for key, values in found.items():
        error = np.abs(values - expected[key]).max()
        assert error <= share * np.abs(expected[key]).max(), (key, error)


def sequences(rng: random.Random, lengths: list[int], vocab_size: int) -> list[Tokens]:
    """Every position scored; the last one embeds."""
    made = [
        Tokens(ids(rng, length, vocab_size), SCORED, block_ids=table)
        for length, table in zip(lengths, tables(rng, lengths), strict=True)
    ]
    made[-1].embeds = True
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_hidden_states_are_the_torch_models(name: str) -> None:
    """Prompts in stretches, decoders and embeddings beside each other; beyond an attention tile of 128."""
    rng = random.Random(name)
    lengths = [150, 1, 17, 40, 33]
    batches = list(mixed(rng, sequences(rng, lengths, CONFIGS[name].vocab_size), most=45))
    assert len({len(batch.chunks) for batch in batches}) > 1
    logits, hidden = run(native(name), batches)
    expected_logits, expected_hidden = run(oracle(name), batches)
    assert len(hidden) == lengths[-1] and len(logits) == sum(lengths) - len(lengths) + 4
    assert_close(logits, expected_logits)
    assert_close(hidden, expected_hidden)


@pytest.mark.parametrize("name", ["gpt2", "groups of 7", "window"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_one_token_at_a_time_too(name: str, num_threads: int) -> None:
    """Steps of decoders alone take another path through the kernel."""
    rng = random.Random(3)
    made = sequences(rng, [40, 40, 40], CONFIGS[name].vocab_size)
    batches = [Batch([Chunk(sequence, position, 1) for sequence in made]) for position in range(40)]
    found, hidden = run(native(name, num_threads=num_threads), batches)
    expected, expected_hidden = run(oracle(name), batches)
    assert_close(found, expected)
    assert_close(hidden, expected_hidden)


@pytest.mark.parametrize("half_kv", [False, True])
def test_a_fork_goes_on_from_a_copied_block(half_kv: bool) -> None:
    """Two replies to one prompt: they share its full block and each has the begun one for itself."""
    rng = random.Random(5)
    prompt = ids(rng, 21)
    leader = Tokens(prompt + ids(rng, 15), SCORED, block_ids=[7, 3, 11])
    fork = Tokens(prompt + ids(rng, 15), SCORED, block_ids=[7, 5, 2])
    batches = [Batch([Chunk(leader, 0, 21)])]
    batches += [Batch([Chunk(leader, 21, 1), Chunk(fork, 21, 1)], copies=[(3, 5)])]
    batches += [Batch([Chunk(leader, at, 1), Chunk(fork, at, 1)]) for at in range(22, 36)]
    runner = native("llama", half_kv=half_kv)
    found, _ = run(runner, batches)
    expected, _ = run(oracle("llama"), batches)
    assert_close(found, expected, 5e-3 if half_kv else 2e-5)
    alone = Tokens(fork.prompt, SCORED, block_ids=[40, 41, 42])
    whole, _ = run(native("llama", half_kv=half_kv), [Batch([Chunk(alone, 0, 36)])])
    assert all(np.array_equal(found[fork.id, p], whole[alone.id, p]) for p in range(21, 35))


def test_copies_go_in_order_through_all_layers() -> None:
    """A block that was copied away may be a target later in the same step."""
    rng = random.Random(6)
    first, second = (
        Tokens(ids(rng, 20), SCORED, block_ids=[0, 1]),
        Tokens(ids(rng, 20), SCORED, block_ids=[2, 3]),
    )
    runner = native("qwen3")
    run(runner, [Batch([Chunk(first, 0, 19), Chunk(second, 0, 19)])])
    first.block_ids, second.block_ids = [9, 8], [0, 1]
    moved = Batch(
        [Chunk(first, 19, 1), Chunk(second, 19, 1)], copies=[(0, 9), (1, 8), (2, 0), (3, 1), (9, 2)]
    )
    first.params = second.params = SamplingParams(max_tokens=1)
    found, _ = run(runner, [moved])
    fresh = [
        Tokens(s.prompt, first.params, block_ids=[30 + i, 40 + i]) for i, s in enumerate((first, second))
    ]
    expected, _ = run(native("qwen3"), [Batch([Chunk(s, 0, 20) for s in fresh])])
    for moved_sequence, whole in zip((first, second), fresh, strict=True):
        assert np.array_equal(found[moved_sequence.id, 19], expected[whole.id, 19])


@pytest.mark.parametrize("name", ["course", "gpt2", "qwen3", "window", "odd widths"])
@pytest.mark.parametrize("num_blocks", [11, 64])
def test_fast_equals_slow(name: str, num_blocks: int) -> None:
    """Law 1: the engine's greedy replies, with preemptions when blocks are few, are the two slow loops'."""
    rng = random.Random(1)
    model = random_model(name)
    config = engine_config(model.config, num_blocks, max_num_seqs=6, max_num_batched_tokens=24)
    events: list[TokenEvent] = []
    engine = Engine(native(name, config), config, model.config.vocab_size, events.extend)
    made = [
        Tokens(ids(rng, length, model.config.vocab_size), SamplingParams(max_tokens=30, temperature=0.0))
        for length in (1, 30, 50, 7, 100, 16)
    ]
    for sequence in made:
        engine.scheduler.add(sequence)
    while engine.step():
        engine.scheduler.check_integrity()
    assert (engine.scheduler.num_preemptions > 0) == (num_blocks == 11)
    for sequence in made:
        cached = generate_cached(model, sequence.prompt, sequence.params)
        assert (sequence.output, FinishReason.LENGTH) == cached
        if len(sequence.prompt) < 20:
            assert cached == generate_naive(model, sequence.prompt, sequence.params)
    assert len({token for sequence in made for token in sequence.output}) > 5, "replies that say something"


def test_a_batch_that_asks_for_nothing_has_no_rows() -> None:
    silent = Tokens(list(range(30)), SamplingParams(max_tokens=1), block_ids=[0, 1])
    out = native("course").run(Batch([Chunk(silent, 0, 20)]))
    assert out.logits.shape == (0, 37) and out.hidden.shape == (0, 32)


def test_ids_beyond_the_vocabulary_never_reach_the_kernel() -> None:
    runner = native("course")
    for bad in (37, -1):
        wrong = Tokens([1, bad], SCORED, block_ids=[0])
        with pytest.raises(IndexError):
            runner.run(Batch([Chunk(wrong, 0, 2)]))


def test_the_kv_cache_is_as_large_as_it_says() -> None:
    """Values are padded to 16 numbers a head, keys are not."""
    config = CONFIGS["odd widths"]
    assert kv_block_bytes(config, half_kv=False) == (2 * 1 * BLOCK * 10 * 4, 2 * 1 * BLOCK * 16 * 4)
    assert kv_block_bytes(config, half_kv=True) == (2 * 1 * BLOCK * 10 * 2, 2 * 1 * BLOCK * 16 * 2)


def test_what_is_served_is_counted() -> None:
    """weight_bytes and formats, by what each choice keeps: 32 inputs of q8_0 are 34 bytes, padding aside."""
    model = random_model("wide")
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2)
    by_choice = {}
    for choice in get_args(Quantization):
        runner = NativeRunner(
            model.config,
            ((name, p.detach()) for name, p in model.named_parameters()),
            engine_config(model.config),
            quantization=choice,
        )
        assert sum(runner.formats.values()) == weights
        by_choice[choice] = runner
    assert [sorted(runner.formats) for runner in by_choice.values()] == [
        ["f32"],
        ["q8_0"],
        ["q4_1", "q8_0"],
        ["q8_0"],
    ]
    bytes_of = {choice: runner.weight_bytes for choice, runner in by_choice.items()}
    assert bytes_of["int4"] < bytes_of["int8"] == bytes_of["auto"] < bytes_of["none"]


def test_torch_is_not_disturbed() -> None:
    """The kernel leaves the floating-point environment as torch wants it."""
    tiny = torch.tensor([1e-40])
    rng = random.Random(0)
    run(native("course", num_threads=2), mixed(rng, sequences(rng, [30, 30], 37), 10))
    assert (tiny * 1.0).item() == tiny.item() != 0.0
