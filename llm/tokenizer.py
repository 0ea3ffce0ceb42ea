"""Text to token ids and ids to bytes, from a file on disk.

Refuses to know the network (tiktoken's own `get_encoding` downloads; we build the Encoding ourselves),
pickles, and chat: user text is always encoded without special tokens, so nothing a user types becomes a
control token.

    >>> tokenizer = load_tiktoken("checkpoints/causette/tokenizer.tiktoken")
    >>> tokenizer.encode(" a token")
    [257, 11241]
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from llm.errors import CheckpointError

END_OF_TEXT = "<|endoftext|>"
_PATTERNS = {"gpt2": r50k_pat_str}


class Tokenizer(Protocol):
    """What the rest of the model side needs from a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1; a model may have more rows (padding), never drawn."""

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a document, if the vocabulary has one."""

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token: a text of more than n × this many bytes has more than n tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; markers such as "<|endoftext|>" are text like any other."""

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one id; b"" for an id that is no text (a marker, or padding)."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, incomplete UTF-8 replaced by U+FFFD."""


class TiktokenTokenizer:
    """Byte-level BPE on tiktoken, from ranks already in memory.

    Args:
        ranks: bytes of each token → id, complete from 0 upwards.
        encoding: name of the split pattern ("gpt2").
    """

    def __init__(self, ranks: dict[bytes, int], encoding: str = "gpt2") -> None:
        self.encoding = encoding
        self._end_of_text = len(ranks)
        self._bytes = [b""] * (len(ranks) + 1)
        for token, rank in ranks.items():
            self._bytes[rank] = token
        self._longest = max(map(len, self._bytes))
        self._tiktoken = tiktoken.Encoding(
            encoding,
            pat_str=_PATTERNS[encoding],
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self._end_of_text},
        )

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @property
    def end_of_text(self) -> int | None:
        return self._end_of_text

    @property
    def longest_token(self) -> int:
        return self._longest

    def encode(self, text: str) -> list[int]:
        return self._tiktoken.encode_ordinary(text)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")


class ByteTokenizer:
    """256 bytes and an end-of-text id: the tokenizer of tests and tiny models, no file needed."""

    vocab_size = 257
    end_of_text: int | None = 256
    longest_token = 1

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")


def load_tiktoken(path: str | Path, encoding: str = "gpt2") -> TiktokenTokenizer:
    """Read a `.tiktoken` file: one line per token, base64 bytes, a space, the rank.

    Raises:
        CheckpointError: no such file, an unknown encoding, a malformed line, or ranks with gaps.
    """
    path = Path(path)
    if encoding not in _PATTERNS:
        raise CheckpointError(
            f"{path}: unknown tokenizer encoding {encoding!r}, known: {', '.join(_PATTERNS)}"
        )
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(f"{path}: line {number} is not a base64 token and a rank") from None
    if len(ranks) < 256 or sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(
            f"{path}: {len(ranks)} ranks, expected each of 0..n-1 once and at least the 256 bytes"
        )
    missing = next((value for value in range(256) if bytes([value]) not in ranks), None)
    if missing is not None:
        raise CheckpointError(f"{path}: byte {missing} has no token, so some text could not be encoded")
    return TiktokenTokenizer(ranks, encoding)
