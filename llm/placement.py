"""Where a model goes: devices, the type it computes in, and how much memory it may plan with.

    >>> resolve_devices("cuda:0,cuda:1")

Refuses to know engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llm.checkpoint import Checkpoint
from llm.checkpoint.record import expected_shapes
from llm.config import BLOCK_SIZE, ModelConfig
from llm.errors import DeviceError, OptionError
from llm.hardware import free_memory

KV_SHARE = 0.8
"""Of the free memory, what weights and KV cache may take: the rest is for activations and neighbours."""
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


def resolve_dtype(dtype: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The compute type named. "auto" is float32 on a CPU; on an accelerator it is the half type in which most
    weights are stored, if the device computes with it, else bfloat16 on CUDA where that is native, float16 on
    older CUDA devices, and float32 on others.

    Raises:
        OptionError: an unknown name.
    """
    if dtype not in ("auto", *_DTYPES):
        raise OptionError(f"--dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    stored = next(iter(checkpoint.stored), "")
    if stored == "float16" or (stored == "bfloat16" and native):
        return _DTYPES[stored]
    if device.type == "cuda":
        return torch.bfloat16 if native else torch.float16
    return torch.float32


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token keeps in the KV cache, all layers together."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def kv_room(checkpoint: Checkpoint, places: Sequence[tuple[torch.device, torch.dtype]], share: float) -> int:
    """Tokens whose keys and values fit beside the weights: the least over the devices.

    Args:
        share: of the memory that is free there now, for weights and cache together.
    """
    num_parameters = sum(math.prod(shape) for shape in expected_shapes(checkpoint.config).values())
    on_cpu = sum(device.type != "cuda" for device, _ in places)  # these share one memory
    rooms = []
    for device, dtype in places:
        free = share * free_memory(device) / (1 if device.type == "cuda" else on_cpu)
        rooms.append((free - num_parameters * dtype.itemsize) / kv_bytes_per_token(checkpoint.config, dtype))
    return int(max(min(rooms), 0)) // BLOCK_SIZE * BLOCK_SIZE
