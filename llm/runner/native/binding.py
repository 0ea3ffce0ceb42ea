"""The C library as Python sees it: kernel.h's structures, and one object around its pointers.

Knows the border and nothing on either side of it: `weights.py` makes matrices, `runner.py` makes steps.
Arrays are handed over by address, so whoever passes one keeps it alive; `Kernel` keeps what it was made with.

    >>> load(built_library()).kernel_isa()
    b'avx512'
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llm.runner.native.build import NativeUnavailable

FORMATS = {"f32": 0, "q8_0": 1, "q4_0": 2, "q4_1": 3}
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "swiglu": 2}
_LEAST_READ = 4 << 20
BLOCK_TOKENS = 16
"""Tokens in a KV block: what its layout in C is made for."""


class Matrix(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("format", c_int32),
        ("num_out", c_int32),
        ("num_in", c_int32),
        ("reserved", c_int32),
    ]


class Layer(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        *((name, Matrix) for name in ("qkv", "out", "gate", "up", "down")),
        ("attention_norm", c_void_p),
        ("attention_norm_bias", c_void_p),
        ("ffn_norm", c_void_p),
        ("ffn_norm_bias", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("window", c_int32),
        ("reserved", c_int32),
    ]


class LowRank(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [("a", Matrix), ("b", c_void_p)]


class Adapter(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        (name, LowRank) for name in ("qkv", "out", "gate", "up", "down")
    ]


class Model(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("num_layers", c_int32),
        ("width", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("ffn_width", c_int32),
        ("vocab_size", c_int32),
        ("layer_norm", c_int32),
        ("activation", c_int32),
        ("norm_eps", c_float),
        ("layers", POINTER(Layer)),
        ("embedding", Matrix),
        ("head", Matrix),
        ("positions", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("norm", c_void_p),
        ("norm_bias", c_void_p),
        ("adapters", POINTER(Adapter)),
        ("max_rank", c_int32),
        ("reserved", c_int32),
    ]


class Cache(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("half", c_int32),
        ("num_blocks", c_int32),
    ]


class Step(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("num_rows", c_int32),
        ("num_sequences", c_int32),
        ("table_width", c_int32),
        ("num_logits", c_int32),
        ("num_hidden", c_int32),
        ("reserved", c_int32),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("starts", c_void_p),
        ("tables", c_void_p),
        ("logit_rows", c_void_p),
        ("hidden_rows", c_void_p),
        ("logits", c_void_p),
        ("hidden", c_void_p),
        ("adapters", c_void_p),
    ]


class Sampling(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("seed", c_uint64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("frequency", c_double),
        ("presence", c_double),
        ("repetition", c_float),
        ("min_p", c_float),
        ("choice", c_int32),
        ("top_k", c_int32),
        ("num_seen", c_int32),
        ("num_biased", c_int32),
        ("num_ends", c_int32),
        ("min_tokens", c_int32),
        ("seen", c_void_p),
        ("counts", c_void_p),
        ("biased", c_void_p),
        ("amounts", c_void_p),
        ("ends", c_void_p),
    ]


class Draws(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("num_rows", c_int32),
        ("vocab_size", c_int32),
        ("stride", c_int32),
        ("mask_bytes", c_int32),
        ("logits", c_void_p),
        ("rows", c_void_p),
        ("positions", c_void_p),
        ("samplings", POINTER(Sampling)),
        ("mask_rows", c_void_p),
        ("masks", c_void_p),
        ("tokens", c_void_p),
    ]


class Questions(Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("num_rows", c_int32),
        ("vocab_size", c_int32),
        ("stride", c_int32),
        ("width", c_int32),
        ("logits", c_void_p),
        ("rows", c_void_p),
        ("tokens", c_void_p),
        ("num_top", c_void_p),
        ("ranks", c_void_p),
        ("values", c_void_p),
        ("top_ids", c_void_p),
        ("top_values", c_void_p),
    ]


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "kernel_new": (c_void_p, [POINTER(Model), POINTER(Cache), c_int32, c_int32]),
    "kernel_free": (None, [c_void_p]),
    "kernel_step": (None, [c_void_p, POINTER(Step)]),
    "kernel_draw": (None, [c_void_p, POINTER(Draws)]),
    "kernel_measure": (None, [c_void_p, POINTER(Questions)]),
    "kernel_adjust": (None, [POINTER(Draws), c_int32, c_void_p]),
    "kernel_weigh": (None, [c_void_p, c_int32, c_double, c_double, c_void_p]),
    "kernel_copy_blocks": (None, [c_void_p, c_void_p, c_int32]),
    "kernel_matmul": (None, [POINTER(Matrix), c_void_p, c_int32, c_void_p]),
    "kernel_read_rate": (c_double, [c_void_p, c_void_p, c_int64, c_int32]),
    "kernel_dot_rate": (c_double, [c_void_p, c_int32]),
    "kernel_isa": (c_char_p, []),
}


def load(path: Path) -> ctypes.CDLL:
    """The library's functions, with their types. A call gives up the interpreter's lock while it computes.

    Raises:
        NativeUnavailable: it cannot be loaded.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"the kernel's library cannot be loaded: {error}") from None
    return library


class Kernel:
    """A model, a cache and threads; computes one step at a time.

    Args:
        library: of `load`.
        model, cache: structures; copied.
        keep: what they point to.
        num_threads: that compute, the caller's included.
        max_rows: tokens of the largest step.

    Raises:
        MemoryError: there is no room for the rows or the threads.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        model: Model,
        cache: Cache,
        keep: object,
        *,
        num_threads: int,
        max_rows: int,
    ) -> None:
        self._library, self._keep = library, keep
        self._pointer = library.kernel_new(byref(model), byref(cache), num_threads, max_rows)
        if not self._pointer:
            raise MemoryError(f"no memory for {max_rows} rows on {num_threads} threads")

    def step(self, step: Step) -> None:
        self._library.kernel_step(self._pointer, byref(step))

    def draw(self, draws: Draws) -> None:
        """Fill in the tokens."""
        self._library.kernel_draw(self._pointer, byref(draws))

    def measure(self, questions: Questions) -> None:
        """Fill in values, ranks and the best."""
        self._library.kernel_measure(self._pointer, byref(questions))

    def copy_blocks(self, pairs: NDArray[np.int32]) -> None:
        """Contents of blocks to others, one after the other: (n, 2), from and to."""
        self._library.kernel_copy_blocks(self._pointer, pairs.ctypes.data, len(pairs))

    def read_rate(self, num_bytes: int = 256 << 20, repeats: int = 7) -> float:
        """Bytes per second that the threads read of so many, again and again, the best of `repeats`: a
        cache's rate if one holds them.
        """
        data = np.ones(max(num_bytes, _LEAST_READ), np.uint8)
        rate: float = self._library.kernel_read_rate(self._pointer, data.ctypes.data, len(data), repeats)
        return rate

    def dot_rate(self, repeats: int = 7) -> float:
        """Operations (a product and a sum are two) per second of int8 in registers; the best of `repeats`."""
        rate: float = self._library.kernel_dot_rate(self._pointer, repeats)
        return rate

    def __del__(self) -> None:
        if pointer := getattr(self, "_pointer", None):
            self._library.kernel_free(pointer)
