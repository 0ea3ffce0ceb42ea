"""The state of one reply within its grammar, and masks: a bit for every token that may come next.

A matcher lives in host memory and depends on the accepted tokens alone, so a preempted sequence keeps its
own. Its slow twin asks llguidance token by token (tests). Refuses to know requests, schemas and text.

    >>> logits += expand(next_masks([matcher]), logits.device)[:, : logits.shape[1]]
    >>> matcher.accept(token)
    <Accepted.GOES_ON: 'goes on'>
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher
from numpy.typing import NDArray
from torch import Tensor

from llm.sequence import Accepted

MAX_ERROR = 200
"""Characters of llguidance's own words in a message."""

_PLAINER = (
    ("NoExtensionBias", "no token of this vocabulary can go on"),
    ("lexer precomputation failed", "its regexes are too complex"),
    ("initial lexer configuration", "its regexes are too complex"),
)
"""llguidance's messages that speak of its own workings, by how they begin."""

_SHIFTS = np.arange(8, dtype=np.uint8)
_BIAS = np.where(np.arange(256, dtype=np.uint8)[:, None] >> _SHIFTS & 1, 0.0, -np.inf).astype(np.float32)
"""(256, 8): a byte of a mask to what is added to eight logits. 20 µs a row of 50,257, not 90."""


class Matcher:
    """Where one reply stands in its grammar. For one thread at a time.

    Args:
        state: llguidance's own.
        vocab_size: ids the tokenizer knows; the phantom id behind them is the end.
        ends: ids that end the reply where the grammar may end.
        min_tokens: tokens before an end may come where text may come too.
    """

    __slots__ = ("_ends", "_error", "_num_early", "vocab_size", "state")

    def __init__(self, state: LLMatcher, vocab_size: int, ends: frozenset[int], min_tokens: int = 0) -> None:
        self.state, self.vocab_size, self._error, self._num_early = state, vocab_size, "", min_tokens
        self._ends = frozenset(token for token in ends if 0 <= token < vocab_size)

    @property
    def error(self) -> str | None:
        """In one line, why this matcher can go no further: a limit was met, or a token refused."""
        if not self._error and self.state.is_error():
            self._error = one_line(self.state.get_error())
        return self._error or None

    def accept(self, token: int) -> Accepted:
        """Walk over one token. After REFUSED the matcher stays where it is, in error."""
        if self.error is not None or not 0 <= token < self.vocab_size:
            return self._refuse(token)
        # An end that the grammar itself allows here is text: a line break inside a JSON object.
        if token in self._ends and not self.state.validate_tokens([token]):
            return Accepted.END if self.state.is_accepting() else self._refuse(token)
        if self.state.is_stopped() or not self.state.consume_token(token):
            return self._refuse(token)
        self._num_early -= 1
        return Accepted.COMPLETE if self.state.is_stopped() else Accepted.GOES_ON

    def _refuse(self, token: int) -> Accepted:
        if self.error is None:
            self._error = f"token {token} is not allowed here"
        return Accepted.REFUSED

    def can_go_on(self) -> bool:
        """Whether some text is allowed now."""
        octets = _next_octets([self])
        return self.error is None and bool(_bits(octets[0])[: self.vocab_size].any())

    def close(self, octets: NDArray[np.uint8]) -> None:
        """Finish this matcher's row of a mask: its ends where the grammar may end, nothing after an error."""
        if self.error is not None:
            octets[:] = 0
        elif octets[self.vocab_size >> 3] >> (self.vocab_size & 7) & 1:
            if self._num_early > 0 and _bits(octets)[: self.vocab_size].any():
                return
            for token in self._ends:
                octets[token >> 3] |= 1 << (token & 7)

    @property
    def num_words(self) -> int:
        """32-bit words of a mask: one bit for each id and the phantom."""
        return self.vocab_size // 32 + 1


def next_masks(matchers: Sequence[Matcher]) -> NDArray[np.uint8]:
    """What may come next. Needs no logits, so it can be found beside the model.

    Args:
        matchers: of one vocabulary; one that has failed allows nothing.

    Returns:
        (R, N / 8), bit k of a row for id k: 1 where it may come next; N is the vocabulary's size and a few
        more, whole words of 32 bits.
    """
    octets = _next_octets(matchers)
    for matcher, row_octets in zip(matchers, octets, strict=True):
        matcher.close(row_octets)
    return octets


def expand(octets: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Packed masks (R, N) to what is added to logits, (R, 8 N): 0 where allowed, -inf elsewhere."""
    if device.type == "cpu":
        return torch.from_numpy(np.take(_BIAS, octets, axis=0).reshape(len(octets), -1))
    packed = torch.from_numpy(octets).to(device)  # an eighth of a byte per logit crosses the bus
    return torch.from_numpy(_BIAS).to(device)[packed.int()].flatten(1)


def _next_octets(matchers: Sequence[Matcher]) -> NDArray[np.uint8]:
    """(R, N) masks, bit k of a row for id k.

    One by one in this thread: handing them to a pool costs more than a mask does, 10 µs a row instead of 5.
    """
    words = np.empty((len(matchers), matchers[0].num_words), np.int32)
    begin, size = words.ctypes.data, words.strides[0]
    for row, matcher in enumerate(matchers):
        assert matcher.num_words == words.shape[1], "one vocabulary"
        matcher.state.unsafe_compute_mask_ptr(begin + row * size, size)
    return words.view(np.uint8)


def _bits(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.unpackbits(octets, bitorder="little")


def one_line(text: str) -> str:
    """The telling line of llguidance's message: a regex's "error: ...", else the first; at most MAX_ERROR."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["unknown error"]
    telling = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return next((plain for begin, plain in _PLAINER if telling.startswith(begin)), telling[:MAX_ERROR])
