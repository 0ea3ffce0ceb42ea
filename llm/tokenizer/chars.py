"""One id per character: nanoGPT's character-level models, whose vocabulary is the training text's characters.

Refuses to know files: whoever reads nanoGPT's `meta.pkl` hands over the characters.

    >>> CharTokenizer("\\n ab").encode("a b")
    [2, 1, 3]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


class CharTokenizer:
    """Characters to ids and back, exact for every text written in the vocabulary.

    A character it does not know is left out: the model has no id for it, and none that means "unknown"
    (nanoGPT's own encoder raises KeyError). No end of text, no control tokens.

    Args:
        chars: the character of each id, from 0 upwards.

    Raises:
        ValueError: none at all, one twice, or an entry that is not one character of Unicode text.
    """

    end_of_text: int | None = None
    begin_of_text: int | None = None
    control: Mapping[str, int] = MappingProxyType({})

    def __init__(self, chars: Sequence[str]) -> None:
        for token_id, char in enumerate(chars):
            if not isinstance(char, str) or len(char) != 1 or "\ud800" <= char <= "\udfff":
                raise ValueError(f"token {token_id} must be one character, got {repr(char)[:64]}")
        self._ids = {char: token_id for token_id, char in enumerate(chars)}
        if not chars or len(self._ids) < len(chars):
            raise ValueError(f"{len(chars)} tokens, {len(self._ids)} different ones: expected each once")
        self._bytes = [char.encode() for char in chars]
        self.vocab_size = len(chars)
        self.longest_token = max(map(len, self._bytes))

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        return [self._ids[char] for char in text if char in self._ids]

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode()
