"""A tokenizer's ids and bytes, as llguidance wants them: with one phantom id behind the last.

The phantom stands for "the grammar may end here": a vocabulary without an end of text works too, and every
real control token is simply never text. Refuses to know how text becomes tokens: masks are computed from
bytes alone, and no spelling is forced on the model (`no_forcing`).

    >>> load_vocabulary(ByteTokenizer(), 257).vocab_size
    258
"""

from __future__ import annotations

from typing import Protocol

from llguidance import LLTokenizer, TokenizerWrapper


class Vocabulary(Protocol):
    """What this package needs from a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one id; b"" for an id that is no text."""


class _Tokens:
    """The attributes that TokenizerWrapper reads."""

    bos_token_id = None

    def __init__(self, tokenizer: Vocabulary, vocab_size: int) -> None:
        self.tokens = [*(tokenizer.token_bytes(token_id) for token_id in range(vocab_size)), b""]
        self.eos_token_id = vocab_size
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        """Asked for once, to see whether bytes are welcome; there is nothing to force, so never again."""
        return []


def load_vocabulary(tokenizer: Vocabulary, vocab_size: int) -> LLTokenizer:
    """A tenth of a second for 50,000 ids; share the result."""
    return LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, vocab_size)), n_vocab=vocab_size + 1)
