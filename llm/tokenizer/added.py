"""Tokens that were added to a vocabulary: found in text by their spelling, before anything else is cut.

A special one is control: it is found, so that no other token begins inside it, but the text stays text.
What is not special (`<think>`, runs of spaces) becomes its id in any text, as in the reference library.
Refuses to know how the text between is encoded.

    >>> list(AddedTokens([AddedToken("<think>", 7)]).split("so <think>x"))
    ['so ', 7, 'x']
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import normalizers

_NFC = normalizers.NFC()  # the reference's own Unicode tables; Python's are older


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One added token.

    Attributes:
        content: its spelling, not empty.
        id: its id.
        special: control: never found in text.
        normalized: looked for after normalisation, itself normalised; otherwise in the text as it came.
        strips: takes whitespace beside it, or wants a word border, which only the library does.
    """

    content: str
    id: int
    special: bool = False
    normalized: bool = False
    strips: bool = False


def replace_surrogates(text: str) -> str:
    """Valid Unicode: surrogate pairs joined, lone surrogates U+FFFD. They come from JSON escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def to_nfc(text: str) -> str:
    """Unicode's composed form."""
    return text if text.isascii() else _NFC.normalize_str(text)


class AddedTokens:
    """Cuts text at added tokens, and normalises what is between them.

    Args:
        tokens: all of them, the special ones included.
        nfc: whether text is brought into Unicode's composed form.
    """

    def __init__(self, tokens: Iterable[AddedToken], nfc: bool = False) -> None:
        tokens = list(tokens)
        self._normalise = to_nfc if nfc else str
        self._as_is = _Spellings({t.content: _found(t) for t in tokens if not t.normalized})
        self._normalised = _Spellings({self._normalise(t.content): _found(t) for t in tokens if t.normalized})

    def split(self, text: str) -> Iterator[str | int]:
        """Stretches of ordinary text, none empty, and the ids between them."""
        for part in self._as_is.split(text):
            if isinstance(part, int):
                yield part
            else:
                yield from self._normalised.split(self._normalise(part))


def _found(token: AddedToken) -> int | None:
    return None if token.special else token.id


class _Spellings:
    """Leftmost, then longest, of some strings; None marks one that is passed over as text."""

    def __init__(self, ids: dict[str, int | None]) -> None:
        self._ids = ids
        longest_first = sorted(ids, key=len, reverse=True)
        useful = any(found is not None for found in ids.values())
        self._regex = re.compile("|".join(map(re.escape, longest_first))) if useful else None

    def split(self, text: str) -> Iterator[str | int]:
        start = 0
        for match in self._regex.finditer(text) if self._regex else ():
            found = self._ids[match.group()]
            if found is None:
                continue
            if start < match.start():
                yield text[start : match.start()]
            yield found
            start = match.end()
        if start < len(text):
            yield text[start:]
