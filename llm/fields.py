"""Strict reading of small JSON files somebody else wrote: bounded size, no duplicate keys, typed fields.

Every complaint is a CheckpointError of one line that starts with the file's path and names the field.
Refuses to know what the fields mean.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import NoReturn

from llm.errors import CheckpointError

MAX_JSON_BYTES = 1 << 20


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file's bytes, at most `limit` of them.

    Raises:
        CheckpointError: not a regular file, unreadable or too large.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise CheckpointError(f"{path}: larger than the limit of {limit} bytes")
    return data


def parse_object(data: bytes | str, where: str) -> dict[str, object]:
    """One JSON object, without NaN, Infinity or a key given twice."""
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise CheckpointError(f"{where}: not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key[:64]!r} is given twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


class Fields:
    """One JSON object whose fields are taken one by one; what is left at the end is unknown.

    Args:
        values: the object.
        where: path, and field within it, for messages.
    """

    def __init__(self, values: dict[str, object], where: str) -> None:
        self.where = where
        self._left = dict(values)

    def refuse(self, message: str) -> NoReturn:
        raise CheckpointError(f"{self.where}: {message}")

    def __contains__(self, name: str) -> bool:
        """Whether the field is there, not yet taken, and not null."""
        return self._left.get(name) is not None

    def says(self, name: str) -> bool:
        """Whether the field is there and not yet taken, null included."""
        return name in self._left

    def take(self, name: str) -> object:
        """The field's value, whatever it is."""
        if name not in self._left:
            self.refuse(f"{name} is missing")
        return self._left.pop(name)

    def text(self, name: str) -> str:
        value = self.take(name)
        return value if isinstance(value, str) else self._wrong(name, "a string", value)

    def boolean(self, name: str) -> bool:
        value = self.take(name)
        return value if isinstance(value, bool) else self._wrong(name, "true or false", value)

    def whole(self, name: str, low: int, high: int) -> int:
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def number(self, name: str, low: float, high: float) -> float:
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self._wrong(name, f"a number from {low:g} to {high:g}", value)
        assert math.isfinite(value)
        return float(value)

    def numbers(self, name: str, low: float, high: float) -> tuple[float, ...]:
        """A list of numbers."""
        items = {f"{name}[{i}]": item for i, item in enumerate(self.items(name))}
        inner = Fields(items, self.where)
        return tuple(inner.number(item, low, high) for item in items)

    def skip(self, name: str) -> None:
        """Take the field if it is there, whatever it says."""
        self._left.pop(name, None)

    def items(self, name: str) -> list[object]:
        value = self.take(name)
        return value if isinstance(value, list) else self._wrong(name, "a list", value)

    def inner(self, name: str) -> Fields:
        value = self.take(name)
        if not isinstance(value, dict):
            self._wrong(name, "an object", value)
        return Fields(value, f"{self.where}: {name}")

    def left(self) -> list[str]:
        """Names not taken."""
        return list(self._left)

    def done(self) -> None:
        """Refuse an object that says more than we understand."""
        if self._left:
            self.refuse(f"unknown field {next(iter(self._left))[:64]!r}")

    def _wrong(self, name: str, expected: str, value: object) -> NoReturn:
        self.refuse(f"{name} must be {expected}, got {repr(value)[:64]}")
