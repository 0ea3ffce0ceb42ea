"""Floors of a step: what must be read and multiplied is counted, the nearer limit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm.bench.ceiling import (
    Ceilings,
    Machine,
    Work,
    block_weights,
    head_weights,
    machine_of,
    multiply_rate,
)
from llm.bench.figures import Readings, decode_rows, engine_rows, prefill_rows, tables
from llm.bench.streams import Run
from llm.config import EngineConfig
from llm.runner.eager import EagerRunner
from tests.fakes import TINY, tiny_model

MACHINE = Machine("scripted", 1000, 2, read_rate=lambda: 1e3, op_rate=lambda: 1e9)


class ScriptedKernel:
    """Says what the machine does, and remembers what it was asked to read."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read_rate(self, num_bytes: int) -> float:
        self.asked.append(num_bytes)
        return 5e9

    def dot_rate(self) -> float:
        return 7e11


class ScriptedNative:
    """A native runner's face, without a kernel behind it."""

    device = torch.device("cpu")
    isa, num_threads, read_bytes = "avx2", 3, 12345

    def __init__(self, formats: dict[str, int], half_kv: bool = True) -> None:
        self.kernel = ScriptedKernel()
        self.formats, self.half_kv = formats, half_kv

    def run(self, batch: Any) -> Any:
        raise AssertionError("only looked at")


def test_the_nearer_limit_is_the_floor() -> None:
    ceilings = Ceilings(read_rate=10.0, op_rate=100.0)
    assert ceilings.floor(Work(num_bytes=20, num_ops=100)) == (2.0, "memory")
    assert ceilings.floor(Work(num_bytes=20, num_ops=300)) == (3.0, "compute")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tied_head": False, "activation": "swiglu", "norm": "rms", "norm_bias": False},
        {"num_heads": 4, "num_kv_heads": 2, "head_size": 12, "attention_bias": True, "rope_theta": 1e4},
    ],
)
def test_matrices_are_counted_as_the_model_has_them(overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    blocks = sum(
        p.numel() for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2
    )
    assert block_weights(model.config) == blocks
    assert head_weights(model.config) == model.head_weight.numel()


def test_a_decode_step_reads_the_weights_once_and_the_context_of_each_stream() -> None:
    work = MACHINE.decode(TINY, num_streams=3, context=10)
    per_token = 2 * TINY.num_layers * TINY.num_kv_heads * TINY.head_dim * 2
    assert work.num_bytes == 1000 + 3 * 10 * per_token
    assert work.num_ops == 2 * 3 * (block_weights(TINY) + head_weights(TINY))


def test_what_a_window_hides_is_not_read() -> None:
    config = tiny_model(sliding_window=4, num_full_layers=1).config
    one_layer = 2 * config.num_kv_heads * config.head_dim * 2
    assert MACHINE.decode(config, 1, 10).num_bytes == 1000 + (10 + 4) * one_layer
    assert MACHINE.decode(config, 1, 3).num_bytes == 1000 + (3 + 3) * one_layer


def test_a_prompt_asks_the_head_once() -> None:
    work = MACHINE.prefill(TINY, 10)
    assert work.num_ops == 2 * (10 * block_weights(TINY) + head_weights(TINY))
    assert work.num_bytes == MACHINE.decode(TINY, 1, 10).num_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied_head", [True, False])
def test_an_eager_runner_reads_all_but_rows_of_tables(tied_head: bool, dtype: torch.dtype) -> None:
    model = tiny_model(tied_head=tied_head, dtype=dtype)
    machine = machine_of(EagerRunner(model, EngineConfig(max_model_len=64)))
    rows = 64 if tied_head else 64 + 257  # learned positions; an embedding that is not the head as well
    assert machine.weight_bytes == (model.num_parameters() - rows * 32) * dtype.itemsize
    assert machine.kv_item_bytes == dtype.itemsize
    assert machine.name.startswith(f"eager, {str(dtype).removeprefix('torch.')}, ")


def test_a_native_runner_is_asked_itself() -> None:
    runner = ScriptedNative({"f32": 1, "q8_0": 5, "q4_1": 9})
    machine = machine_of(runner)
    assert machine.name == "native, avx2, q4_1, q8_0, f32, KV float16, 3 threads"
    assert (machine.weight_bytes, machine.kv_item_bytes) == (12345, 2)
    assert machine.measure() == Ceilings(5e9, 7e11)
    assert runner.kernel.asked == [12345], "as much as a step reads: what a cache holds of it, it holds there"


def test_floats_are_not_measured_by_whole_numbers() -> None:
    before = torch.get_num_threads()
    machine = machine_of(ScriptedNative({"f32": 5}, half_kv=False))
    assert machine.kv_item_bytes == 4
    assert machine.op_rate() not in (0.0, 7e11)
    assert torch.get_num_threads() == before, "torch has the threads it had"


def test_torch_multiplies_at_some_speed() -> None:
    assert multiply_rate(torch.device("cpu"), torch.float32, repeats=1) > 0


def readings() -> Readings:
    """Three rounds, one of them disturbed."""
    found = Readings()
    for factor in (1.0, 100.0, 1.0):
        found.limits.append(Ceilings(1e3 * factor, 1e12))
        found.runs[2].append(Run([[factor, 2 * factor]] * 2, 4 * factor, 3 * factor, 2))
        found.decode[2, 10].append(5.0 * factor)
        found.prefill[10].append(10.0 * factor)
    return found


def test_figures_are_medians_beside_their_floors() -> None:
    floor = MACHINE.decode(TINY, 2, 10).num_bytes / 1e3
    (decode,) = decode_rows(readings(), MACHINE, TINY)
    assert decode == {
        "streams": 2,
        "context": 10,
        "ms": 5000.0,
        "floor_ms": pytest.approx(floor * 1e3),
        "tokens_per_s": 0.4,
        "share": pytest.approx(floor / 5, abs=1e-4),
        "bound": "memory",
    }
    (prefill,) = prefill_rows(readings(), MACHINE, TINY)
    alone = MACHINE.prefill(TINY, 10).num_bytes / 1e3
    assert (prefill["tokens"], prefill["tokens_per_s"], prefill["bound"]) == (10, 1.0, "memory")
    assert prefill["share"] == pytest.approx(alone / 10, abs=1e-4)
    engine = engine_rows(readings(), MACHINE, TINY, 10)["2"]
    assert (engine["tokens_per_s"], engine["host_ms"], engine["host_share"]) == (2.0, 500.0, 0.25)
    assert engine["ceiling_tokens_per_s"] == round(2 / floor, 1)
    assert engine["share"] == pytest.approx(2.0 * floor / 2, abs=1e-4)


def test_tables_name_every_level() -> None:
    report = {
        "hardware": "a machine",
        "read_gb_per_s": 1.0,
        "giga_ops_per_s": 2.0,
        "streams": engine_rows(readings(), MACHINE, TINY, 10),
        "decode": decode_rows(readings(), MACHINE, TINY),
        "fitted": None,
        "prefill": prefill_rows(readings(), MACHINE, TINY),
        "left_out": ["64 streams: no room"],
    }
    lines = list(tables(report))
    assert lines[0] == "hardware   a machine; 1.0 GB/s read, 2 GOP/s multiplied"
    assert lines[3].split()[:5] == ["2", "1000.0", "1000.00", "2.0", "1.00"]
    assert lines[6].split()[:3] == ["2", "10", "5000.00"]
    assert lines[9].split()[:2] == ["10", "1"]
    assert lines[-1] == "left out   64 streams: no room"
    assert all(line.endswith("memory") for line in (lines[3], lines[6], lines[9]))
