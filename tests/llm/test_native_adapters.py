"""Adapters in the kernel: the merged model's logits, and no row's bits hang on its batch's adapters."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from llm.adapt.adapter import Adapter
from llm.adapt.lora import merge
from llm.adapt.targets import is_gpt2
from llm.batch import Batch, Chunk
from llm.config import AdapterRoom
from llm.runner.eager import EagerRunner
from llm.runner.native.build import built_library
from llm.runner.native.lowrank import AdapterTable, table_bytes
from llm.runner.native.pack import PackedMatrix
from llm.runner.native.weights import Quantization
from llm.sequence import Sequence
from tests.adapters import random_adapter
from tests.llm.native_models import (
    CONFIGS,
    SCORED,
    VOCAB,
    engine_config,
    ids,
    isas,
    mixed,
    native,
    random_model,
    run,
    same_bits,
    tables,
)

pytestmark = pytest.mark.skipif(not isas(), reason="no compiler")


def adapters_of(which: str) -> dict[str, Adapter]:
    """Ranks within a panel and beyond, on every matrix, on q, k and v, on one of them, on one layer."""
    config = CONFIGS[which]
    some = {
        "a": random_adapter(config, 1, rank=3, alpha=1.0),
        "b": random_adapter(config, 2, targets="qkv,up", rank=17, alpha=8.0),
        "c": random_adapter(config, 3, targets="*.0.*.out", rank=1, alpha=1.0),
    }
    if not is_gpt2(config):
        some["d"] = random_adapter(config, 4, targets="q_proj", rank=2, alpha=1.0)
    return some


def sequences(names: list[str], length: int) -> list[Sequence]:
    rng = random.Random(5)
    made = [Sequence(ids(rng, length, VOCAB), SCORED, adapter=name) for name in names]
    for sequence, blocks in zip(made, tables(rng, [length] * len(made)), strict=True):
        sequence.block_ids = blocks
    return made


@pytest.mark.parametrize("which", ["gpt2", "llama", "groups of 2", "odd gpt", "swiglu with bias"])
def test_logits_are_those_of_the_merged_model(which: str) -> None:
    adapters = adapters_of(which)
    runner = native(which, adapters=adapters)
    asked = sequences(["", *adapters], 20)
    got, _ = run(runner, [Batch([Chunk(s, 0, 20) for s in asked])])
    for sequence in asked:
        model = deepcopy(random_model(which))
        base = EagerRunner(deepcopy(model), replace(engine_config(model.config), block_size=16))
        if sequence.adapter:
            merge(model, adapters[sequence.adapter])
        eager = EagerRunner(model, replace(engine_config(model.config), block_size=16))
        expected, _ = run(eager, [Batch([Chunk(sequence, 0, 20)])])
        plain, _ = run(base, [Batch([Chunk(sequence, 0, 20)])])
        for key, row in expected.items():
            np.testing.assert_allclose(got[key], row, rtol=2e-3, atol=2e-3)
        differs = max(float(np.abs(plain[key] - row).max()) for key, row in expected.items())
        assert (differs > 0.05) == bool(sequence.adapter)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("which", ["gpt2", "groups of 2"])
def test_company_changes_no_bit(which: str, quantization: Quantization) -> None:
    """Any mix of adapters and stretches, on one thread and two, against each alone, token by token."""
    adapters = adapters_of(which)
    for isa in isas():
        runners = [
            native(
                which,
                quantization=quantization,
                half_kv=True,
                num_threads=threads,
                library=built_library(isa),
                adapters=adapters,
            )
            for threads in (1, 2)
        ]
        asked = sequences(["", "a", "b", "c", "a"], 23)
        alone = [run(runners[0], [Batch([Chunk(s, i, 1)]) for i in range(23)])[0] for s in asked]
        whole = {key: row for rows in alone for key, row in rows.items()}
        rng = random.Random(9)
        for runner in runners:
            assert same_bits(run(runner, mixed(rng, asked, 9))[0], whole)


def test_adapters_come_and_go_between_steps() -> None:
    """In places that others had; what is left of them changes no bit, and neither does a removed one."""
    given = adapters_of("llama")
    runner = native("llama", adapters=given)
    names = ["", *given]
    asked = sequences(names, 20)
    expected = [run(runner, [Batch([Chunk(s, 0, 20)])])[0] for s in asked]
    for name in ("b", "a"):
        runner.shelf.remove(name)
        runner.shelf.remove(name)  # harmless
    with pytest.raises(KeyError):
        runner.run(Batch([Chunk(asked[1], 0, 20)]))
    for i in (0, 3, 4):
        assert same_bits(run(runner, [Batch([Chunk(asked[i], 0, 20)])])[0], expected[i]), names[i]
    for name in ("b", "a"):  # in each other's places
        runner.shelf.prepare(name, given[name])()
    assert sorted(runner.shelf.index.values()) == [0, 1, 2, 3] and runner.shelf.index["b"] != 1
    for sequence, rows in zip(asked, expected, strict=True):
        assert same_bits(run(runner, [Batch([Chunk(sequence, 0, 20)])])[0], rows)


def test_a_matrix_takes_what_the_plan_says() -> None:
    for which in ("gpt2", "llama", "odd widths"):
        config = CONFIGS[which]
        adapter = random_adapter(config, rank=5)
        table = AdapterTable(config, AdapterRoom(1, 5))
        table.prepare("a", adapter)()
        kept = (one.panels if isinstance(one, PackedMatrix) else one for one in table._keep["a"])
        planned = table_bytes(config, [(part.target, part.rank) for part in adapter.parts])
        assert sum(array.nbytes for array in kept) == planned


def test_the_base_is_what_it_is_without_adapters() -> None:
    (sequence,) = sequences([""], 20)
    batch = [Batch([Chunk(sequence, 0, 20)])]
    expected, _ = run(native("llama", quantization="int8"), batch)
    runner = native("llama", quantization="int8", adapters=adapters_of("llama"))
    assert same_bits(run(runner, batch)[0], expected)
    (other,) = sequences(["a"], 20)
    both = [Batch([Chunk(sequence, 0, 20), Chunk(other, 0, 20)])]
    other.block_ids = [40, 41]
    rows, _ = run(runner, both)
    assert same_bits({key: row for key, row in rows.items() if key[0] == sequence.id}, expected)
