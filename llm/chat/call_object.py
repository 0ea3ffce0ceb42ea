"""One tool call's JSON object, read as it comes: {"name": "f", "arguments": {"a": 1}}.

The name has to come first for the arguments to leave before the object ends; in any other order the object
is kept until its last brace and read whole. Braces and strings are followed, the rest of JSON is not checked
on the way: what the model writes between the arguments' braces is what it said. Refuses to know what stands
before and after an object.

    >>> call = CallObject()
    >>> call.feed('{"name": "f", "arguments": {"a": 1', 0), call.take()
    (34, ('f', '{"a": 1'))
    >>> call.feed("}} and so on", 0), call.take(), call.done
    (2, (None, '}'), True)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NoReturn

ARGUMENTS = ("arguments", "parameters")
"""What formats call a call's arguments; either is understood in all of them."""
_HEAD: tuple[tuple[str, ...], ...] = (
    ("{",),
    ('"name"',),
    (":",),
    (),  # any string
    (",",),
    tuple(f'"{key}"' for key in ARGUMENTS),
    (":",),
    ("{",),
)
_NAME = _HEAD.index(())
_NOT_SPACE = re.compile(r"[^ \t\n\r]")
_STRING_STOP = re.compile(r'["\\]')
_STRUCTURE = re.compile(r'["{}]')


class _Phase(Enum):
    HEAD = auto()
    """Up to the arguments' brace, token by token."""
    WHOLE = auto()
    """Not in that order: kept to the closing brace, then read."""
    ARGUMENTS = auto()
    AFTER = auto()
    """The arguments are over: the closing brace is next, or a comma."""
    MORE = auto()
    """Members after the arguments, which say nothing."""
    DONE = auto()


class CallObject:
    """Reads one object that may be a call; the text it is fed begins with the opening brace.

    Args:
        bare: a call may come without arguments.

    Attributes:
        begun: it is a call, and its name has been given away.
        raw: what has come and says nothing as a call; if nothing has begun, all of it.
    """

    def __init__(self, bare: bool = False) -> None:
        self.begun = False
        self.raw: list[str] = []
        self._bare = bare
        self._phase = _Phase.HEAD
        self._num_tokens = 0
        self._string: list[str] = []  # of the head: the string in progress
        self._name: str | None = None
        self._arguments: list[str] = []  # since the last take
        self._depth = 0
        self._quoted = self._escaped = False

    @property
    def done(self) -> bool:
        """The object is over, or was none: what follows is not part of it."""
        return self._phase is _Phase.DONE

    @property
    def complete(self) -> bool:
        """It is a call, and name and arguments are wholly there."""
        return self.begun and self._phase is not _Phase.ARGUMENTS

    def feed(self, text: str, at: int) -> int:
        """Read on from `at`; where the object ends, or the text."""
        while at < len(text) and not self.done:
            if self._phase is _Phase.HEAD:
                at = self._head(text, at)
            elif self._phase is _Phase.AFTER:
                at = self._after(text, at)
            else:
                at = self._balance(text, at)
        return at

    def take(self) -> tuple[str | None, str] | None:
        """The name, unless it was taken before, and the arguments' text that is new; None when nothing is."""
        if not self.begun or (self._name is None and not self._arguments):
            return None
        taken = self._name, "".join(self._arguments)
        self._name, self._arguments = None, []
        return taken

    def _head(self, text: str, at: int) -> int:
        if self._quoted:
            return self._head_string(text, at)
        match = _NOT_SPACE.search(text, at)
        start = match.start() if match else len(text)
        self.raw.append(text[at:start])
        if match is None:
            return start
        if match[0] == '"':
            self._quoted, self._string = True, ['"']
        elif not self._token(match[0]):
            return start  # left for the next phase
        self.raw.append(match[0])
        return start + 1

    def _head_string(self, text: str, at: int) -> int:
        end = self._string_end(text, at)
        self._string.append(text[at:end])
        self.raw.append(text[at:end])
        if not self._quoted:
            self._token("".join(self._string))
        return end

    def _token(self, token: str) -> bool:
        """One more token of the head: a string, or one character. False when that is not the head's."""
        expected, last = _HEAD[self._num_tokens], self._num_tokens == len(_HEAD) - 1
        self._num_tokens += 1
        if not expected:
            self._name = _name_of(token)
            if self._name is not None:
                return True
        elif token in expected:
            if last:
                self._phase, self.begun, self.raw = _Phase.ARGUMENTS, True, []
            return not last
        if self._num_tokens == 2 and token[0] not in '"}':
            self._phase = _Phase.DONE  # no object goes on like this
        else:
            self._phase, self._depth, self._name = _Phase.WHOLE, 1, None
        return False

    def _balance(self, text: str, at: int) -> int:
        """To the brace that brings the depth to 0, or to the end of the text."""
        start, closed = at, False
        while at < len(text) and not closed:
            if self._quoted:
                at = self._string_end(text, at)
                continue
            match = _STRUCTURE.search(text, at)
            at = match.end() if match else len(text)
            if match and match[0] == '"':
                self._quoted = True
            elif match:
                self._depth += 1 if match[0] == "{" else -1
                closed = self._depth == 0
        (self._arguments if self._phase is _Phase.ARGUMENTS else self.raw).append(text[start:at])
        if closed:
            self._close()
        return at

    def _close(self) -> None:
        if self._phase is _Phase.ARGUMENTS:
            self._phase = _Phase.AFTER
            return
        if self._phase is _Phase.WHOLE:
            call = read_call("".join(self.raw), self._bare)
            if call is not None:
                self.begun, self.raw = True, []
                self._name, self._arguments = call[0], [call[1]]
        else:
            self.raw = []
        self._phase = _Phase.DONE

    def _after(self, text: str, at: int) -> int:
        match = _NOT_SPACE.search(text, at)
        start = match.start() if match else len(text)
        self.raw.append(text[at:start])
        if match is None:
            return start
        if match[0] == ",":
            self._phase, self._depth = _Phase.MORE, 1
            return start
        self._phase = _Phase.DONE
        if match[0] != "}":
            return start  # the object's brace was forgotten
        self.raw = []
        return start + 1

    def _string_end(self, text: str, at: int) -> int:
        """Behind the closing quote, or the end of the text."""
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = _STRING_STOP.search(text, at)
            if match is None:
                return len(text)
            at = match.end()
            if match[0] == '"':
                self._quoted = False
                return at
            self._escaped = True
        return at


def read_call(text: str, bare: bool = False) -> tuple[str, str] | None:
    """Name and arguments' text of a whole object, its members in any order; None if it is no call.

    Arguments that were written as a string that holds an object count as that object. Of members given twice
    the first counts.

    Args:
        bare: a call may come without arguments.
    """
    members: dict[str, tuple[object, str]] = {}
    try:
        for key, value, written in _members(text):
            members.setdefault(key, (value, written))
    except (ValueError, IndexError, RecursionError):
        return None
    name, _ = members.get("name", (None, ""))
    value, written = next((members[key] for key in ARGUMENTS if key in members), (None, ""))
    if not isinstance(name, str) or not name or not _is_text(name):
        return None
    if value is None and bare:
        return name, "{}"
    if isinstance(value, str) and _is_text(value) and _is_object(value):
        return name, value.strip()
    return (name, written) if isinstance(value, dict) else None


def _members(text: str) -> Iterator[tuple[str, object, str]]:
    """Key, value and the value's text, one after the other.

    Raises:
        ValueError, IndexError, RecursionError: this is no JSON object.
    """
    at = _skip(text, 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _expect(text, at, ":")
        value, end = _DECODER.raw_decode(text, at)
        if not isinstance(key, str):
            raise ValueError("a key is no string")
        yield key, value, text[at:end]
        at = _skip(text, end)
        if text[at] != "}":
            at = _expect(text, at, ",")
            if text[at] == "}":
                raise ValueError("a comma before the end")


def _expect(text: str, at: int, char: str) -> int:
    at = _skip(text, at)
    if text[at] != char:
        raise ValueError(f"no {char}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _NOT_SPACE.search(text, at)
    return match.start() if match else len(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(strict=False, parse_int=len, parse_float=len, parse_constant=_no_constant)
"""Line breaks inside strings pass; what a number is worth does not matter, so it may be of any length."""


def _name_of(token: str) -> str | None:
    """The name a JSON string spells, if it is a string and spells one."""
    try:
        name = _DECODER.decode(token)
    except (ValueError, RecursionError):
        return None
    return name if isinstance(name, str) and name and _is_text(name) else None


def _is_text(text: str) -> bool:
    """No half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_object(text: str) -> bool:
    try:
        return isinstance(_DECODER.decode(text), dict)
    except (ValueError, RecursionError):
        return False
