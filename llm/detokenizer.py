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
        longest = min(len(text), max(map(len, self.stop), default=0) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self.stop)), 0)


class Detokenizer:
    """Ids to text: UTF-8 across token borders, stop strings, and (for chat) no leading whitespace.

    Args:
        token_bytes: the exact bytes of one id.
        stop: strings that end the text.
        strip_start: drop whitespace before the first other character.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], stop: Sequence[str] = (), *, strip_start: bool = False
    ) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = StopStrings(stop)
        self._strip = strip_start

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.matched

    def feed(self, token_ids: Iterable[int]) -> str:
        """New text that is certain by now, often one token's, sometimes none."""
        return self._trim(self._stop.feed(self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))))

    def flush(self) -> str:
        """The rest: held text, and U+FFFD for a character that was never completed."""
        rest = self._stop.feed(self._decoder.decode(b"", final=True))
        return self._trim(rest + self._stop.flush())

    def _trim(self, text: str) -> str:
        if self._strip and text:
            text = text.lstrip()
            self._strip = not text
        return text
