"""Model output is hostile: nothing that steers a terminal reaches it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.chat.safe_text import MAX_ZERO_WIDTH, Cleaner, harmless, one_line, sendable

ATTACKS = {
    "a colour": "\x1b[31mred",
    "the clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "a link": "\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\",
    "a title": "\x9d0;title\x9c",
    "a clear screen": "\x9b2J",
    "an answer to type": "\x1b[6n\x05",
    "writing over a line": "rm -rf /\rls       ",
    "going back": "evil\b\b\b\bgood",
    "another alphabet": "\x0e\x0f",
    "an override": "\u202eevil\u202c \u2066x\u2069 \u200fy\u061c",
    "a line end of another kind": "a\u2028b\u2029c\x85d\x0be\x0c",
    "half a pair": "\ud800",
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_what_steers_a_terminal_is_shown_instead(text: str) -> None:
    shown = harmless(text)
    assert all(is_harmless(character) for character in shown), ascii(shown)
    assert all(character in shown for character in text if character.isascii() and character.isalnum())


def is_harmless(character: str) -> bool:
    """The slow, obvious statement of it."""
    if character in "\t\n":
        return True
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in "\u061c\u200e\u200f":
        return False
    return unicodedata.bidirectional(character) not in (
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    )


@given(st.text(st.characters(), max_size=40))
def test_any_text_comes_out_harmless(text: str) -> None:
    assert all(map(is_harmless, harmless(text)))
    shown = harmless(text).encode()  # and can be written
    assert b"\x1b" not in shown


@given(st.lists(st.text(st.sampled_from("a\x1b\u0301\u200d\u202e\r\n"), max_size=12), max_size=5))
def test_however_it_is_cut_it_comes_out_the_same(pieces: list[str]) -> None:
    cleaner = Cleaner()
    assert "".join(map(cleaner.feed, pieces)) == harmless("".join(pieces))


def test_a_piece_of_which_nothing_is_shown_ends_no_flood() -> None:
    cleaner = Cleaner()
    flood = "\u200b" * MAX_ZERO_WIDTH
    assert [cleaner.feed(piece) for piece in (flood, "\r", "", flood)] == [flood, "", "", "<…>"]


@pytest.mark.parametrize(
    "text",
    [
        "tabs\tand\nlines",
        "Ünïcödé, e\u0301, €, 中文, العربية, हिन्दी, שָׁלוֹם",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England's flag, six tags
    ],
)
def test_what_people_write_passes_as_it_is(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize("character", ["\u200b", "\u0301", "\ufeff", "\U000e0041", "\u2064", "\u1160"])
def test_a_flood_without_width_is_cut(character: str) -> None:
    shown = harmless("a" + character * 100_000 + "b")
    assert shown == "a" + character * MAX_ZERO_WIDTH + "<…>b"


def test_a_hundred_thousand_characters_on_a_line_pass() -> None:
    assert harmless("x" * 100_000) == "x" * 100_000


def test_a_line_end_of_windows_is_a_line_end() -> None:
    assert harmless("a\r\nb") == "a\nb"


def test_a_foreign_message_is_one_short_line() -> None:
    assert one_line("no\n\x1b[1m  model\t'x'") == "no ␛[1m model 'x'"
    assert len(one_line("x" * 1_000_000)) < 700


def test_what_utf8_cannot_carry_is_not_sent() -> None:
    assert sendable("a\ud800b\udc80") == "a\ufffdb\ufffd"
    assert sendable("\ud83d" + "\ude00") == "\U0001f600", "halves that came apart are joined"
