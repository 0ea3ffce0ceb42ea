"""From a folder to a running TextModel: devices, dtypes, bounds, and one clear line when they do not fit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from llm.checkpoint import open_checkpoint
from llm.config import SamplingParams
from llm.errors import DeviceError, OptionError
from llm.generate import generate_cached
from llm.load import engine_config, load_text_model, resolve_devices, resolve_dtype
from llm.runner.eager import EagerRunner
from tests.fakes import tiny_model


def test_a_folder_is_served_with_its_own_bounds(tiny_folder: Path) -> None:
    async def reply() -> str:
        model = load_text_model(open_checkpoint(tiny_folder), devices="cpu", name="mine")
        assert (model.name, model.max_model_len) == ("mine", 256)
        model.start()
        text = [
            d.text
            async for d in model.stream([1, 2], SamplingParams(max_tokens=12, temperature=0.0), chat=False)
        ]
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
        return [engine.num_tokens for engine in model.engines]

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
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    with pytest.raises(OptionError, match="'int3' is not one of auto, float32"):
        resolve_dtype("int3", torch.device("cpu"))


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
