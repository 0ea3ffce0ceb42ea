"""From a folder to a running TextModel: devices, dtypes, bounds, and one clear line when they do not fit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint import open_checkpoint, save_folder
from llm.config import COURSE_DEFAULTS, AdapterRoom, SamplingParams
from llm.errors import DeviceError, OptionError
from llm.generate import generate_cached
from llm.load import engine_config, load_text_model
from llm.placement import (
    KV_SHARE,
    Place,
    adapter_bytes,
    kv_bytes_per_token,
    kv_room,
    resolve_devices,
    resolve_dtype,
    resolve_places,
)
from llm.runner.eager import EagerRunner
from llm.runner.native.build import NativeUnavailable
from llm.tokenizer import ByteTokenizer
from tests.adapters import random_adapter
from tests.fakes import one_by_one, tiny_model


def test_a_folder_is_served_with_its_own_bounds(tiny_folder: Path) -> None:
    async def reply() -> str:
        model = load_text_model(open_checkpoint(tiny_folder), devices="cpu", quantization="none", name="mine")
        assert (model.name, model.max_model_len) == ("mine", 256)
        model.start()
        params = SamplingParams(max_tokens=12, temperature=0.0)
        text = [d.text async for d in one_by_one(model.stream([1, 2], params, strip=False))]
        await model.close()
        return "".join(text)

    tokens, _ = generate_cached(
        tiny_model(num_positions=256), [1, 2], SamplingParams(max_tokens=12, temperature=0.0)
    )
    assert asyncio.run(reply()) == bytes(t for t in tokens if t < 256).decode(errors="replace")


def test_every_device_gets_a_copy_and_requests_go_to_the_least_loaded(tiny_folder: Path) -> None:
    """Two engines on one CPU stand in for two GPUs: the choice between them is the same code."""
    from tests.fakes import tiny_text_model

    async def spread() -> list[int]:
        model = tiny_text_model()
        model.engines += tiny_text_model().engines
        model.engines[1].emit = model._deliver
        model.start()
        streams = [model.stream([i], SamplingParams(max_tokens=60, temperature=0.0)) for i in range(4)]
        first = [asyncio.create_task(anext(s)) for s in streams]
        await asyncio.gather(*first)
        for stream in streams:
            await stream.aclose()
        await model.close()
        return [engine.stats().num_tokens for engine in model.engines]

    assert min(asyncio.run(spread())) > 0


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("warp", "'warp' is not a device"),
        ("cpu,cpu", "names a device twice"),
        ("cuda:99", "cuda:99 is not available on this machine"),
        ("", "'' is not a device"),
    ],
)
def test_a_device_that_is_not_there(devices: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        resolve_devices(devices)


def test_auto_takes_what_is_there() -> None:
    best = "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
    assert [d.type for d in resolve_devices("auto")] == [best]


def test_auto_dtype_is_what_is_stored_where_the_device_computes_with_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    opened = open_checkpoint(tiny_folder)
    half, brain, full = (replace(opened, stored={name: 9}) for name in ("float16", "bfloat16", "float32"))
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n)
        assert {resolve_dtype("auto", cpu, c) for c in (half, brain, full)} == {torch.float32}
        assert resolve_dtype("auto", cuda, half) is torch.float16
        expected = torch.bfloat16 if native else torch.float16
        assert [resolve_dtype("auto", cuda, c) for c in (brain, full)] == [expected, expected]
    assert [resolve_dtype("auto", mps, c) for c in (half, brain)] == [torch.float16, torch.float32]
    assert resolve_dtype("bfloat16", cpu, half) is torch.bfloat16
    with pytest.raises(OptionError, match="'int3' is not one of auto, float32"):
        resolve_dtype("int3", cpu, half)


def test_little_memory_lowers_the_pool_then_the_context(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(tiny_folder)
    assert engine_config(checkpoint, kv_room=16 * 256).num_blocks is None, "all of it fits"
    fewer = engine_config(checkpoint, kv_room=16 * 256 - 16)
    assert (fewer.max_model_len, fewer.num_blocks) == (256, 255)
    assert not caplog.records
    short = engine_config(checkpoint, kv_room=96)
    assert (short.max_model_len, short.num_blocks) == (96, 6)
    assert "memory holds 96 tokens, the model has 256 positions" in caplog.text
    assert engine_config(checkpoint, kv_room=96, num_blocks=16).max_model_len == 256, "asked for"
    with pytest.raises(OptionError, match="memory holds 96 tokens .* --max-model-len 256$"):
        engine_config(checkpoint, kv_room=96, max_model_len=256)
    for room in (0, 1):
        with pytest.raises(OptionError, match=f"memory holds {room} tokens .* too few to serve it$"):
            engine_config(checkpoint, kv_room=room)


def test_room_is_what_the_weights_leave(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_folder)
    place = Place(torch.device("cpu"), torch.float32)
    weights = 4 * tiny_model(num_positions=256).num_parameters()
    per_token = kv_bytes_per_token(checkpoint.config, place)
    monkeypatch.setattr("llm.placement.free_memory", lambda device: 2 * (weights + 160 * per_token))
    assert kv_room(checkpoint, [place], 0.5) == 160
    monkeypatch.undo()
    one, half = kv_room(checkpoint, [place], 0.5), kv_room(checkpoint, [place], 0.25)
    assert one % 16 == 0 and half == pytest.approx(one / 2, rel=0.1)
    assert kv_room(checkpoint, [place, place], 0.5) == pytest.approx(half, rel=0.1), "two copies, one memory"
    assert kv_room(checkpoint, [place], 1e-9) == 0


def test_adapters_take_their_part_of_the_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_folder)
    place = Place(torch.device("cpu"), torch.float32)
    weights = 4 * tiny_model(num_positions=256).num_parameters()
    adapter = random_adapter(checkpoint.config, rank=4)
    parts = [(part.target, part.rank) for part in adapter.parts]
    assert adapter_bytes(checkpoint.config, place, parts) == 4 * adapter.num_parameters()
    left = 320 * kv_bytes_per_token(checkpoint.config, place)
    free = weights + left + 3 * 4 * adapter.num_parameters()
    monkeypatch.setattr("llm.placement.free_memory", lambda device: free)
    assert kv_room(checkpoint, [place], 1.0, [parts] * 3) == 320
    with pytest.raises(OptionError, match="--max-loras 1: fewer than the 2"):
        load_text_model(checkpoint, adapters={"a": adapter, "b": adapter}, adapter_room=AdapterRoom(1, 4))
    with pytest.raises(OptionError, match="--max-lora-rank 3: one of --adapter has rank 4"):
        load_text_model(checkpoint, adapters={"a": adapter}, adapter_room=AdapterRoom(1, 3))
    room = AdapterRoom(3, 4)
    model = load_text_model(
        checkpoint,
        devices="cpu",
        runner="eager",
        memory_share=1 / KV_SHARE,
        adapters={"a": adapter},
        adapter_room=room,
    )
    assert model.engines[0].config.total_blocks == 20, "two that may come are counted"


def test_a_native_token_takes_half_of_what_an_eager_one_takes(tiny_folder: Path) -> None:
    config = open_checkpoint(tiny_folder).config  # heads of 16
    eager, half = (
        Place(torch.device("cpu"), torch.float32, library, "auto", half)
        for library, half in ((None, False), (Path("any.so"), True))
    )
    assert kv_bytes_per_token(config, eager) == 2 * kv_bytes_per_token(config, half)


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "native_stored_kv16"),
        ({"quantization": "int8"}, "native_int8_kv16"),
        ({"quantization": "none"}, "native_float32_kv32"),
        ({"quantization": "none", "kv_cache_dtype": "float16"}, "native_float32_kv16"),
        ({"kv_cache_dtype": "float32"}, "native_stored_kv32"),
        ({"runner": "eager"}, "cpu_float32"),
        ({"runner": "eager", "kv_cache_dtype": "float32"}, "cpu_float32"),
        ({"dtype": "bfloat16"}, "cpu_bfloat16"),
    ],
)
def test_what_computes_on_a_cpu(tiny_folder: Path, options: dict[str, Any], label: str) -> None:
    (place,) = resolve_places(open_checkpoint(tiny_folder), "cpu", **options)
    assert place.label == label


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "eager", "quantization": "int8"}, "--quantization int8: --runner is eager"),
        ({"runner": "native", "dtype": "float64"}, "--runner native: .* float32, not in --dtype float64"),
        ({"quantization": "int4", "dtype": "float16"}, "--quantization int4: .* not in --dtype float16"),
        ({"runner": "eager", "kv_cache_dtype": "float16"}, "--kv-cache-dtype float16: .* values in float32"),
    ],
)
def test_what_cannot_compute_so(tiny_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve_places(open_checkpoint(tiny_folder), "cpu", **options)


def test_without_a_library_the_eager_runner_serves_and_a_line_says_why(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(isa: str | None = None) -> Path:
        raise NativeUnavailable("no C compiler")

    monkeypatch.setattr("llm.placement.built_library", refuse)
    checkpoint = open_checkpoint(tiny_folder)
    model = load_text_model(checkpoint, devices="cpu")
    assert isinstance(model.engines[0].runner, EagerRunner)
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["no native runner: no C compiler; the eager runner serves, in float32"]
    for asked in ({"runner": "native"}, {"quantization": "int8"}):
        with pytest.raises(OptionError, match="no C compiler"):
            load_text_model(checkpoint, devices="cpu", **asked)


def test_the_native_runner_leaves_torch_one_thread(tiny_folder: Path) -> None:
    for runner, expected in (("eager", 2), ("native", 1)):
        load_text_model(open_checkpoint(tiny_folder), devices="cpu", threads=2, runner=runner)
        assert torch.get_num_threads() == expected


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"max_model_len": 257}, "--max-model-len 257 exceeds the model's 256 positions"),
        ({"max_model_len": 1}, "max_model_len must be at least 2"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        (
            {"max_num_seqs": 8, "max_num_batched_tokens": 4},
            "max_num_batched_tokens 4 is below max_num_seqs 8",
        ),
        ({"num_blocks": 3}, "num_blocks 3 is below 16"),
    ],
)
def test_bounds_that_cannot_be(tiny_folder: Path, bounds: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        engine_config(open_checkpoint(tiny_folder), **bounds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_serves_in_bfloat16(tiny_folder: Path) -> None:
    model = load_text_model(open_checkpoint(tiny_folder), devices="cuda")
    runner = model.engines[0].runner
    assert isinstance(runner, EagerRunner)
    assert (runner.device.type, runner.kv.pool.dtype) == ("cuda", torch.bfloat16)


def test_a_rotary_table_is_as_long_as_sequences_can_get(tmp_path: Path) -> None:
    shape = {"norm": "rms", "activation": "swiglu", "rope_theta": 10000.0, "num_positions": 1 << 24}
    for name, model in (("rotary", tiny_model(**shape)), ("learned", tiny_model())):
        save_folder(tmp_path / name, model, ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "")
        checkpoint = open_checkpoint(tmp_path / name)
        loaded = load_text_model(checkpoint, devices="cpu", runner="eager", max_model_len=32)
        runner = loaded.engines[0].runner
        assert isinstance(runner, EagerRunner)
        assert runner.model.config.num_positions == (32 if name == "rotary" else 64)
