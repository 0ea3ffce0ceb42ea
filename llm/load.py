"""A checkpoint on disk → engines on devices → a TextModel. The only file that knows all of them.

>>> model = load_text_model(open_checkpoint("checkpoints/causette"), devices="cpu")
"""

from __future__ import annotations

import torch

from llm.checkpoint import Checkpoint, load_model
from llm.config import EngineConfig
from llm.engine import Emit, Engine
from llm.errors import DeviceError, OptionError
from llm.hardware import usable_cores
from llm.runner.eager import EagerRunner
from llm.text import TextModel

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def resolve_devices(devices: str) -> list[torch.device]:
    """The devices named, comma-separated, or for "auto" the best one here: mps, else cuda, else cpu.

    Raises:
        DeviceError: a name torch does not know, a device that is not there, or one named twice.
    """
    if devices == "auto":
        mps = torch.backends.mps.is_available()
        devices = "mps" if mps else "cuda" if torch.cuda.is_available() else "cpu"
    found = [_resolve_device(name.strip()) for name in devices.split(",")]
    if len(set(found)) < len(found):
        raise DeviceError(f"--device {devices} names a device twice")
    return found


def _resolve_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(
            f"--device {name!r} is not a device; use auto, cpu, mps, cuda or cuda:0,cuda:1"
        ) from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.device("mps")
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        return torch.device("cuda", device.index or 0)
    raise DeviceError(
        f"--device {name} is not available on this machine (CUDA devices: {torch.cuda.device_count()})"
    )


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The compute type named; "auto" is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        OptionError: an unknown name.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise OptionError(f"--dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def engine_config(
    checkpoint: Checkpoint,
    *,
    max_model_len: int | None = None,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 512,
    num_blocks: int | None = None,
) -> EngineConfig:
    """The engine's bounds for this checkpoint.

    Raises:
        OptionError: more positions than the model has, or bounds that contradict each other.
    """
    positions = checkpoint.config.num_positions
    if max_model_len is not None and max_model_len > positions:
        raise OptionError(f"--max-model-len {max_model_len} exceeds the model's {positions} positions")
    try:
        return EngineConfig(
            max_model_len=positions if max_model_len is None else max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            num_blocks=num_blocks,
        )
    except ValueError as error:
        raise OptionError(str(error)) from None


def load_text_model(
    checkpoint: Checkpoint,
    *,
    devices: str = "auto",
    dtype: str = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 512,
    num_blocks: int | None = None,
    threads: int | None = None,
    name: str | None = None,
) -> TextModel:
    """Load one copy of the weights per device and put an engine around each.

    Args:
        checkpoint: opened and proven.
        devices: "auto", one device, or several separated by commas.
        dtype: of weights, activations and KV cache.
        max_model_len, max_num_seqs, max_num_batched_tokens, num_blocks: see EngineConfig.
        threads: of torch on the CPU, for the whole process; every usable core when None.
        name: model id; the checkpoint's own when None.

    Raises:
        CheckpointError, DeviceError, OptionError: one line each.
    """
    config = engine_config(
        checkpoint,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_blocks=num_blocks,
    )
    places = [(device, resolve_dtype(dtype, device)) for device in resolve_devices(devices)]

    torch.set_num_threads(usable_cores() if threads is None else threads)

    def make_engines(emit: Emit) -> list[Engine]:
        vocab_size = min(checkpoint.config.vocab_size, checkpoint.tokenizer.vocab_size)
        return [
            Engine(
                EagerRunner(load_model(checkpoint, device, kind), config),
                config,
                vocab_size,
                emit,
                str(device),
            )
            for device, kind in places
        ]

    device, kind = places[0]
    return TextModel(
        name=name or checkpoint.name,
        source=checkpoint.path.name,
        fingerprint=f"fp_{checkpoint.digest[:10]}_{device.type}_{str(kind).removeprefix('torch.')}",
        tokenizer=checkpoint.tokenizer,
        template=checkpoint.template,
        defaults=checkpoint.defaults,
        max_model_len=config.max_model_len,
        make_engines=make_engines,
    )
