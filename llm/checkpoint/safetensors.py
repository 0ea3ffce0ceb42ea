"""safetensors files: what the header says of each tensor, and the tensors, memory-mapped a stretch at a time.

A mapped file counts as memory once its pages were read, so a file is mapped anew every MAPPED_BYTES: while
weights are copied to where they are served, memory holds them once and one stretch of the file. Refuses to
know what tensors are called and what they are for.

    >>> for name, tensor in read_tensors(path, read_header(path)): ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm.checkpoint.record import one_line, some
from llm.errors import CheckpointError

MAPPED_BYTES = 32 << 20
"""Of one mapping. Mapping anew takes 0.3 ms, so a file of 14 GB loses a quarter of a second."""

_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
READABLE = tuple(_TYPES.values())
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor on disk.

    Attributes:
        shape: as stored.
        dtype: one of READABLE, or the file's own name of a type that weights do not have.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """On disk, when the type is readable."""
        return self.numel * _ITEMSIZE.get(self.dtype, 1)


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Every tensor of the file, in the file's order. The header was checked against the file's size.

    Raises:
        CheckpointError: no such file, or not a whole safetensors file.
    """
    with _opened(path) as file:
        views = {name: file.get_slice(name) for name in file.offset_keys()}
        return {
            name: TensorHeader(tuple(view.get_shape()), _TYPES.get(view.get_dtype(), str(view.get_dtype())))
            for name, view in views.items()
        }


def read_metadata(path: Path) -> dict[str, str]:
    """What the file's writer says of it beside the tensors; {} when it says nothing.

    Raises:
        CheckpointError: as `read_header`.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path, wanted: Mapping[str, TensorHeader]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in the order asked for, memory-mapped: copy before keeping, and keep none for long.

    Raises:
        CheckpointError: the file is no longer what `read_header` saw.
    """
    for names in _stretches(wanted):
        with _opened(path) as file:
            if gone := set(names) - set(file.keys()):
                raise CheckpointError(f"{path}: {some(gone)} changed since the checkpoint was opened")
            for name in names:
                yield name, file.get_tensor(name)


def refuse_type(path: Path, name: str, dtype: str) -> CheckpointError:
    """The error for a tensor of a type that weights do not have."""
    return CheckpointError(f"{path}: {name} has type {dtype}, readable are {', '.join(READABLE)}")


def stored_types(headers: Iterable[TensorHeader]) -> Iterator[tuple[str, int]]:
    """(type, number of weights) of each tensor, for `count_types`."""
    return ((header.dtype, header.numel) for header in headers)


def _stretches(wanted: Mapping[str, TensorHeader], limit: int = MAPPED_BYTES) -> Iterator[list[str]]:
    """The names in order, in groups of at most `limit` bytes; a larger tensor is a group of its own."""
    group: list[str] = []
    room = limit
    for name, header in wanted.items():
        if header.nbytes > room and group:
            yield group
            group, room = [], limit
        group.append(name)
        room -= header.nbytes
    if group:
        yield group


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The memory-mapped file; what safetensors refuses becomes our error.

    The handle is Any: safetensors ships no types for it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {one_line(error)}") from None
