"""Text that remembers, character by character, who wrote it.

A chat template mixes its own markers with what users wrote. In the finished prompt both are characters, and
`<|im_end|>` looks the same from either hand. A Marked string carries one byte of flags per character through
every operation a template may use (slices, joins, splits, replacements, changes of case), so afterwards only
characters the template wrote can form a control token. A plain str is the template's own text; whatever an
operation cannot follow counts as the user's. Refuses to know templates, tokens and messages.

    >>> line = join(["<|user|>", by_user("hi <|user|>")])
    >>> line, flags_of(line).hex()
    ('<|user|>hi <|user|>', '00000000000000000101010101010101010101')
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsIndex

USER = 1
TRAINED = 2
FINAL = 4

_FLAGS = (USER, TRAINED, FINAL)
_WITH = {flag: bytes(byte | flag for byte in range(256)) for flag in _FLAGS}


class Marked(str):
    """A str with flags: compares, hashes and prints as the str it is.

    Args:
        text: the characters.
        flags: as many bytes, each a sum of USER (a user wrote this character), TRAINED (the model is taught
            to write it) and FINAL (it belongs to the message that the model is to continue).
    """

    __slots__ = ("flags",)
    flags: bytes

    def __new__(cls, text: str, flags: bytes) -> Marked:
        assert len(text) == len(flags)
        marked = super().__new__(cls, text)
        marked.flags = flags
        return marked

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = super().__getitem__(key)
        if not isinstance(key, slice):
            start = key.__index__()
            key = slice(start, start + 1 or None)
        return Marked(text, self.flags[key])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def plain(text: str) -> str:
    """The characters alone."""
    return str.__str__(text)


def flags_of(text: str) -> bytes:
    """One byte per character; zeros for a plain str."""
    return text.flags if isinstance(text, Marked) else bytes(len(text))


def by_user(text: str) -> str:
    """The text as something a user wrote."""
    return Marked(text, bytes([USER]) * len(text))


def with_flag(text: str, flag: int) -> str:
    """The text with one more flag on every character."""
    return Marked(text, flags_of(text).translate(_WITH[flag]))


def join(parts: Iterable[str], between: str = "") -> str:
    """The parts in order, `between` between any two."""
    items = list(parts)
    text = plain(between).join(items)
    if not isinstance(between, Marked) and not any(isinstance(item, Marked) for item in items):
        return text
    return Marked(text, flags_of(between).join(map(flags_of, items)))


def absorb(result: str, *sources: object) -> str:
    """The result of an operation nobody followed: each character has the flags of all that went in.

    A str without flags and a number are the template's; anything with an inside counts as the user's.
    """
    flags = 0
    for source in sources:
        if isinstance(source, Marked):
            flags |= sum(flag for flag in _FLAGS if any(byte & flag for byte in set(source.flags)))
        elif source is not None and not isinstance(source, str | int | float):
            flags |= USER
    return Marked(result, bytes([flags]) * len(result)) if flags else plain(result)


def recase(source: str, result: str) -> str:
    """The result of a change that keeps each character's place, if it did; else as `absorb` has it."""
    if isinstance(source, Marked) and len(source) == len(result):
        return Marked(result, source.flags)
    return absorb(result, source)


def strip(text: str, chars: str | None = None, *, left: bool = True, right: bool = True) -> str:
    """str.strip, lstrip or rstrip."""
    bare = plain(text)
    end = len(bare.rstrip(chars)) if right else len(bare)
    start = len(bare) - len(bare.lstrip(chars)) if left else 0
    return text[start : max(start, end)]


def split(text: str, separator: str | None = None, limit: int = -1, *, right: bool = False) -> Sequence[str]:
    """str.split or rsplit."""
    bare = plain(text)
    pieces = bare.rsplit(separator, limit) if right else bare.split(separator, limit)
    if not isinstance(text, Marked):
        return pieces
    found, position = [], 0
    for piece in pieces:
        if separator is None:  # between the pieces is white space only, and no piece begins inside it
            position = bare.index(piece, position)
        found.append(text[position : position + len(piece)])
        position += len(piece) + len(separator or "")
    return found


def splitlines(text: str, keepends: bool = False) -> Sequence[str]:
    """str.splitlines."""
    bare = plain(text)
    lines, position = [], 0
    for whole, line in zip(bare.splitlines(True), bare.splitlines(keepends), strict=True):
        lines.append(text[position : position + len(line)])
        position += len(whole)
    return lines


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """str.replace."""
    if not old:
        return absorb(plain(text).replace(old, new, count), text, new)
    return join(split(text, plain(old), count), new)
