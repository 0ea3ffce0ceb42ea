"""What one rendering may still spend: steps of work, and depth.

A chat template comes with a checkpoint, so it may be wrong or hostile: loop for ever, double a string until
memory is full, compare lists that share their parts a billion times. Every operation pays before it works:
one unit for each node of the template it runs, and for every 16 characters or each element it touches.
Whoever cannot pay ends there. One Meter serves one rendering in one thread. Refuses to know templates.

    >>> Meter(10).hold(1000)
    Traceback (most recent call last):
    llm.chat.sandbox.meter.Overrun: the template needs more than 10 steps
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import TypeVar

from jinja2 import TemplateRuntimeError

T = TypeVar("T")

CHARS_PER_UNIT = 16
MAX_DEPTH = 64
"""Macros inside macros, and lists inside lists."""
MAX_NUMBER_BITS = 1024
VIEWS = (KeysView, ValuesView, ItemsView)


class Overrun(TemplateRuntimeError):
    """The template wants more than its share."""


class Meter:
    """A budget of `limit` units.

    Raises:
        Overrun: from every method, when the budget is spent; and again from every one after that.
    """

    __slots__ = ("limit", "_left", "_depth")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._left = limit
        self._depth = 0

    @property
    def spent(self) -> int:
        """Units paid so far."""
        return self.limit - self._left

    def spend(self, units: int) -> None:
        """Pay."""
        assert units >= 0
        self._left -= units
        if self._left < 0:
            raise Overrun(f"the template needs more than {self.limit:,} steps")

    def hold(self, num_chars: int) -> None:
        """Pay for reading or writing a text of that length."""
        self.spend(1 + num_chars // CHARS_PER_UNIT)

    def enter(self) -> None:
        """One macro deeper."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Overrun(f"the template's macros call each other more than {MAX_DEPTH} deep")

    def leave(self) -> None:
        """One macro up."""
        self._depth -= 1

    def number(self, num_bits: int) -> None:
        """Refuse a whole number of more bits than any template needs."""
        if num_bits > MAX_NUMBER_BITS:
            raise Overrun(f"the template computes a number of more than {MAX_NUMBER_BITS} bits")

    def measure(self, value: object) -> int:
        """Pay for everything inside a value, shared parts as often as they occur: what printing, comparing or
        hashing it costs.

        Returns:
            How deep it is nested: 1 for a text or a number, 2 for a list of these.
        """
        depth, level = 0, [value]
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise Overrun(f"the template nests a value more than {MAX_DEPTH} deep")
            inner: list[object] = []
            for item in level:
                inner += self._open(item)
            level = inner
        return depth

    def _open(self, value: object) -> Iterable[object]:
        """Pay for one value, and give what is inside."""
        if isinstance(value, str):
            self.hold(len(value))
        elif isinstance(value, dict):
            self.spend(1 + 2 * len(value))
            return [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            self.spend(1 + len(value))
            return value
        elif isinstance(value, VIEWS):
            self.spend(1 + 2 * len(value))
            return list(value)
        elif isinstance(value, range):
            self.spend(1 + len(value))
        else:
            self.spend(1)
        return ()

    def each(self, values: Iterable[T], units: int = 1) -> Iterator[T]:
        """The values one by one, paying `units` for each.

        Raises:
            TypeError: they cannot be iterated.
        """
        return self._each(iter(values), units)

    def _each(self, values: Iterator[T], units: int) -> Iterator[T]:
        for value in values:
            self.spend(units)
            yield value

    def walk(self, values: Iterable[T]) -> Iterable[T]:
        """The same values: as they are when their number is known, and then paid for at once."""
        if isinstance(values, str | list | tuple | dict | range | KeysView | ValuesView | ItemsView):
            self.spend(1 + len(values))
            return values
        return self.each(values)
