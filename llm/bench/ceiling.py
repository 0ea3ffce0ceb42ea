"""What the hardware would allow: bytes that a step must read, operations it must do, and how fast it can.

    >>> machine = machine_of(runner)
    >>> seconds, bound = machine.measure().floor(Work(num_bytes=134e6, num_ops=270e6))

A floor is a lower bound of a step's time: whatever is clever, weights and cache are read once, and each row
is multiplied with every matrix. Attention's own arithmetic, norms and tables are left out. Refuses to know
how batches are made and timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch

from llm.config import ModelConfig
from llm.hardware import read_bandwidth
from llm.model import Decoder
from llm.runner import Runner
from llm.runner.eager import EagerRunner

SIDE = 1024
"""Of the square matrices whose product says how fast torch multiplies."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step cannot do without: bytes to read, operations (2 per weight and row) in matrices."""

    num_bytes: float
    num_ops: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured limits: bytes read and operations done per second."""

    read_rate: float
    op_rate: float

    def floor(self, work: Work) -> tuple[float, str]:
        """Seconds below which the work cannot be, and what says so: "memory" or "compute"."""
        return max((work.num_bytes / self.read_rate, "memory"), (work.num_ops / self.op_rate, "compute"))


@dataclass(frozen=True, slots=True)
class Machine:
    """The limits of one runner, and how they are measured.

    Attributes:
        name: of the runner, for people.
        weight_bytes: what every step reads of the weights: all matrices, an untied embedding's rows not.
        kv_item_bytes: of one number in the KV cache.
        read_rate, op_rate: measure the two limits, with the runner's own threads. As many bytes are read as a
            step reads: what a cache keeps of the weights, it keeps of these.
    """

    name: str
    weight_bytes: int
    kv_item_bytes: int
    read_rate: Callable[[], float]
    op_rate: Callable[[], float]

    def measure(self) -> Ceilings:
        """Both limits, now: on a shared machine they change by the minute."""
        return Ceilings(self.read_rate(), self.op_rate())

    def decode(self, config: ModelConfig, num_streams: int, context: int) -> Work:
        """A step of one row per stream, each of which sees `context` tokens."""
        num_bytes = self.weight_bytes + num_streams * self._kv_bytes(config, context)
        return Work(num_bytes, 2 * num_streams * (block_weights(config) + head_weights(config)))

    def prefill(self, config: ModelConfig, num_tokens: int) -> Work:
        """One prompt, as if in a single step; the head is asked for its last row."""
        num_ops = 2 * (num_tokens * block_weights(config) + head_weights(config))
        return Work(self.weight_bytes + self._kv_bytes(config, num_tokens), num_ops)

    def _kv_bytes(self, config: ModelConfig, context: int) -> int:
        """Keys and values that one row reads, all layers; a sliding window hides the others."""
        windows = (config.window(layer) for layer in range(config.num_layers))
        tokens = sum(context if window is None else min(context, window) for window in windows)
        return tokens * 2 * config.num_kv_heads * config.head_dim * self.kv_item_bytes


def block_weights(config: ModelConfig) -> int:
    """Numbers in the matrices of all layers."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim  # q, out; k, v
    ffn = (3 if config.activation == "swiglu" else 2) * config.ffn_width
    return config.num_layers * config.width * (heads + ffn)


def head_weights(config: ModelConfig) -> int:
    """Numbers in the head."""
    return config.vocab_size * config.width


class Kernel(Protocol):
    """What the native runner's kernel says of the machine, on the runner's threads."""

    def read_rate(self, num_bytes: int) -> float:
        """Bytes per second of reading that many, over and over."""

    def dot_rate(self) -> float:
        """Operations per second of int8 dot products on registers, a multiply-add counted as two."""


class KernelRunner(Protocol):
    """The native runner, as far as it is looked at here."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def isa(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def half_kv(self) -> bool: ...
    @property
    def formats(self) -> Mapping[str, int]: ...


def machine_of(runner: Runner) -> Machine:
    """The limits of a runner: of what computes in whole numbers those of dot products, else of floats."""
    if isinstance(runner, EagerRunner):
        return _eager(runner)
    native = cast(KernelRunner, runner)
    formats = ", ".join(sorted(native.formats, key=lambda name: -native.formats[name]))
    cache = "float16" if native.half_kv else "float32"
    floats = set(native.formats) == {"f32"}
    return Machine(
        name=f"native, {native.isa}, {formats}, KV {cache}, {_threads(native.num_threads)}",
        weight_bytes=native.read_bytes,
        kv_item_bytes=2 if native.half_kv else 4,
        read_rate=lambda: native.kernel.read_rate(native.read_bytes),
        op_rate=(lambda: _float_rate(native.num_threads)) if floats else native.kernel.dot_rate,
    )


def _eager(runner: EagerRunner) -> Machine:
    weight = runner.model.tokens.weight
    num_bytes = _bytes_read(runner.model)
    megabytes = min(max(num_bytes >> 20, 1), 256)
    return Machine(
        name=f"eager, {str(weight.dtype).removeprefix('torch.')}, {_threads(torch.get_num_threads())}",
        weight_bytes=num_bytes,
        kv_item_bytes=runner.kv.pool.element_size(),
        read_rate=lambda: read_bandwidth(runner.device, megabytes),
        op_rate=lambda: multiply_rate(runner.device, weight.dtype),
    )


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _bytes_read(model: Decoder) -> int:
    """Of the parameters, without tables of which a step reads single rows."""
    tables = {"positions.weight"} | ({"tokens.weight"} if model.head is not None else set())
    return sum(p.nbytes for name, p in model.named_parameters() if name not in tables)


def _float_rate(num_threads: int) -> float:
    """multiply_rate on that many threads, of which torch is left none here."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return multiply_rate(torch.device("cpu"), torch.float32)
    finally:
        torch.set_num_threads(before)


def multiply_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations per second of torch's product of two square matrices; the best of `repeats` runs."""
    a = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # .item() waits for the device
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - start))
    return best
