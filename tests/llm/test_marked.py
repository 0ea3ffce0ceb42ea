"""Marked text: every operation gives what str gives, and each character keeps who wrote it.

In these tests users write capitals and the em space, templates everything else, so the marks can be read off
the text.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm.chat.sandbox.marked import (
    TRAINED,
    USER,
    Marked,
    absorb,
    by_user,
    flags_of,
    join,
    plain,
    recase,
    replace,
    split,
    splitlines,
    strip,
    with_flag,
)

USERS = "AB\u2003\u2028"
TEMPLATES = "ab \n,"
MIXED = st.lists(st.one_of(st.text(TEMPLATES, max_size=4), st.text(USERS, max_size=4).map(by_user))).map(join)
SHORT = st.text(USERS + TEMPLATES, min_size=1, max_size=2)


def assert_right(marked: str, expected: str) -> None:
    """The text is what str gives, and the marks are what the characters say."""
    assert plain(marked) == expected
    assert flags_of(marked) == bytes(char in USERS for char in expected)


@given(MIXED)
def test_a_marked_text_is_the_text(text: str) -> None:
    assert_right(text, plain(text))
    assert text == plain(text) and hash(text) == hash(plain(text)) and repr(text) == repr(plain(text))
    assert type(plain(text)) is str
    assert str(text) is text, "printing does not lose the marks"
    assert {text: 1}[plain(text)] == 1


@given(MIXED, st.integers(-9, 9), st.none() | st.integers(-9, 9), st.sampled_from([1, 2, -1, -2]))
def test_slices_and_elements(text: str, start: int, stop: int | None, step: int) -> None:
    assert_right(text[start:stop:step], plain(text)[start:stop:step])
    if -len(text) <= start < len(text):
        assert_right(text[start], plain(text)[start])
    for char, expected in zip(text, plain(text), strict=True):
        assert_right(char, expected)
    for char, expected in zip(reversed(text), reversed(plain(text)), strict=True):
        assert_right(char, expected)


@given(MIXED, SHORT | st.none(), st.booleans(), st.booleans())
def test_strip(text: str, chars: str | None, left: bool, right: bool) -> None:
    expected = plain(text)
    expected = expected.lstrip(chars) if left else expected
    expected = expected.rstrip(chars) if right else expected
    assert_right(strip(text, chars, left=left, right=right), expected)


@given(MIXED, SHORT | st.none(), st.integers(-2, 3))
def test_split(text: str, separator: str | None, limit: int) -> None:
    for pieces, expected in (
        (split(text, separator, limit), plain(text).split(separator, limit)),
        (split(text, separator, limit, right=True), plain(text).rsplit(separator, limit)),
    ):
        assert len(pieces) == len(expected)
        for piece, whole in zip(pieces, expected, strict=True):
            assert_right(piece, whole)


@given(MIXED, st.booleans())
def test_splitlines(text: str, keepends: bool) -> None:
    lines, expected = splitlines(text, keepends), plain(text).splitlines(keepends)
    assert len(lines) == len(expected)
    for line, whole in zip(lines, expected, strict=True):
        assert_right(line, whole)


@given(MIXED, SHORT, MIXED, st.integers(-1, 3))
def test_replace(text: str, old: str, new: str, count: int) -> None:
    assert_right(replace(text, old, new, count), plain(text).replace(old, plain(new), count))


@given(st.lists(MIXED), MIXED)
def test_join(parts: list[str], between: str) -> None:
    assert_right(join(parts, between), plain(between).join(map(plain, parts)))


def test_what_cannot_be_followed_counts_as_the_users() -> None:
    mixed = join(["a", by_user("B")])
    assert flags_of(absorb("xy", mixed, "a")) == bytes([USER, USER])
    assert flags_of(absorb("xy", ["a"])) == bytes([USER, USER]), "a list may hold anything"
    assert type(absorb("xy", "a", 1, 2.0, True, None)) is str
    assert flags_of(absorb("x", with_flag("a", TRAINED))) == bytes([TRAINED])
    assert flags_of(replace(mixed, "", "-")) == bytes([USER]) * 5


def test_a_change_of_case_keeps_places_when_it_keeps_the_length() -> None:
    mixed = join(["a", by_user("ß")])
    assert flags_of(recase(mixed, "Aẞ")) == bytes([0, USER])
    assert flags_of(recase(mixed, "ASS")) == bytes([USER] * 3)


def test_flags_add_up() -> None:
    text = with_flag(join(["a", by_user("B")]), TRAINED)
    assert isinstance(text, Marked)
    assert text.flags == bytes([TRAINED, USER | TRAINED])
