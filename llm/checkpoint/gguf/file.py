"""The container of a GGUF file: typed metadata, and where each tensor lies. Versions 2 and 3, little-endian.

    "GGUF" | version u32 | tensors u64 | fields u64
    field    key | type u32 | value                 a string is its length u64 and UTF-8; an array is
                                                    its items' type u32, their number u64, the items
    tensor   name | dimensions u32 | sizes u64, the fastest first | type u32 | offset u64
    padding to general.alignment (32), then the tensors' bytes, offsets counted from here

Every length is compared with what is left of the file before anything is read or allocated, and every number
of items with a limit. A model in several files (name-00001-of-00003.gguf) is read as one, when all lie side
by side. Refuses to know what fields and tensors mean.

    >>> file = read_gguf(Path("model.gguf")); file.fields["general.architecture"]
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from llm.checkpoint.record import some
from llm.errors import CheckpointError

MAX_HEADER_BYTES, MAX_FIELDS, MAX_ITEMS, MAX_TENSORS = 64 << 20, 1 << 14, 1 << 22, 1 << 13
"""Several times what the largest vocabularies and networks in use need; items are those of all arrays."""
MAX_NAME_BYTES, MAX_DIMENSIONS = 1 << 10, 4

_ALIGNMENTS = [1 << n for n in range(3, 21)]

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        kind: the type of its numbers or blocks.
        shape: the slowest dimension first, as torch writes it: (out, in).
        path: the file that holds it.
        offset, nbytes: its bytes in that file.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def map(self) -> Tensor:
        """The tensor's bytes, uint8 (nbytes,), mapped on their own: memory is given back with the tensor.

        Raises:
            CheckpointError: the file is no longer as long as it was.
        """
        try:
            mapped = np.memmap(self.path, np.uint8, mode="c", offset=self.offset, shape=(self.nbytes,))
        except (OSError, ValueError):
            raise CheckpointError(f"{self.path}: changed since the checkpoint was opened") from None
        return torch.from_numpy(mapped)  # private to us and never written to


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file says about itself.

    Attributes:
        paths: its parts in order; usually one.
        fields: bool, int, float or str, or a list of one of these.
        tensors: by name, in the order of the file.
    """

    paths: list[Path]
    fields: dict[str, object]
    tensors: dict[str, TensorInfo]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a file, or of all parts of the model that the file is a part of.

    Raises:
        CheckpointError: damaged, or not a GGUF file we read; one line.
    """
    file = _read_file(path)
    count = file.fields.get("split.count", 1)
    return file if count in (0, 1) else _read_parts(path, count)


def part_name(path: Path) -> str:
    """The file's stem, without "-00001-of-00003" where it is a part."""
    found = _PART.fullmatch(path.name)
    return found[1] if found else path.stem


def _read_parts(path: Path, count: object) -> GgufFile:
    found = _PART.fullmatch(path.name)
    if found is None or int(found[3]) != count:
        raise CheckpointError(
            f"{path}: a part of a model in several files (split.count is {repr(count)[:64]}), "
            "so its name must end as in -00001-of-00003.gguf"
        )
    count = int(found[3])
    paths = [path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in paths if not part.is_file()]:
        raise CheckpointError(f"{path}: one of {count} parts, missing beside it: {some(missing)}")
    files = [_read_file(part) for part in paths]
    for number, (part, file) in enumerate(zip(paths, files, strict=True)):
        says = file.fields.get("split.no"), file.fields.get("split.count")
        if says != (number, count):
            raise CheckpointError(
                f"{part}: split.no and split.count are {repr(says)[:64]}, expected {(number, count)}"
            )
    names = Counter(name for file in files for name in file.tensors)
    if twice := [name for name, times in names.items() if times > 1]:
        raise CheckpointError(f"{path}: in more than one part: {some(twice)}")
    if (total := files[0].fields.get("split.tensors.count", len(names))) != len(names):
        raise CheckpointError(
            f"{path}: the parts hold {len(names)} tensors, split.tensors.count is {repr(total)[:64]}"
        )
    tensors = {name: info for file in files for name, info in file.tensors.items()}
    return GgufFile(paths, files[0].fields, tensors)


def _read_file(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise CheckpointError(f"{path}: {size} bytes are too few for a GGUF file")
            with mmap.mmap(file.fileno(), min(size, MAX_HEADER_BYTES), access=mmap.ACCESS_READ) as data:
                return _Header(path, data, size).read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


class _Header:
    """One pass over a header; `at` is the next byte.

    Args:
        data: the mapped beginning of the file.
        size: of the whole file, in bytes.
    """

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size = path, data, size
        self.at, self.num_items = 0, 0

    def read(self) -> GgufFile:
        num_tensors, num_fields = self._start()
        fields: dict[str, object] = {}
        for _ in range(num_fields):
            (key,) = self._texts("a key", 1, MAX_NAME_BYTES)
            if key in fields:
                self._refuse(f"field {some([key])} is given twice")
            fields[key] = self._value(key)
        alignment = fields.get("general.alignment", 32)
        if alignment not in _ALIGNMENTS:
            self._refuse(f"general.alignment must be a power of 2 from 8 to 2^20, got {repr(alignment)[:64]}")
        infos = [self._tensor(int(alignment)) for _ in range(num_tensors)]
        start = -(-self.at // alignment) * alignment
        return GgufFile([self.path], fields, self._place(infos, start))

    def _start(self) -> tuple[int, int]:
        """The numbers of tensors and of fields."""
        magic, version, num_tensors, num_fields = self._unpack("the header", "4sIQQ")
        if magic != b"GGUF":
            self._refuse("not a GGUF file: it does not begin with GGUF")
        if version not in (2, 3):
            big = version and version & 0xFFFF == 0
            what = "big-endian" if big else f"version {version}"
            self._refuse(f"a GGUF file, {what}: readable are versions 2 and 3, little-endian")
        for what, number, limit in (
            ("tensors", num_tensors, MAX_TENSORS),
            ("fields", num_fields, MAX_FIELDS),
        ):
            if number > limit:
                self._refuse(f"its header claims {number} {what}, the limit is {limit}")
        return num_tensors, num_fields

    def _value(self, key: str) -> object:
        (kind,) = self._unpack(f"field {some([key])}", "I")
        if kind in _SCALARS:
            return self._unpack(f"field {some([key])}", _SCALARS[kind])[0]
        if kind == _STRING:
            return self._texts(f"field {some([key])}", 1, MAX_HEADER_BYTES)[0]
        if kind == _ARRAY:
            return self._array(f"field {some([key])}")
        self._refuse(f"field {some([key])} has type number {kind}, known are 0 to 12")

    def _array(self, what: str) -> list[object]:
        kind, count = self._unpack(what, "IQ")
        if kind not in _SCALARS and kind != _STRING:
            self._refuse(f"{what}: items of type number {kind}, readable are numbers and strings")
        self.num_items += count
        if self.num_items > MAX_ITEMS:
            self._refuse(f"{what}: {count} items, the limit for all fields together is {MAX_ITEMS}")
        if kind == _STRING:
            return list(self._texts(what, count, MAX_HEADER_BYTES))
        return list(self._unpack(what, f"{count}{_SCALARS[kind]}"))

    def _tensor(self, alignment: int) -> TensorInfo:
        """A tensor whose offset is still counted from where the data starts."""
        (name,) = self._texts("a tensor's name", 1, MAX_NAME_BYTES)
        what = f"tensor {some([name])}"
        (num_dimensions,) = self._unpack(what, "I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            self._refuse(f"{what} has {num_dimensions} dimensions, readable are 1 to {MAX_DIMENSIONS}")
        sizes = self._unpack(what, f"{num_dimensions}Q")
        number, offset = self._unpack(what, "IQ")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            self._refuse(f"{what} has type number {number}, which the installed gguf package does not know")
        weights, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in sizes or sizes[0] % weights:
            self._refuse(
                f"{what} has sizes {list(sizes)}, {kind.name} is stored in rows of {weights} or multiples"
            )
        nbytes = math.prod(sizes) // weights * block_bytes
        if offset % alignment:
            self._refuse(f"{what} starts at {offset}, not a multiple of general.alignment {alignment}")
        return TensorInfo(name, kind, sizes[::-1], self.path, offset, nbytes)

    def _place(self, infos: list[TensorInfo], start: int) -> dict[str, TensorInfo]:
        """Tensors by name, offsets counted from the file's beginning; no two share a name or a byte."""
        placed = {info.name: replace(info, offset=start + info.offset) for info in infos}
        if len(placed) < len(infos):
            names = Counter(info.name for info in infos)
            self._refuse(f"given twice: tensor {some(names.most_common(1)[0][:1])}")
        end, last = start, "the header"
        for info in sorted(placed.values(), key=lambda info: info.offset):
            if info.offset < end:
                self._refuse(f"tensor {some([info.name])} overlaps {some([last])}")
            end, last = info.offset + info.nbytes, info.name
        if end > self.size:
            self._refuse(f"truncated: tensor {some([last])} ends at byte {end}, the file at {self.size}")
        return placed

    def _texts(self, what: str, count: int, limit: int) -> list[str]:
        """Strings that follow each other. One loop without calls: vocabularies have 10^5 of them."""
        data, at, end = self.data, self.at, len(self.data)
        texts = []
        for _ in range(count):
            start = at + 8
            at = start + int.from_bytes(data[at:start], "little")
            if at > end:
                self._refuse(f"{what}: a string ends at byte {at}, {self._room()}")
            if at - start > limit:
                self._refuse(f"{what}: a string of {at - start} bytes, the limit is {limit}")
            try:
                texts.append(data[start:at].decode())
            except UnicodeDecodeError:
                self._refuse(f"{what}: the string at byte {start} is not UTF-8")
        self.at = at
        return texts

    def _unpack(self, what: str, layout: str) -> tuple[Any, ...]:
        """Numbers in struct's notation."""
        end = self.at + struct.calcsize("<" + layout)
        if end > len(self.data):
            self._refuse(f"{what} ends at byte {end}, {self._room()}")
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at = end
        return values

    def _room(self) -> str:
        if len(self.data) < self.size:
            return f"the limit for all of the header is {len(self.data)}"
        return f"the file at {self.size}: truncated or damaged"

    def _refuse(self, message: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {message}")
