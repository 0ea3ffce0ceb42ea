"""Token bytes to text as they come: whole characters only, and nothing of a stop string.

Two small machines with `feed` and `flush`. A piece of text is held back only while it could still become
part of something: an incomplete UTF-8 character, or a suffix that is a proper prefix of a stop string.
Feeding the same bytes in any portions gives the same total.

    >>> machine = Detokenizer(tokenizer.token_bytes, stop=("\\n",))
    >>> machine.feed([15496]), machine.feed([198]), machine.stopped
    ('Hello', '', '\\n')
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence


class StopStrings:
    """Passes text through until one of the strings occurs; nothing of it, or after it, leaves."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.matched: str | None = None
        self._held = ""
        self._heads = frozenset(string[0] for string in stop)
        self._most_held = max(map(len, stop), default=0) - 1

    def feed(self, text: str) -> str:
        """Text that can no longer be part of a stop string."""
        if self.matched is not None:
            return ""
        text = self._held + text
        start = len(text) - self._could_begin(text)  # where a stop string may have begun that is not here yet
        if (found := self._first(text)) is not None and found[0] <= start:
            at, self.matched = found
            self._held = ""
            return text[:at]
        self._held = text[start:]
        return text[:start]

    def flush(self) -> str:
        """What was held, once nothing more can come: up to the stop string that one begun before it hid."""
        held, self._held = self._held, ""
        if (found := self._first(held)) is None:
            return held
        at, self.matched = found
        return held[:at]

    def _first(self, text: str) -> tuple[int, str] | None:
        """Place and name of the earliest stop string; of two at one place, the longer."""
        found = [(at, -len(stop), stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        return (min(found)[0], min(found)[2]) if found else None

    def _could_begin(self, text: str) -> int:
        """Length of the longest suffix that is a proper prefix of some stop string."""
        tail = text[-self._most_held :] if self._most_held > 0 else ""
        if self._heads.isdisjoint(tail):  # nearly always
            return 0
        longest = len(tail)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(tail[-n:]) for s in self.stop)), 0)


class Detokenizer:
    """Ids to text: UTF-8 across token borders, stop strings, and (for chat) no leading whitespace.

    Args:
        token_bytes: the exact bytes of one id.
        stop: strings that end the text.
        strip_start: drop whitespace before the first other character.

    Attributes:
        num_decoded: characters that the ids so far spell.
        num_passed: how many of them have left, or were dropped as leading whitespace.
        num_trimmed_bytes: UTF-8 bytes of that whitespace.
        is_trimming: only whitespace has come so far, and more would be dropped too.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], stop: Sequence[str] = (), *, strip_start: bool = False
    ) -> None:
        self._token_bytes = token_bytes
        self._bytes = b""  # of a character that is not complete
        self._stop = StopStrings(stop)
        self.is_trimming = strip_start
        self.num_decoded = 0
        self.num_passed = 0
        self.num_trimmed_bytes = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.matched

    def feed(self, token_ids: Iterable[int], *, may_stop: bool = True) -> str:
        """New text that is certain by now, often one token's, sometimes none.

        Args:
            may_stop: look for stop strings; once they have been, they are from then on.
        """
        text = self._decode(b"".join(map(self._token_bytes, token_ids)))
        return self._pass(self._stop.feed(text) if may_stop and self._stop.stop else text)

    def flush(self) -> str:
        """The rest: held text, and U+FFFD for a character that was never completed."""
        rest = self._decode(b"", final=True)
        return self._pass(self._stop.feed(rest) + self._stop.flush())

    def _decode(self, data: bytes, *, final: bool = False) -> str:
        """Whole characters: what `codecs` has an incremental decoder for, without its 0.7 µs a token."""
        data = self._bytes + data if self._bytes else data
        text, num_used = codecs.utf_8_decode(data, "replace", final)
        self._bytes = data[num_used:]
        self.num_decoded += len(text)
        return text

    def _pass(self, text: str) -> str:
        self.num_passed += len(text)
        if self.is_trimming and text:
            kept = text.lstrip()
            self.num_trimmed_bytes += len(text[: len(text) - len(kept)].encode())
            self.is_trimming = not kept
            return kept
        return text
