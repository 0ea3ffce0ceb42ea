"""Byte-level BPE on tiktoken: from a `.tiktoken` file, or from ranks that others have proved equal.

tiktoken finds the pieces with a backtracking regex that panics at a run of 1,000,000 white characters, and it
knows no byte that has no token (SmolLM2 lacks 21). Such text is cut by the tokenizers library instead, and
only merged by tiktoken: the same ids, some ten times slower. Refuses to know the network (tiktoken's own
`get_encoding` downloads; we build the Encoding ourselves), pickles, and chat: user text is always encoded
without control tokens.

    >>> tokenizer = load_tiktoken("checkpoints/causette/tokenizer.tiktoken")
    >>> tokenizer.encode(" a token")
    [257, 11241]
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import tiktoken
import tokenizers

from llm.errors import CheckpointError
from llm.tokenizer.added import AddedToken, AddedTokens, replace_surrogates
from llm.tokenizer.description import Description
from llm.tokenizer.patterns import PATTERNS, SplitPattern

END_OF_TEXT = "<|endoftext|>"
MAX_WHITE_RUN = 100_000
"""White characters in a row that tiktoken is trusted with; it fails at ten times that."""
LONG_PIECE = 16 << 10
"""Bytes of a piece that is merged beside other threads."""
_LONG_RUN = re.compile(rf"(?<!\s)\s{{{MAX_WHITE_RUN}}}")  # the look-behind: each run is tried once
_NFC_SHRINKS = 3
"""Bytes of text per byte of its composed form, at most: three Hangul letters become one syllable."""
_PUBLISHED = {("p50k", 50280): 50256, ("cl100k", 100256): 100257, ("o200k", 199998): 199999}
"""(encoding, ranks) → end of text, where it is not the first id after the ranks."""


class TiktokenTokenizer:
    """Byte-level BPE on tiktoken, from ranks already in memory.

    Args:
        ranks: bytes of each token that merging makes → id; smaller ids are merged first.
        encoding: the split pattern, or the name of one ("gpt2").
        control: spelling → id; None for END_OF_TEXT right after the ranks.
        end_of_text: the id that ends a document; None with control None for END_OF_TEXT's.
        begin_of_text: the id every sequence begins with.
        added: tokens found in text by their spelling.
        unreachable: id → bytes of tokens that no text becomes.
        nfc: text is brought into Unicode's composed form first.

    Attributes:
        description: what it was made from, if that was more than ranks.
    """

    description: Description | None = None

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        encoding: str | SplitPattern = "gpt2",
        *,
        control: Mapping[str, int] | None = None,
        end_of_text: int | None = None,
        begin_of_text: int | None = None,
        added: Sequence[AddedToken] = (),
        unreachable: Mapping[int, bytes] = MappingProxyType({}),
        nfc: bool = False,
    ) -> None:
        if control is None:
            end_of_text = len(ranks) if end_of_text is None else end_of_text
            control = {END_OF_TEXT: end_of_text}
        self._pattern = PATTERNS[encoding] if isinstance(encoding, str) else encoding
        self.encoding = self._pattern.name
        self.control = control
        self.begin_of_text, self.end_of_text = begin_of_text, end_of_text
        spelled = {token.id: token.content.encode() for token in added if not token.special}
        self._bytes = _table(ranks, {**unreachable, **spelled}, control)
        longest = max(map(len, [*self._bytes, *(text.encode() for text in control)]))
        self.longest_token = longest * _NFC_SHRINKS if nfc else longest
        self._added = AddedTokens(added, nfc) if spelled or nfc else None
        self._missing = bytes(value for value in range(256) if bytes([value]) not in ranks)
        self._tiktoken = tiktoken.Encoding(
            self.encoding, pat_str=self._pattern.regex, mergeable_ranks=dict(ranks), special_tokens={}
        )

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        text = replace_surrogates(text)
        if self._added is None:
            return self._encode(text)
        ids: list[int] = []
        for part in self._added.split(text):
            ids += [part] if isinstance(part, int) else self._encode(part)
        return ids

    def _encode(self, text: str) -> list[int]:
        if self._is_hard(text):
            return self._encode_pieces(text)
        return self._tiktoken.encode_ordinary(text)

    def _is_hard(self, text: str) -> bool:
        """Whether tiktoken alone would fail, or give other ids than the reference."""
        if len(text) >= MAX_WHITE_RUN and _LONG_RUN.search(text):
            return True
        if self._missing and len((data := text.encode()).translate(None, self._missing)) < len(data):
            return True
        return self._pattern.differs(text)

    def _encode_pieces(self, text: str) -> list[int]:
        """Pieces from the library, merges by tiktoken; a byte that has no token is left out of its piece."""
        ids: list[int] = []
        for start, end in self._cut(text):
            data = text[start:end].encode()
            if len(data) > LONG_PIECE and not self._missing:
                ids += self._merger.encode_ordinary(text[start:end])
            elif data := data.translate(None, self._missing):
                ids += self._tiktoken._encode_single_piece(data)
        return ids

    def _cut(self, text: str) -> list[tuple[int, int]]:
        """Where the pieces are. Alone in a batch: the library's `pre_tokenize_str` would keep the interpreter
        from every other thread until it is done.
        """
        (cut,) = self._cutter.encode_batch([text], add_special_tokens=False)
        offsets: list[tuple[int, int]] = cut.offsets
        return offsets

    @cached_property
    def _cutter(self) -> tokenizers.Tokenizer:
        """Cuts as the reference does, and knows no token."""
        cutter = tokenizers.Tokenizer(tokenizers.models.WordLevel({"": 0}, unk_token=""))
        cutter.pre_tokenizer = self._pattern.reference()
        return cutter

    @cached_property
    def _merger(self) -> tiktoken.Encoding:
        """The same merges for a text that is one piece; it lets other threads work, `_encode_single_piece`
        does not.
        """
        ranks = self._tiktoken._mergeable_ranks
        return tiktoken.Encoding(self.encoding, pat_str="(?s).+", mergeable_ranks=ranks, special_tokens={})

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")


def _table(
    ranks: Mapping[bytes, int], others: Mapping[int, bytes], control: Mapping[str, int]
) -> list[bytes]:
    """Bytes by id; b"" for control tokens and for ids that are no token."""
    table = [b""] * (1 + max([*ranks.values(), *others, *control.values()]))
    for token, rank in ranks.items():
        table[rank] = token
    for token_id, token in others.items():
        table[token_id] = token
    return table


def load_tiktoken(path: str | Path, encoding: str = "gpt2") -> TiktokenTokenizer:
    """Read a `.tiktoken` file: one line per token, base64 bytes, a space, the rank.

    Raises:
        CheckpointError: no such file, an unknown encoding, a malformed line, or ranks with gaps.
    """
    path = Path(path)
    if encoding not in PATTERNS:
        raise CheckpointError(
            f"{path}: unknown tokenizer encoding {encoding!r}, known: {', '.join(PATTERNS)}"
        )
    ranks = _read_ranks(path)
    end_of_text = _PUBLISHED.get((encoding, len(ranks)), len(ranks))
    ids = [rank for rank in range(len(ranks) + 1) if rank != end_of_text][: len(ranks)]
    if len(ranks) < 256 or sorted(ranks.values()) != ids:
        raise CheckpointError(
            f"{path}: {len(ranks)} ranks, expected each of 0..n-1 once and at least the 256 bytes"
        )
    missing = next((value for value in range(256) if bytes([value]) not in ranks), None)
    if missing is not None:
        raise CheckpointError(f"{path}: byte {missing} has no token, so some text could not be encoded")
    return TiktokenTokenizer(ranks, encoding, control={END_OF_TEXT: end_of_text}, end_of_text=end_of_text)


def dump_tiktoken(tokenizer: TiktokenTokenizer) -> bytes:
    """The text of a `.tiktoken` file that `load_tiktoken` reads as this tokenizer, given its encoding.

    Raises:
        CheckpointError: it is more than ranks and an end of text where such a file has it.
    """
    tokens = {i: token for i in range(tokenizer.vocab_size) if (token := tokenizer.token_bytes(i))}
    end_of_text = _PUBLISHED.get((tokenizer.encoding, len(tokens)), len(tokens))
    if tokenizer.control != {END_OF_TEXT: end_of_text} or tokenizer.begin_of_text is not None:
        raise CheckpointError(
            "a file of ranks holds a vocabulary of GPT-2's kind: ranks and one end of text, "
            f"not {type(tokenizer).__name__} with {len(tokenizer.control)} control tokens"
        )
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in tokens.items())


def _read_ranks(path: Path) -> dict[bytes, int]:
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
    return ranks
