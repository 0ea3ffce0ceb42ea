"""The filters and tests a chat template may use, each paid for beforehand.

Only what is listed here exists: what real templates use, without what is random (random), useless in a prompt
(urlize, xmlattr, filesizeformat) or only makes a text wider (center). `tojson` writes plain JSON, as Hugging
Face's renderer does: not HTML-safe, not ASCII only. `safe` and `string` are the same, since nothing is ever
escaped. Refuses to know messages and tokens.

    >>> list(FILTERS)[:3]
    ['trim', 'upper', 'lower']
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateRuntimeError, Undefined, filters, pass_context, tests
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from markupsafe import escape

from llm.chat.sandbox import marked
from llm.chat.sandbox.marked import absorb, plain
from llm.chat.sandbox.meter import Meter
from llm.chat.sandbox.strings import Operation, add, concat, joined, percent, replace, text_of, trim

METER = "@meter"
"""Where the context keeps the rendering's Meter: no template can spell this name."""
MAX_INDENT = 16
MAX_DIGITS = 256
MAX_ATTRIBUTE_CHARS = 200


def meter_of(context: Context) -> Meter:
    """The Meter of the rendering in progress."""
    meter = context.resolve_or_missing(METER)
    assert isinstance(meter, Meter)
    return meter


def _metered(operation: Operation) -> Operation:
    """(meter, value, ...) as jinja calls a filter: (context, value, ...).

    A filter that takes the context is also never run while jinja compiles, when nobody counts.
    """

    @pass_context
    def call(context: Context, value: object, /, *args: object, **kwargs: object) -> object:
        meter = meter_of(context)
        meter.spend(1)
        return operation(meter, value, *args, **kwargs)

    return call


def _of_text(change: Callable[[str], str]) -> Operation:
    """A filter that changes characters where they stand."""

    def apply(meter: Meter, value: object) -> str:
        text = text_of(meter, value)
        return marked.recase(text, change(plain(text)))

    return apply


def _unfollowed(change: Callable[..., Any], most: int = 1000) -> Operation:
    """A filter of text and small numbers whose result is at most a few times as long."""

    def apply(meter: Meter, value: object, *args: object, **kwargs: object) -> object:
        text = text_of(meter, value)
        for extra in (*args, *kwargs.values()):
            size = extra if isinstance(extra, int) else len(extra) if isinstance(extra, str) else 0
            if not -most <= size <= most:
                raise SecurityError(f"a filter's argument is beyond the limit of {most}")
        lines = plain(text).count("\n") + 1
        meter.hold(len(text) * 6 + lines * most)
        result = change(plain(text), *args, **kwargs)
        return absorb(result, text, *args, *kwargs.values()) if isinstance(result, str) else result

    return apply


def tojson(
    meter: Meter,
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The value as JSON."""
    before = meter.spent
    depth = meter.measure(value)
    width = indent if isinstance(indent, int) else len(indent or "")
    if width > MAX_INDENT or any(len(text) > MAX_INDENT for text in separators or ()):
        raise SecurityError(f"tojson indents by at most {MAX_INDENT} characters")
    meter.spend((meter.spent - before) * (1 + depth * max(0, width) // 16))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return absorb(text, value)


def _plainly(operation: Callable[..., Any]) -> Operation:
    """A filter or test that costs nothing and hands its values on as they are."""
    return lambda _, *args, **kwargs: operation(*args, **kwargs)


def _length(meter: Meter, value: Any) -> int:
    return len(value)


def _first(context: Context, value: Iterable[object]) -> object:
    return next(iter(value), context.environment.undefined("No first item, sequence was empty."))


def _last(context: Context, value: Any) -> object:
    return next(iter(reversed(value)), context.environment.undefined("No last item, sequence was empty."))


def _list(meter: Meter, value: Iterable[object]) -> list[object]:
    return list(meter.each(value, 4))


def _items(meter: Meter, value: Any) -> Iterator[tuple[object, object]]:
    if isinstance(value, Undefined):
        return iter(())
    if not isinstance(value, Mapping):
        raise TypeError("Can only get item pairs from a mapping.")
    return iter(value.items())


def _reverse(meter: Meter, value: Any) -> object:
    if isinstance(value, str):
        meter.hold(len(value))
        return value[::-1]
    return reversed(value) if isinstance(value, list | tuple | range | dict) else _list(meter, value)[::-1]


def _int(meter: Meter, value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str):
        value = plain(value) if len(value) <= MAX_DIGITS else ""
    return filters.do_int(value, default, base)


def _float(meter: Meter, value: Any, default: float = 0.0) -> float:
    return filters.do_float(plain(value) if isinstance(value, str) else value, default)


def _round(meter: Meter, value: Any, precision: int = 0, method: Any = "common") -> float:
    if not -15 <= precision <= 15:
        raise SecurityError("round takes a precision from -15 to 15")
    return filters.do_round(value, precision, method)


def _format(meter: Meter, value: object, /, *args: object, **kwargs: object) -> str:
    return percent(meter, text_of(meter, value), kwargs or args)


def _replace(meter: Meter, value: object, old: object, new: object, count: int | None = None) -> str:
    text = text_of(meter, value)
    return replace(meter, text, text_of(meter, old), text_of(meter, new), -1 if count is None else count)


def _trim(meter: Meter, value: object, chars: str | None = None) -> str:
    return trim(meter, text_of(meter, value), chars)  # type: ignore[no-any-return]


def _check_path(*paths: object) -> None:
    """An attribute's path is short: looking it up costs its length."""
    if any(isinstance(path, str) and len(path) > MAX_ATTRIBUTE_CHARS for path in paths):
        raise SecurityError(f"an attribute has at most {MAX_ATTRIBUTE_CHARS} characters")


def _walking(name: str, operation: Operation) -> Operation:
    """One of jinja's own filters over a sequence, which hands items to other filters, tests or attributes."""

    @pass_context
    def call(context: Context, value: Any, *args: Any, **kwargs: Any) -> object:
        if name == "map" and args and plain(str(args[0])).startswith("@"):
            raise TemplateRuntimeError(f"No filter named {args[0]!r}.")
        _check_path(kwargs.get("attribute"), *(args[:1] if name.endswith("attr") else ()))
        values = meter_of(context).walk(value) if value else value  # jinja takes None and 0 for an empty one
        return operation(context, values, *args, **kwargs)

    return call


def _comparing(operation: Operation) -> Operation:
    """One of jinja's own filters that compares the items of a sequence with each other."""

    @pass_context
    def call(context: Context, value: Any, *args: Any, **kwargs: Any) -> object:
        meter = meter_of(context)
        items = value if isinstance(value, dict) else _list(meter, value)
        before = meter.spent
        meter.measure(items)
        meter.spend((meter.spent - before) * (len(items) + 1).bit_length())
        _check_path(*args, *kwargs.values())
        return operation(context.environment, items, *args, **kwargs)

    return call


def _attributes(context: Context, value: Any, attribute: str | int | None) -> Iterable[Any]:
    values = meter_of(context).walk(value)
    if attribute is None:
        return values
    _check_path(attribute)
    return map(filters.make_attrgetter(context.environment, attribute), values)


@pass_context
def _join(context: Context, value: Any, d: object = "", attribute: str | int | None = None) -> str:
    meter = meter_of(context)
    parts = [text_of(meter, item) for item in _attributes(context, value, attribute)]
    return joined(meter, parts, text_of(meter, d))


@pass_context
def _sum(context: Context, value: Any, attribute: str | int | None = None, start: Any = 0) -> object:
    for item in _attributes(context, value, attribute):
        start = add(meter_of(context), start, item)
    return start


def _dictsort(_: object, value: Any, *args: Any, **kwargs: Any) -> object:
    return filters.do_dictsort(value, *args, **kwargs)


def _hypertext(text: str) -> str:
    return str(escape(text))


def _generation(meter: Meter, text: str) -> str:
    meter.hold(len(text))
    return marked.with_flag(text, marked.TRAINED)


def _weigh(meter: Meter, value: object) -> object:
    meter.measure(value)
    return value


def _sized(meter: Meter, value: Any) -> object:
    meter.hold(len(value) * (1 if isinstance(value, str) else 16))
    return value


def _tick(meter: Meter, units: int) -> None:
    meter.spend(units)


FILTERS: dict[str, Operation] = {
    "trim": _metered(_trim),
    "upper": _metered(_of_text(str.upper)),
    "lower": _metered(_of_text(str.lower)),
    "title": _metered(_of_text(filters.do_title)),
    "capitalize": _metered(_of_text(str.capitalize)),
    "string": _metered(text_of),
    "safe": _metered(text_of),
    "escape": _metered(_unfollowed(_hypertext)),
    "e": _metered(_unfollowed(_hypertext)),
    "indent": _metered(_unfollowed(filters.do_indent, 100)),
    "wordcount": _metered(_unfollowed(lambda text: len(re.findall(r"\w+", text)))),
    "replace": _metered(_replace),
    "format": _metered(_format),
    "join": _join,
    "tojson": _metered(tojson),
    "length": _metered(_length),
    "count": _metered(_length),
    "first": pass_context(_first),
    "last": pass_context(_last),
    "list": _metered(_list),
    "items": _metered(_items),
    "reverse": _metered(_reverse),
    "default": _metered(_plainly(filters.do_default)),
    "d": _metered(_plainly(filters.do_default)),
    "int": _metered(_int),
    "float": _metered(_float),
    "abs": _metered(lambda _, value: abs(value)),
    "round": _metered(_round),
    "sum": _sum,
    "map": _walking("map", filters.sync_do_map),
    "select": _walking("select", filters.sync_do_select),
    "reject": _walking("reject", filters.sync_do_reject),
    "selectattr": _walking("selectattr", filters.sync_do_selectattr),
    "rejectattr": _walking("rejectattr", filters.sync_do_rejectattr),
    "sort": _comparing(filters.do_sort),
    "unique": _comparing(filters.sync_do_unique),
    "min": _comparing(filters.do_min),
    "max": _comparing(filters.do_max),
    "dictsort": _comparing(_dictsort),
    # Written by llm.chat.sandbox, never by a template:
    "@text": _metered(text_of),
    "@concat": _metered(concat),
    "@weigh": _metered(_weigh),
    "@sized": _metered(_sized),
    "@each": _metered(Meter.each),
    "@tick": _metered(_tick),
    "@generation": _metered(_generation),
}
"""Name → filter, as jinja calls it."""


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return value


def _type_test(name: str) -> Operation:
    test: Any = tests.TESTS[name]
    return lambda _, value: test(value)


def _compared(test: Callable[[Any, Any], Any]) -> Operation:
    def apply(meter: Meter, value: object, other: object) -> Any:
        meter.measure((value, other))
        return test(value, other)

    return apply


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
_SYNONYMS = {"==": "eq", "equalto": "eq", "!=": "ne", ">": "gt", "greaterthan": "gt", ">=": "ge", "<": "lt"}
_SYNONYMS |= {"lessthan": "lt", "<=": "le"}
_TYPES = (
    *("defined", "undefined", "none", "boolean", "false", "true", "integer", "float", "string", "mapping"),
    *("number", "sequence", "iterable"),
)
TESTS: dict[str, Operation] = {
    **{name: _metered(_type_test(name)) for name in _TYPES},
    **{name: _metered(_compared(test)) for name, test in _COMPARISONS.items()},
    **{name: _metered(_compared(_COMPARISONS[meaning])) for name, meaning in _SYNONYMS.items()},
    "in": _metered(_compared(tests.test_in)),
    "sameas": _metered(lambda _, value, other: value is other),
    "odd": _metered(lambda _, value: _number(value) % 2 == 1),
    "even": _metered(lambda _, value: _number(value) % 2 == 0),
    "divisibleby": _metered(lambda _, value, num: _number(value) % _number(num) == 0),
    "lower": _metered(lambda meter, value: text_of(meter, value).islower()),
    "upper": _metered(lambda meter, value: text_of(meter, value).isupper()),
}
"""Name → test, as jinja calls it."""
