"""Text in templates: what Python gives, within bounds, and with the marks of who wrote it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError

from llm.chat.sandbox.marked import USER, by_user, flags_of, join, plain
from llm.chat.sandbox.meter import Meter, Overrun
from llm.chat.sandbox.strings import METHODS, OPERATORS, percent, text_of

MIXED = st.lists(st.one_of(st.text("ab ,%\n", max_size=4), st.text("AB", max_size=4).map(by_user))).map(join)
ARGUMENTS: dict[str, list[tuple[Any, ...]]] = {
    **{name: [("a",), ("A", 1), ("aA",)] for name in ("startswith", "endswith", "find", "rfind", "count")},
    **{name: [(), ("a",), ("aB ",)] for name in ("strip", "lstrip", "rstrip")},
    **{name: [(), ("a",), (", ", 1), (None, 1)] for name in ("split", "rsplit")},
    **{name: [("a",), ("AB",)] for name in ("partition", "rpartition", "removeprefix", "removesuffix")},
    **{name: [("a",)] for name in ("index", "rindex")},
    "replace": [("a", "b"), ("A", "xy", 1), ("", "-")],
    "splitlines": [(), (True,)],
    "join": [(["x", "Y"],), ("xy",)],
}


@given(MIXED)
def test_methods_give_what_python_gives(text: str) -> None:
    for name in METHODS.keys() - {"format"}:
        for args in ARGUMENTS.get(name, [()]):
            try:
                expected = getattr(plain(text), name)(*args)
            except ValueError:
                with pytest.raises(ValueError):
                    METHODS[name](Meter(10**6), text, *args)
                continue
            got = METHODS[name](Meter(10**6), text, *args)
            assert got == expected and isinstance(got, type(expected)), (name, args)


@given(st.integers(-5, 5) | MIXED, st.integers(-5, 5) | MIXED)
def test_operators_give_what_python_gives(left: Any, right: Any) -> None:
    for sign in OPERATORS:
        bare = [plain(value) if isinstance(value, str) else value for value in (left, right)]
        if sign == "%" and isinstance(left, str):
            continue
        if sign == "**" and bare[0] == 0:
            continue
        try:
            expected = eval(f"left {sign} right", {"left": bare[0], "right": bare[1]})
        except (TypeError, ZeroDivisionError) as error:
            with pytest.raises(type(error)):
                OPERATORS[sign](Meter(10**6), left, right)
        else:
            assert OPERATORS[sign](Meter(10**6), left, right) == expected


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("%s and %s", ("a", 1)),
        ("%s", "one"),
        ("100%% %d", 7),
        ("%(a)s %(b)03d", {"a": "x", "b": 5}),
        ("%5.2f|%-5s|%x", (3.14159, "ab", 255)),
        ("none", ()),
        ("%s", [1, "b"]),
        ("%r", "q"),
    ],
)
def test_percent_gives_what_python_gives(form: str, values: Any) -> None:
    assert percent(Meter(1000), form, values) == form % values


@pytest.mark.parametrize(("form", "values"), [("%s %s", ("a",)), ("%s", ("a", "b")), ("%d", "a")])
def test_percent_wants_the_values_python_wants(form: str, values: Any) -> None:
    for fill in (lambda: form % values, lambda: percent(Meter(1000), form, values)):
        with pytest.raises(TypeError):
            fill()


def test_percent_and_format_keep_the_marks_of_what_they_place() -> None:
    filled = percent(Meter(1000), "<%s|%s>", ("t", by_user("U")))
    assert (filled, flags_of(filled)) == ("<t|U>", bytes([0, 0, 0, USER, 0]))
    placed = METHODS["format"](Meter(1000), "<{}{x}>", "t", x=by_user("U"))
    assert (placed, flags_of(placed)) == ("<tU>", bytes([0, 0, USER, 0]))
    padded = METHODS["format"](Meter(1000), "{:>3}", by_user("U"))
    assert (padded, flags_of(padded)) == ("  U", bytes([USER] * 3)), "what is not followed is the user's"


@pytest.mark.parametrize(
    "form", ["%999d", "%*d", "%.999f", "%c", "%", "%(a", "%" + "0" * 50 + "d", "%10000000000s"]
)
def test_percent_refuses_widths_that_fill_the_memory(form: str) -> None:
    with pytest.raises(SecurityError, match="cannot fill in"):
        percent(Meter(1000), form, (1, 1))


@pytest.mark.parametrize(
    "form", ["{:999}", "{0:{1}}", "{0.real}", "{0[1]}", "{!r}", "{:>99999999999}", "{0.__class__.__mro__}"]
)
def test_format_refuses_widths_and_reaching_inside(form: str) -> None:
    with pytest.raises(SecurityError, match="cannot fill in"):
        METHODS["format"](Meter(1000), form, 1, 2)


def test_lists_are_printed_as_python_prints_them_and_count_as_the_users() -> None:
    text = text_of(Meter(1000), [by_user("A"), {"b": (1, None)}])
    assert text == "['A', {'b': (1, None)}]"
    assert set(flags_of(text)) == {USER}


@pytest.mark.parametrize(
    ("sign", "left", "right"),
    [
        ("*", "a", 10**12),
        ("*", 10**12, "a"),
        ("*", [1], 10**12),
        ("**", 9, 9**9),
        ("**", 9**99, 9**99),
        ("*", 1 << 1000, 1 << 1000),
        ("+", "a" * 50_000, "b" * 50_000),
        ("+", [1] * 5_000, [2] * 5_000),
    ],
)
def test_operators_pay_before_they_work(sign: str, left: Any, right: Any) -> None:
    with pytest.raises(Overrun):
        OPERATORS[sign](Meter(5_000), left, right)


@pytest.mark.parametrize(
    ("name", "text", "args"),
    [
        ("replace", "a" * 1000, ("a", "b" * 1000)),
        ("join", "b" * 1000, ("a" * 1000,)),
        ("split", "a" * 30_000, ("a",)),
        ("split", "a " * 30_000, ()),
        ("rfind", "a" * 10_000, ("b" + "a" * 5_000,)),
        ("rsplit", "a" * 10_000, ("b" + "a" * 5_000,)),
    ],
)
def test_methods_pay_before_they_work(name: str, text: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(Overrun):
        METHODS[name](Meter(5_000), text, *args)


def test_join_names_the_item_that_is_no_text() -> None:
    with pytest.raises(TypeError, match="sequence item 1: expected str instance, int found"):
        METHODS["join"](Meter(100), ",", ["a", 1])
