"""Text to token ids and ids to bytes, for every vocabulary a checkpoint may bring.

Refuses to know the network, pickles and chat: ordinary text never becomes a control token; only a template
puts one in a prompt, by its spelling in `control`. Byte-level BPE runs on tiktoken where its ids are proved
equal to the source's own merges (`byte_level`), everything else on the tokenizers library (`hf`).

    >>> tokenizer = load_tiktoken("checkpoints/causette/tokenizer.tiktoken")
    >>> tokenizer.encode(" a token")
    [257, 11241]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from llm.tokenizer.bpe import END_OF_TEXT, TiktokenTokenizer, dump_tiktoken, load_tiktoken

__all__ = [
    "END_OF_TEXT",
    "ByteTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "dump_tiktoken",
    "load_tiktoken",
]


class Tokenizer(Protocol):
    """What the rest of the model side needs from a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1; a model may have more rows (padding), never drawn."""

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a document, if the vocabulary has one."""

    @property
    def begin_of_text(self) -> int | None:
        """The id every sequence was trained to begin with, when the checkpoint says so."""

    @property
    def longest_token(self) -> int:
        """Bytes of text one id stands for, at most: n × this many bytes and one more have more than n ids.

        Characters a vocabulary cannot write are left out, and out of this account.
        """

    @property
    def control(self) -> Mapping[str, int]:
        """Spelling → id of control tokens; only a template puts them in a prompt."""

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        """Ids of ordinary text; markers such as "<|endoftext|>" are text like any other.

        Args:
            text: any str; lone surrogates become U+FFFD or "?".
            continued: tokens come before. Matters only to a vocabulary that writes a space before the first
                word of a text.
        """

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one id; b"" for an id that is no text (a marker, or padding)."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, incomplete UTF-8 replaced by U+FFFD."""


class ByteTokenizer:
    """256 bytes and an end-of-text id: the tokenizer of tests and tiny models, no file needed."""

    vocab_size = 257
    end_of_text: int | None = 256
    begin_of_text: int | None = None
    longest_token = 1
    control: Mapping[str, int] = MappingProxyType({})

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")
