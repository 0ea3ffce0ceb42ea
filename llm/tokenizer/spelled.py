"""A tokenizer some of whose control tokens have bytes: their own spelling.

A model that was trained to write `<tool_call>` as one control token writes no text with it, so whoever reads
calls back would not see where one begins. Refuses to know which tokens these are.

    >>> SpelledTokenizer(tokenizer, ["<tool_call>"]).token_bytes(tokenizer.control["<tool_call>"])
    b'<tool_call>'
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llm.tokenizer import Tokenizer


class SpelledTokenizer:
    """The same ids as another tokenizer's, and text for some of its control tokens.

    Args:
        tokenizer: the other one.
        spelled: of its control tokens those that are text here.
    """

    def __init__(self, tokenizer: Tokenizer, spelled: Collection[str]) -> None:
        self._tokenizer = tokenizer
        self._spelled = {tokenizer.control[text]: text.encode() for text in spelled}
        self.vocab_size = tokenizer.vocab_size
        self.end_of_text = tokenizer.end_of_text
        self.begin_of_text = tokenizer.begin_of_text
        self.longest_token = tokenizer.longest_token
        self.control: Mapping[str, int] = {
            text: token for text, token in tokenizer.control.items() if token not in self._spelled
        }

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        return self._tokenizer.encode(text, continued=continued)

    def token_bytes(self, token_id: int) -> bytes:
        return self._spelled.get(token_id) or self._tokenizer.token_bytes(token_id)

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")
