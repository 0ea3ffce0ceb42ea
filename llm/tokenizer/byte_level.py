"""Whether a vocabulary and its merges give the same ids on tiktoken, and the ranks if they do.

A list of merges joins a pair of tokens only if the pair is listed, earliest in the list first. tiktoken joins
any pair whose bytes together are a token, smallest id first. Both take the leftmost of equals. They agree
when

    (a) ids of merged tokens never fall along the list, and
    (b) every token becomes itself under the listed merges alone, without the rest of the text.

Suppose tiktoken's first departure on some text joins an unlisted pair x y into the token t. No join so far
crossed t's borders, so t alone would have come to x y as well, and there the listed merges are stuck: t would
not become itself, against (b). Hence both only join listed pairs. By the same argument t alone always ends in
one last pair, so of several listed pairs for t only one ever occurs, and by (a) it has the same place in both
orders. A token that does not become itself is never made by merging and is left out of the ranks; when the
vocabulary looks whole pieces up first (`ignore_merges`), tiktoken does so too and it stays in, unless it ends
in two parts, which tiktoken would join.

Refuses to know files, the split into pieces, and control tokens' meaning.

    >>> ranks, unreachable = tiktoken_ranks(vocab, merges, control=frozenset({0}), ignore_merges=False)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tokenizers import models

Merge = tuple[str, str]


class Unproven(Exception):
    """Why tiktoken cannot, or cannot be proved to, give the reference's ids."""


def _alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself if visible in Latin-1, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in visible]
    return {value: chr(value) for value in visible} | {v: chr(256 + n) for n, v in enumerate(hidden)}


ALPHABET = _alphabet()
"""Byte → its character in vocabularies of byte-level BPE."""
_TO_LATIN1 = {value: 0xFFFF for value in range(256)} | {ord(char): byte for byte, char in ALPHABET.items()}


def to_bytes(token: str) -> bytes | None:
    """The bytes a token of a byte-level vocabulary stands for; None if it has characters of no byte."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return None


def tiktoken_ranks(
    vocab: Mapping[str, int], merges: Sequence[Merge], *, control: Collection[int], ignore_merges: bool
) -> tuple[dict[bytes, int], dict[int, bytes]]:
    """Ranks that make tiktoken merge as the list says.

    Args:
        vocab: token in the byte alphabet → id.
        merges: pairs of tokens, in order; both and their join are in vocab.
        control: ids that no text may become.
        ignore_merges: a whole piece that is a token is that token.

    Returns:
        Bytes → id of what merging (or looking up) makes, and id → bytes of the rest, control left out.

    Raises:
        Unproven: the proof fails; the message says at what.
    """
    parts = _num_parts(vocab, merges)
    _check_order(vocab, merges, parts)
    ranks: dict[bytes, int] = {}
    unreachable: dict[int, bytes] = {}
    looked_up = False
    for (token, token_id), num_parts in zip(vocab.items(), parts, strict=True):
        data = to_bytes(token)
        if token_id in control:
            if num_parts == 1 and data is not None:
                raise Unproven(f"its merges make the control token {token[:32]!r} of ordinary text")
        elif data is None:
            unreachable[token_id] = token.encode(errors="replace")
        elif num_parts == 1:
            ranks[data] = token_id
        elif not ignore_merges:
            unreachable[token_id] = data
        elif num_parts >= 3:
            ranks[data], looked_up = token_id, True
        else:
            raise Unproven(f"token {token_id} ({token[:32]!r}) does not follow from its merges")
    if not ranks:
        raise Unproven("it has no token for any byte")
    if looked_up and any(bytes([value]) not in ranks for value in range(256)):
        raise Unproven("it lacks bytes and looks whole pieces up first")
    return ranks, unreachable


def _num_parts(vocab: Mapping[str, int], merges: Sequence[Merge]) -> list[int]:
    """For each token, how many parts the listed merges leave of it; 0 for one other than itself."""
    model = models.BPE(vocab=dict(vocab), merges=list(merges), cache_capacity=0)
    parts = []
    for token, token_id in vocab.items():
        left = model.tokenize(token) if token else []
        parts.append(0 if len(left) == 1 and left[0].id != token_id else len(left))
    return parts


def _check_order(vocab: Mapping[str, int], merges: Sequence[Merge], parts: list[int]) -> None:
    """(a), allowing for merges out of order that never happen: without them nothing changes."""
    if len(set(merges)) < len(merges):
        raise Unproven("a merge is listed twice")
    rising: list[Merge] = []
    last = -1
    for pair in merges:
        if (token_id := vocab[pair[0] + pair[1]]) >= last:
            rising.append(pair)
            last = token_id
    if len(rising) < len(merges) and _num_parts(vocab, rising) != parts:
        raise Unproven("its merges are not in the order of its ids")
