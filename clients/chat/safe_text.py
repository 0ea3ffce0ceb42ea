"""Text of a model, a server or a file, made harmless for a terminal.

    >>> harmless("\\x1b]52;c;aGk=\\x07 \\u202eevil")
    '␛]52;c;aGk=␇ <U+202E>evil'

What steers a terminal or reorders its line is shown instead of obeyed: control characters as their pictures,
direction controls by their number. Characters without a width of their own pass as far as writing needs them,
since a flood of them stalls a terminal or hides text. Refuses to know who wrote the text, and changes nothing
of what is sent or saved: `sendable` alone does that, for what UTF-8 cannot carry.
"""

from __future__ import annotations

import unicodedata

MAX_ZERO_WIDTH = 8
"""In a row: a flag of tags takes 6, pointed Hebrew with accents 4; stacked marks and hidden text more."""

_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: "\u2421"}
_PICTURES |= {code: f"<U+{code:04X}>" for code in range(0x80, 0xA0)}
_PICTURES[ord("\r")] = ""  # half of a line's end; alone it would write over the line
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_ENDS = (0x2028, 0x2029)
_PICTURES |= {code: f"<U+{code:04X}>" for code in (*_DIRECTIONS, *_LINE_ENDS)}
_PICTURES |= {code: "\ufffd" for code in range(0xD800, 0xE000)}  # no terminal can be sent half a pair

_ZERO_WIDTH = ("Mn", "Me", "Cf")
_ZERO_WIDTH_RANGES = ((0x1160, 0x11FF), (0x2060, 0x206F), (0xE0000, 0xE0FFF))
"""Beside those categories: jamo that join the one before, and what is reserved to be invisible."""


class Cleaner:
    """Makes pieces of one text harmless, however it was cut."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def feed(self, piece: str) -> str:
        """The piece as it may be shown."""
        shown = piece.translate(_PICTURES)
        if shown.isascii():
            self._in_a_row = 0 if shown else self._in_a_row
            return shown
        return "".join(map(self._pass, shown))

    def _pass(self, character: str) -> str:
        """The character; of a long row without width the first ones, then once that there were more."""
        if not _is_zero_width(character):
            self._in_a_row = 0
            return character
        self._in_a_row += 1
        if self._in_a_row > MAX_ZERO_WIDTH:
            return "<…>" if self._in_a_row == MAX_ZERO_WIDTH + 1 else ""
        return character


def harmless(text: str) -> str:
    """A whole text as it may be shown."""
    return Cleaner().feed(text)


def one_line(text: str, limit: int = 600) -> str:
    """A foreign message as one harmless line; what is longer than `limit` characters is cut."""
    text = " ".join(text[: 4 * limit].split())
    return harmless(text if len(text) <= limit else text[:limit] + " …")


def sendable(text: str) -> str:
    """The text as UTF-8 can carry it: two halves of a pair become their character, a lone one U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_zero_width(character: str) -> bool:
    code = ord(character)
    if code < 0x300 and code != 0xAD:
        return False
    return unicodedata.category(character) in _ZERO_WIDTH or any(
        first <= code <= last for first, last in _ZERO_WIDTH_RANGES
    )
