"""What a chat template may do with text: operators, formatting and str's methods, each paid for beforehand.

Only what is listed here exists. Methods that only make a text wider (center, ljust, zfill, expandtabs) do
not: their one argument is all it takes to fill the memory. Results keep the marks of marked.py. Refuses
to know templates.

    >>> METHODS["upper"](Meter(100), "hi")
    'HI'
"""

from __future__ import annotations

import operator
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError

from llm.chat.sandbox import marked
from llm.chat.sandbox.marked import absorb, plain
from llm.chat.sandbox.meter import VIEWS, Meter

Operation = Callable[..., Any]

MAX_STRIP_CHARS = 256
_DIRECTIVE = re.compile(r"%(?:\((\w{1,64})\))?([-+ #0]{0,3}\d{0,2}(?:\.\d{0,2})?[sdifgeEGXxro%])?")
_SPEC = re.compile(r"(?:[ <>^=+0-]{0,3}\d{0,2}(?:\.\d{1,2})?[,_]?[sdfgeExX%]?)?")
_SCALARS = (bool, int, float, type(None))


def text_of(meter: Meter, value: object) -> str:
    """What printing the value writes. A list or a dict counts as the user's, since it may hold such text."""
    if isinstance(value, str):
        meter.hold(len(value))
        return value
    if isinstance(value, (*_SCALARS, Undefined)):
        meter.spend(1)
        return str(value)
    if isinstance(value, (dict, list, tuple, range, *VIEWS)):
        meter.measure(value)
        text = str(value)
        meter.hold(len(text))
        return absorb(text, value)
    return f"<{type(value).__name__}>"


def concat(meter: Meter, values: Iterable[object]) -> str:
    """`a ~ b ~ c`."""
    return joined(meter, [text_of(meter, value) for value in values])


def joined(meter: Meter, parts: Sequence[str], between: str = "") -> str:
    """The parts with `between` between them."""
    meter.hold(sum(map(len, parts)) + len(between) * len(parts))
    return marked.join(parts, between)


def add(meter: Meter, left: Any, right: Any) -> Any:
    """`left + right` of two texts, two lists or two numbers."""
    if isinstance(left, str) and isinstance(right, str):
        return joined(meter, [left, right])
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        meter.spend(1 + len(left) + len(right))
    return numeric(meter, operator.add, left, right)


def multiply(meter: Meter, left: Any, right: Any) -> Any:
    """`left * right` of two numbers, or of a text or list and a number."""
    if isinstance(left, int) and isinstance(right, str | list | tuple):
        left, right = right, left
    if isinstance(left, str | list | tuple) and isinstance(right, int):
        meter.hold(len(left) * max(0, right) * (1 if isinstance(left, str) else 16))
        if isinstance(left, marked.Marked):
            return marked.Marked(plain(left) * right, left.flags * right)
        return left * right
    return numeric(meter, operator.mul, left, right)


def power(meter: Meter, left: Any, right: Any) -> Any:
    """`left ** right` of two numbers."""
    if isinstance(left, int) and isinstance(right, int):
        meter.number(left.bit_length() * max(0, right))
    return numeric(meter, operator.pow, left, right)


def remainder(meter: Meter, left: Any, right: Any) -> Any:
    """`left % right`: of numbers, or a text to fill in."""
    if isinstance(left, str):
        return percent(meter, left, right)
    return numeric(meter, operator.mod, left, right)


def numeric(meter: Meter, operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """An operator on two values that are small, or that it does not know."""
    for value in (left, right):
        if isinstance(value, int):
            meter.number(value.bit_length())
    if isinstance(left, str):
        left = plain(left)  # errors name the type
    if isinstance(right, str):
        right = plain(right)
    result = operation(left, right)
    if isinstance(result, int):
        meter.number(result.bit_length())
    return result


def percent(meter: Meter, text: str, values: Any) -> str:
    """`text % values`, piece by piece. Widths and precisions have at most two digits.

    Raises:
        SecurityError: a directive that is not of this kind.
        TypeError: too few or too many values.
    """
    meter.hold(len(text))
    given = list(values) if isinstance(values, tuple) else [values]
    parts, end = [], 0
    for match in _DIRECTIVE.finditer(plain(text)):
        parts.append(text[end : match.start()])
        end = match.end()
        name, directive = match[1], match[2]
        if directive is None:
            raise SecurityError(f"cannot fill in {plain(text)[match.start() :][:16]!r}")
        if directive == "%":
            parts.append(text[end - 1 : end])
        elif name is not None:
            parts.append(_filled(meter, values[name], directive))
        elif given:
            parts.append(_filled(meter, given.pop(0), directive))
        else:
            raise TypeError("not enough arguments for format string")
    if given and not isinstance(values, Mapping):
        raise TypeError("not all arguments converted during string formatting")
    return joined(meter, [*parts, text[end:]])


def _filled(meter: Meter, value: object, directive: str) -> str:
    text = text_of(meter, value)
    if directive == "s":
        return text
    if directive.endswith("s"):
        return absorb(f"%{directive}" % (plain(text),), text)
    return absorb(f"%{directive}" % (value,), text)


def braces(meter: Meter, text: str, /, *values: Any, **named: Any) -> str:
    """str.format with plain fields: `{}`, `{0}`, `{name}`, a width and precision of at most two digits.

    Raises:
        SecurityError: a field that reaches into its value, or a specification that is not of this kind.
    """
    meter.hold(len(text))
    parts: list[str] = []
    automatic = 0
    for literal, field, spec, conversion in string.Formatter().parse(plain(text)):
        parts.append(absorb(literal, text))
        if field is None:
            continue
        if not (field == "" or field.isidentifier() or (field.isdecimal() and len(field) < 4)):
            raise SecurityError(f"cannot fill in the field {field[:40]!r}")
        if conversion not in (None, "s") or not _SPEC.fullmatch(spec or ""):
            raise SecurityError(f"cannot fill in the format {(spec or conversion or '')[:40]!r}")
        value = named[field] if field.isidentifier() else values[int(field) if field else automatic]
        automatic += field == ""
        parts.append(_formatted(meter, value, spec or ""))
    return joined(meter, parts)


def _formatted(meter: Meter, value: object, spec: str) -> str:
    text = text_of(meter, value)
    if not spec:
        return text
    return absorb(format(value if isinstance(value, _SCALARS) else plain(text), spec), text)


def _cased(name: str) -> Operation:
    method = getattr(str, name)

    def change(meter: Meter, text: str) -> str:
        meter.hold(len(text))
        return marked.recase(text, method(text))

    return change


def _asked(name: str) -> Operation:
    """A method whose answer is a number or a bool."""
    method = getattr(str, name)
    backwards = name in ("rfind", "rindex")  # these may compare the whole needle at every place

    def ask(meter: Meter, text: str, *values: Any) -> Any:
        meter.measure(values)
        needle = len(values[0]) if backwards and values else 0
        meter.hold(len(text) * (1 + needle))
        return method(text, *values)

    return ask


def _stripped(*, left: bool, right: bool) -> Operation:
    def strip(meter: Meter, text: str, chars: str | None = None) -> str:
        meter.hold(len(text))
        if chars is not None and len(chars) > MAX_STRIP_CHARS:
            raise SecurityError(f"strip takes at most {MAX_STRIP_CHARS} characters")
        return marked.strip(text, None if chars is None else plain(chars), left=left, right=right)

    return strip


trim = _stripped(left=True, right=True)


def _splitter(*, right: bool) -> Operation:
    def split(meter: Meter, text: str, sep: str | None = None, maxsplit: int = -1) -> Sequence[str]:
        meter.hold(len(text) * (1 + len(sep or "") if right else 1))
        meter.spend(4 * plain(text).count(sep) if sep else len(text) // 4)
        return marked.split(text, sep and plain(sep), maxsplit, right=right)

    return split


def _splitlines(meter: Meter, text: str, keepends: bool = False) -> Sequence[str]:
    meter.spend(1 + len(text))
    return marked.splitlines(text, bool(keepends))


def _parted(*, right: bool) -> Operation:
    split = _splitter(right=right)

    def part(meter: Meter, text: str, sep: str) -> tuple[str, str, str]:
        first, *rest = split(meter, text, sep, 1)
        if rest:
            return first, text[len(first) : len(first) + len(sep)], rest[0]
        return ("", "", text) if right else (text, "", "")

    return part


def replace(meter: Meter, text: str, old: str, new: str, count: int = -1) -> str:
    """str.replace."""
    places = plain(text).count(old)
    meter.hold(len(text))
    meter.hold(places * (len(new) + 64))
    return marked.replace(text, old, new, count)


def _join(meter: Meter, text: str, values: Iterable[object]) -> str:
    parts: list[str] = []
    for i, value in enumerate(meter.walk(values)):
        if not isinstance(value, str):
            raise TypeError(f"sequence item {i}: expected str instance, {type(value).__name__} found")
        parts.append(value)
    return joined(meter, parts, text)


def _without(*, left: bool) -> Operation:
    def without(meter: Meter, text: str, affix: str) -> str:
        meter.hold(len(affix))
        if not (affix and (text.startswith(affix) if left else text.endswith(affix))):
            return text
        return text[len(affix) :] if left else text[: -len(affix)]

    return without


METHODS: dict[str, Operation] = {
    **{name: _cased(name) for name in ("lower", "upper", "title", "capitalize", "swapcase", "casefold")},
    **{
        name: _asked(name)
        for name in (
            *("startswith", "endswith", "find", "rfind", "index", "rindex", "count"),
            *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace"),
            *("istitle", "isupper"),
        )
    },
    "strip": trim,
    "lstrip": _stripped(left=True, right=False),
    "rstrip": _stripped(left=False, right=True),
    "split": _splitter(right=False),
    "rsplit": _splitter(right=True),
    "splitlines": _splitlines,
    "partition": _parted(right=False),
    "rpartition": _parted(right=True),
    "replace": replace,
    "join": _join,
    "removeprefix": _without(left=True),
    "removesuffix": _without(left=False),
    "format": braces,
}
"""Name → (meter, text, *arguments) → result: the methods of str that a template may call."""
OPERATORS: dict[str, Operation] = {
    "+": add,
    "*": multiply,
    "**": power,
    "%": remainder,
    "-": lambda meter, left, right: numeric(meter, operator.sub, left, right),
    "/": lambda meter, left, right: numeric(meter, operator.truediv, left, right),
    "//": lambda meter, left, right: numeric(meter, operator.floordiv, left, right),
}
"""Sign → (meter, left, right) → result."""
