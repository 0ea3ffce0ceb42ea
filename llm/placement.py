"""Where a model goes: devices, what computes there and in which type, and how much memory it may plan with.

    >>> resolve_places(checkpoint, "cpu")
    [Place(device=device(type='cpu'), dtype=torch.float32, library=PosixPath('…/avx512-….so'), …)]

On a CPU the native runner is taken where its library can be had, else the eager one, and the log says why.
Refuses to know engines.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llm.adapt.adapter import Target
from llm.checkpoint import Checkpoint
from llm.checkpoint.record import expected_shapes
from llm.config import BLOCK_SIZE, ModelConfig
from llm.errors import DeviceError, OptionError
from llm.hardware import free_memory
from llm.runner.native.build import NativeUnavailable, built_library
from llm.runner.native.lowrank import table_bytes
from llm.runner.native.runner import kv_block_bytes
from llm.runner.native.weights import Quantization

log = logging.getLogger(__name__)

RunnerName = Literal["auto", "native", "eager"]
KVType = Literal["auto", "float16", "float32"]

KV_SHARE = 0.8
"""Of the free memory, what weights and KV cache may take: the rest is for activations and neighbours."""
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
_NATIVE_BYTES = {"none": 4.0, "int8": 34 / 32, "int4": 34 / 32, "auto": 34 / 32}
"""Of a weight, at most: one of 4 bits takes less."""


@dataclass(frozen=True, slots=True)
class Place:
    """One copy of the weights, and what computes with it.

    Attributes:
        device: where.
        dtype: of the eager runner's weights, activations and KV cache; float32 with the native one.
        library: of the native runner; None for the eager one.
        quantization: of the native runner's matrices; "none" with the eager one.
        half_kv: the native runner's keys and values in float16, else float32.
    """

    device: torch.device
    dtype: torch.dtype
    library: Path | None = None
    quantization: Quantization = "none"
    half_kv: bool = False

    @property
    def native(self) -> bool:
        """Whether the native runner computes."""
        return self.library is not None

    @property
    def label(self) -> str:
        """For a fingerprint: what of the place can change an answer."""
        kind = str(self.dtype).removeprefix("torch.")
        if not self.native:
            return f"{self.device.type}_{kind}"
        weights = {"none": kind, "auto": "stored"}.get(self.quantization, self.quantization)
        return f"native_{weights}_{'kv16' if self.half_kv else 'kv32'}"


def resolve_places(
    checkpoint: Checkpoint,
    devices: str = "auto",
    dtype: str = "auto",
    *,
    runner: RunnerName = "auto",
    quantization: Quantization = "auto",
    kv_cache_dtype: KVType = "auto",
    isa: str | None = None,
) -> list[Place]:
    """A place for each device named.

    Args:
        isa: of the native runner's library; None for the best of this CPU.

    Raises:
        DeviceError: as resolve_devices.
        OptionError: what was asked for cannot be had on a device.
    """
    asked = _Asked(dtype, runner, quantization, kv_cache_dtype, isa)
    return [_place(checkpoint, device, asked) for device in resolve_devices(devices)]


@dataclass(frozen=True, slots=True)
class _Asked:
    dtype: str
    runner: RunnerName
    quantization: Quantization
    kv_cache_dtype: KVType
    isa: str | None

    @property
    def needs_native(self) -> str:
        """The option that only the native runner can honour, or ""."""
        if self.runner == "native":
            return "--runner native"
        return f"--quantization {self.quantization}" if self.quantization in ("int8", "int4") else ""


def _place(checkpoint: Checkpoint, device: torch.device, asked: _Asked) -> Place:
    kind = resolve_dtype(asked.dtype, device, checkpoint)
    library, why_not = _library(device, kind, asked)
    if library is not None:
        auto = "float32" if asked.quantization == "none" else "float16"
        kv = auto if asked.kv_cache_dtype == "auto" else asked.kv_cache_dtype
        return Place(device, kind, library, asked.quantization, kv == "float16")
    if asked.needs_native:
        raise OptionError(f"{asked.needs_native}: {why_not}")
    name = str(kind).removeprefix("torch.")
    if asked.kv_cache_dtype not in ("auto", name):
        raise OptionError(
            f"--kv-cache-dtype {asked.kv_cache_dtype}: the eager runner keeps keys and values in {name}, and "
            f"{why_not}"
        )
    return Place(device, kind)


def _library(device: torch.device, dtype: torch.dtype, asked: _Asked) -> tuple[Path | None, str]:
    """The native runner's library, or None and why in one line; one that cannot be had is a warning, too."""
    if asked.runner == "eager":
        return None, "--runner is eager"
    if device.type != "cpu":
        return None, f"the native runner computes on a CPU, not on {device}"
    if dtype is not torch.float32:
        return None, f"the native runner computes in float32, not in --dtype {asked.dtype}"
    try:
        return built_library(asked.isa), ""
    except NativeUnavailable as error:
        log.warning("no native runner: %s; the eager runner serves, in float32", error)
        return None, str(error)


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


def kv_bytes_per_token(config: ModelConfig, place: Place) -> float:
    """Bytes that one token keeps in the KV cache, all layers together."""
    if place.native:
        return sum(kv_block_bytes(config, place.half_kv)) / BLOCK_SIZE
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * place.dtype.itemsize


def adapter_bytes(config: ModelConfig, place: Place, parts: Iterable[tuple[Target, int]]) -> int:
    """Bytes of an adapter's matrices: its targets, each with its rank."""
    if place.native:
        return table_bytes(config, parts)
    return place.dtype.itemsize * sum(rank * (target.width + target.num_rows) for target, rank in parts)


def kv_room(
    checkpoint: Checkpoint,
    places: Sequence[Place],
    share: float,
    adapters: Sequence[Sequence[tuple[Target, int]]] = (),
) -> int:
    """Tokens whose keys and values fit beside the weights: the least over the devices.

    Args:
        share: of the memory that is free there now, for weights and cache together.
        adapters: there are, or may be: the targets of each, with their ranks.
    """
    num_parameters = sum(math.prod(shape) for shape in expected_shapes(checkpoint.config).values())
    on_cpu = sum(place.device.type != "cuda" for place in places)  # these share one memory
    rooms = []
    for place in places:
        free = share * free_memory(place.device) / (1 if place.device.type == "cuda" else on_cpu)
        each = _NATIVE_BYTES[place.quantization] if place.native else place.dtype.itemsize
        beside = sum(adapter_bytes(checkpoint.config, place, parts) for parts in adapters)
        if beside:
            log.info("%s: %.0f MB are kept for %d adapters", place.device, beside / 1e6, len(adapters))
        left = free - num_parameters * each - beside
        rooms.append(left / kv_bytes_per_token(checkpoint.config, place))
    return int(max(min(rooms), 0)) // BLOCK_SIZE * BLOCK_SIZE
