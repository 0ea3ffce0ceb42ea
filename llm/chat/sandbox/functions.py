"""The global functions a chat template may call, and the methods of lists and dicts, all paid for first.

>>> FUNCTIONS["range"](Meter(100), 3)
range(0, 3)
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from llm.chat.sandbox.marked import absorb, plain
from llm.chat.sandbox.meter import Meter
from llm.chat.sandbox.strings import Operation, text_of

MAX_RANGE = 100_000
_DATE = re.compile(r"(?:[^%]|%[-_0^#]?[A-Za-z%]){0,100}", re.DOTALL)


class Attributes(Namespace):
    """`namespace()`: what a template may assign to inside a loop. Printing it shows nothing of the inside."""

    def __repr__(self) -> str:
        return "<Attributes>"


class Refusal(TemplateRuntimeError):
    """The template called raise_exception."""


def _raise(meter: Meter, message: object = "") -> None:
    raise Refusal(plain(text_of(meter, message)))


def _strftime(meter: Meter, form: str) -> str:
    if not _DATE.fullmatch(form):
        raise SecurityError(f"cannot write the date as {form[:40]!r}")
    return absorb(datetime.now().strftime(plain(form)), form)


def _range(meter: Meter, *args: int) -> range:
    values = range(*args)
    if len(values) > MAX_RANGE:
        raise OverflowError(f"range has more than {MAX_RANGE} items")
    return values


def _dict(meter: Meter, /, *args: Any, **kwargs: object) -> dict[object, object]:
    meter.measure(args)
    meter.spend(1 + len(kwargs))
    return dict(*args, **kwargs)


def _namespace(meter: Meter, /, *args: Any, **kwargs: object) -> Attributes:
    return Attributes(_dict(meter, *args, **kwargs))


FUNCTIONS: dict[str, Operation] = {
    "raise_exception": _raise,
    "strftime_now": _strftime,
    "range": _range,
    "dict": _dict,
    "namespace": _namespace,
}
"""Name → (meter, *arguments) → result: the global functions."""


def _get(meter: Meter, mapping: dict[Any, object], key: object, default: object = None) -> object:
    meter.measure(key)
    return mapping.get(key, default)


def _view(name: str) -> Operation:
    method = getattr(dict, name)
    return lambda meter, mapping: method(mapping)


def _searching(kind: type, name: str) -> Operation:
    method = getattr(kind, name)

    def search(meter: Meter, values: Any, *args: object) -> object:
        meter.measure([values, *args])
        return method(values, *args)

    return search


DICT_METHODS: dict[str, Operation] = {
    **{name: _view(name) for name in ("keys", "values", "items")},
    "get": _get,
    "copy": _dict,
}
LIST_METHODS = {name: _searching(list, name) for name in ("index", "count")}
TUPLE_METHODS = {name: _searching(tuple, name) for name in ("index", "count")}
