"""The container: read as the reference library reads it, and damage of any kind is one line, soon."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.checkpoint.gguf.file import MAX_ITEMS, part_name, read_gguf
from llm.errors import CheckpointError
from tests.checkpoint_writers import LLAMA, random_weights, write_gguf

F32, U8, U32, BOOL, STRING, ARRAY = 0, 0, 4, 7, 8, 9


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def field(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return field(key, U32, struct.pack("<I", value))


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, sizes: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    return head + struct.pack("<IQ", kind, offset)


def container(
    fields: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    num_tensors, num_fields = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + b"".join(fields + tensors)
    return head + bytes(-len(head) % alignment) + data


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and len(message) < len(str(path)) + 400
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_fields_and_tensors_are_those_the_reference_reader_finds(path: Path, kind: str) -> None:
    fields = {"general.file_type": 1, "x.real": 0.25, "x.yes": True, "x.minus": -3, "x.list": [1.5, -2.0]}
    write_gguf(path, LLAMA, random_weights(LLAMA), fields=fields, kind=lambda name: kind)
    ours, theirs = read_gguf(path), GGUFReader(path)
    expected = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.fields == expected and ours.paths == [path]
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for found in theirs.tensors:
        info = ours.tensors[found.name]
        assert (info.kind, info.shape) == (found.tensor_type, tuple(int(n) for n in found.shape[::-1]))
        assert info.map().numpy().tobytes() == found.data.tobytes()


@pytest.mark.parametrize("version", [2, 3])
def test_every_scalar_type(path: Path, version: int) -> None:
    values: dict[int, tuple[str, Any]] = {
        0: ("B", 255),
        1: ("b", -128),
        2: ("H", 65535),
        3: ("h", -32768),
        4: ("I", 2**32 - 1),
        5: ("i", -(2**31)),
        6: ("f", 0.5),
        7: ("?", True),
        10: ("Q", 2**64 - 1),
        11: ("q", -(2**63)),
        12: ("d", 0.1),
    }
    fields = [field(f"k{n}", n, struct.pack("<" + code, value)) for n, (code, value) in values.items()]
    fields += [
        field(f"a{n}", ARRAY, array(n, 2, struct.pack(f"<2{code}", value, value)))
        for n, (code, value) in values.items()
    ]
    fields += [field("empty", ARRAY, array(STRING, 0)), field("s", STRING, text("grüße\n"))]
    path.write_bytes(container(fields, [], version=version))
    found = read_gguf(path).fields
    assert [found[f"k{n}"] for n in values] == [value for _, value in values.values()]
    assert [found[f"a{n}"] for n in values] == [[value, value] for _, value in values.values()]
    assert (found["empty"], found["s"], type(found["k7"])) == ([], "grüße\n", bool)


def test_alignment_moves_the_data(path: Path) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    path.write_bytes(container([u32("general.alignment", 128)], [tensor("a")], data, alignment=128))
    info = read_gguf(path).tensors["a"]
    assert info.offset % 128 == 0
    assert info.map().view(torch.float32).tolist() == [1, 2, 3, 4]


HUGE = 2**60
DEEP = field("deep", ARRAY, array(ARRAY, 1) * 5000)
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few"),
    "short": (b"GGUF", "too few"),
    "other magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "version 1": (container([], [], version=1) + bytes(9), "version 1: readable are versions 2 and 3"),
    "version 4": (container([], [], version=4) + bytes(9), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^60 fields": (container([], [], counts=(0, HUGE)), f"claims {HUGE} fields, the limit is"),
    "2^60 tensors": (container([], [], counts=(HUGE, 0)), f"claims {HUGE} tensors, the limit is"),
    "more fields than there are": (container([], [], counts=(0, 3)), "truncated or damaged"),
    "more tensors than there are": (container([], [], counts=(3, 0)), "truncated or damaged"),
    "2^60 bytes in a key": (container([text("a", HUGE)], []), "a key: a string ends at byte"),
    "a long key": (container([u32("k" * 2000, 1)], []), "a string of 2000 bytes, the limit is 1024"),
    "2^64 bytes in a string": (container([field("a", STRING, text("a", 2**64 - 1))], []), "truncated"),
    "2^60 items": (
        container([field("a", ARRAY, array(U8, HUGE))], []),
        f"limit for all fields .* {MAX_ITEMS}",
    ),
    "items beyond the end": (container([field("a", ARRAY, array(U32, 4096))], []), "truncated"),
    "strings beyond the end": (container([field("a", ARRAY, array(STRING, 4096))], []), "truncated"),
    "arrays of arrays": (container([DEEP], []), "field deep: items of type number 9"),
    "type 13": (container([field("a", 13, bytes(8))], []), "field a has type number 13"),
    "items of type 99": (container([field("a", ARRAY, array(99, 1))], []), "items of type number 99"),
    "a key twice": (container([u32("a", 1), u32("a", 1)], []), "field a is given twice"),
    "a key not UTF-8": (container([field(b"\xff", U8, b"\0")], []), "a key: the string .* is not UTF-8"),
    "a key of two lines": (container([field("a\nb", 13, bytes(8))], []), r"field 'a\\nb' has type"),
    "a string not UTF-8": (container([field("a", STRING, text(b"\xff"))], []), "field a: .* is not UTF-8"),
    "alignment 0": (container([u32("general.alignment", 0)], []), "general.alignment must be .* got 0"),
    "alignment 3": (container([u32("general.alignment", 3)], []), "got 3"),
    "alignment 2^31": (container([u32("general.alignment", 2**31)], []), "got 2147483648"),
    "alignment text": (container([field("general.alignment", STRING, text("32"))], []), "got '32'"),
    "alignment a list": (container([field("general.alignment", ARRAY, array(U8, 1, b" "))], []), "got .32."),
    "no dimensions": (container([], [tensor("a", ())], bytes(64)), "tensor a has 0 dimensions"),
    "5 dimensions": (container([], [tensor("a", (1,) * 5)], bytes(64)), "tensor a has 5 dimensions"),
    "a size of 0": (container([], [tensor("a", (4, 0))], bytes(64)), r"tensor a has sizes \[4, 0\]"),
    "sizes of 2^60": (container([], [tensor("a", (HUGE,) * 4)], bytes(64)), "tensor a ends at byte"),
    "a broken row": (container([], [tensor("a", (48,), 8)], bytes(64)), "rows of 32 or multiples"),
    "an unknown type": (container([], [tensor("a", kind=4)], bytes(64)), "tensor a has type number 4"),
    "type 2^32 - 1": (container([], [tensor("a", kind=2**32 - 1)], bytes(64)), "type number 4294967295"),
    "beyond the end": (
        container([], [tensor("a", offset=64)], bytes(64)),
        "truncated: tensor a ends at byte",
    ),
    "2^60 beyond the end": (container([], [tensor("a", offset=HUGE)], bytes(64)), "tensor a ends at byte"),
    "crooked": (container([], [tensor("a", offset=4)], bytes(64)), "starts at 4, not a multiple"),
    "overlapping": (
        container([], [tensor("b", (4,), offset=32), tensor("a", (9,))], bytes(96)),
        "tensor b overlaps a",
    ),
    "a tensor twice": (
        container([], [tensor("a"), tensor("a", offset=32)], bytes(64)),
        "given twice: tensor a",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line(path: Path, damage: str) -> None:
    data, expected = DAMAGE[damage]
    message = refusal(path, data)
    assert re.search(expected, message), message


def test_a_file_large_enough_for_what_it_claims_may_not_fill_memory(path: Path) -> None:
    """128 MiB (of holes) lets through what is too large for a smaller file: the limits stand."""
    cases = {
        container([field("a", ARRAY, array(U8, 2**26))], []): "67108864 items, the limit",
        container([field("a", STRING, text("", 2**26))], []): "the limit for all of the header is",
    }
    for head, expected in cases.items():
        with path.open("wb") as file:
            file.write(head)
            file.truncate(128 << 20)
        with pytest.raises(CheckpointError, match=expected):
            read_gguf(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    write_gguf(path, LLAMA, random_weights(LLAMA), kind=lambda name: "Q8_0")
    return path.read_bytes()


def test_truncated_anywhere(path: Path, good: bytes) -> None:
    last_data = max(info.offset + info.nbytes for info in _read(path, good).tensors.values())
    for size in [*range(0, 6000, 37), *range(6000, last_data, 4001), last_data - 1]:
        refusal(path, good[:size])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_byte_of_the_header_may_be_wrong(path: Path, good: bytes, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(good)
    for at, value in flips:
        damaged[at] = value
    try:
        file = _read(path, bytes(damaged))
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(
            0 < info.offset and info.offset + info.nbytes <= len(good) for info in file.tensors.values()
        )


def _read(path: Path, data: bytes):  # type: ignore[no-untyped-def]
    path.write_bytes(data)
    return read_gguf(path)


def test_a_tensor_is_mapped_and_a_file_cut_short_later_is_an_error(path: Path) -> None:
    path.write_bytes(container([], [tensor("a", (8,))], np.arange(8, dtype="<f4").tobytes()))
    info = read_gguf(path).tensors["a"]
    mapped = info.map()
    mapped[0] = 7  # private: the file stays as it is
    assert info.map()[0] == 0
    with path.open("r+b") as file:
        file.truncate(info.offset + 8)
    with pytest.raises(CheckpointError, match="changed since the checkpoint was opened"):
        info.map()
    path.unlink()
    with pytest.raises(CheckpointError, match="changed since the checkpoint was opened"):
        info.map()


def parts(folder: Path, *, total: int = 3, says: int = 3) -> list[Path]:
    paths = [folder / f"big-{number:05}-of-{total:05}.gguf" for number in (1, 2, 3)]
    for number, path in enumerate(paths):
        fields = [u32("split.no", number), u32("split.count", says), u32("split.tensors.count", 3)]
        fields += [u32("only.here", 5)] if number == 0 else []
        path.write_bytes(container(fields, [tensor(f"t{number}")], struct.pack("<4f", *[number] * 4)))
    return paths


@pytest.mark.parametrize("named", [0, 1, 2])
def test_parts_side_by_side_are_one_model_whichever_is_named(tmp_path: Path, named: int) -> None:
    paths = parts(tmp_path)
    file = read_gguf(paths[named])
    assert file.paths == paths and file.fields["only.here"] == 5
    assert [info.map().view(torch.float32)[0].item() for info in file.tensors.values()] == [0, 1, 2]
    assert part_name(paths[named]) == "big"


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            read_gguf(path)
        return str(caught.value)

    first, second, third = parts(tmp_path)
    good = second.read_bytes()
    second.unlink()
    assert message(third).endswith("one of 3 parts, missing beside it: big-00002-of-00003.gguf")
    second.write_bytes(third.read_bytes())
    assert "split.no and split.count are (2, 3), expected (1, 3)" in message(first)
    second.write_bytes(good.replace(b"t1", b"t0"))
    assert "in more than one part: t0" in message(first)
    second.write_bytes(good)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(first.read_bytes())
    assert "split.count is 3), so its name must end as in -00001-of-00003.gguf" in message(alone)
    first.write_bytes(
        first.read_bytes().replace(u32("split.tensors.count", 3), u32("split.tensors.count", 4))
    )
    assert "the parts hold 3 tensors, split.tensors.count is 4" in message(first)
    real = field("split.count", 6, struct.pack("<f", 3.0))
    first.write_bytes(container([real], []))
    assert "split.no and split.count are (None, 3.0), expected (0, 3)" in message(first)
