"""What lies in KV blocks, and how to find it again: the index behind the prefix cache. No torch.

A full block is named by a digest of its token ids and of the name before it, so that a name stands for every
token from the first on. The first block comes after a root, made of whom the keys and values may serve: what
has another root has other names, and is never found.

    root ─► [7 3 9 4] ─► [1 1 5 2] ─► [8 6]          a chain, its last block begun
                      └► [1 1 5 8] ─► …              another prompt, which goes on differently

Below each name are the blocks that come after it, full or begun, sorted by their ids. The one that has most
in common with a prompt's next tokens stands beside the place where these would be sorted in, so it is found
among n in log n steps. Refuses to know who holds a block and when it is given to somebody else.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

Name = bytes
DIGEST_BYTES = 16


def root_name(client: str, salt: str, adapter: str = "") -> Name:
    """The name before a first block. Other clients have other roots, whatever salt they send, and so have
    other adapters, with which the same tokens have other keys and values.
    """
    parts = (part.encode("utf-8", "surrogatepass") for part in (client, salt, adapter))
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return blake2b(framed, digest_size=DIGEST_BYTES).digest()


def next_name(parent: Name, tokens: Sequence[int]) -> Name:
    """The name of a full block of these ids."""
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """What a block holds.

    Attributes:
        parent: name of what comes before.
        tokens: ids whose keys and values are in it, from its first place on.
        name: its own, when it is full.
    """

    parent: Name
    tokens: tuple[int, ...]
    name: Name | None = None


class PrefixIndex:
    """Blocks by what they hold. A block is listed once, and so is a name."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._named: dict[Name, int] = {}
        self._followers: dict[Name, list[tuple[tuple[int, ...], int]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    def add(self, block: int, entry: Entry) -> bool:
        """List a block; False when another one, listed before, serves as well."""
        assert block not in self._entries, f"block {block} is listed already"
        followers = self._followers.setdefault(entry.parent, [])
        place = bisect_left(followers, (entry.tokens,))
        if entry.name is not None:
            if entry.name in self._named:
                return False
            self._named[entry.name] = block
        elif place < len(followers) and followers[place][0][: len(entry.tokens)] == entry.tokens:
            return False
        followers.insert(place, (entry.tokens, block))
        self._entries[block] = entry
        return True

    def remove(self, block: int) -> None:
        """No longer list a block: something else is about to be written into it."""
        entry = self._entries.pop(block)
        followers = self._followers[entry.parent]
        del followers[bisect_left(followers, (entry.tokens, block))]
        if not followers:
            del self._followers[entry.parent]
        if entry.name is not None:
            del self._named[entry.name]

    def find(self, name: Name) -> int | None:
        """The full block of that name."""
        return self._named.get(name)

    def closest(self, parent: Name, tokens: tuple[int, ...]) -> tuple[int, int]:
        """Of the blocks after `parent` the one that begins most like `tokens`, and how many ids that is: 0
        when none begins so.
        """
        followers = self._followers.get(parent, [])
        place = bisect_left(followers, (tokens,))
        block, most = -1, 0
        for listed, candidate in followers[max(0, place - 1) : place + 1]:
            common = _num_common(listed, tokens)
            if common > most:
                block, most = candidate, common
        return block, most

    def check_integrity(self) -> None:
        """The three views of what is listed agree."""
        assert self._named == {e.name: b for b, e in self._entries.items() if e.name is not None}
        listed = {(parent, *pair) for parent, pairs in self._followers.items() for pair in pairs}
        assert listed == {(e.parent, e.tokens, b) for b, e in self._entries.items()}
        assert all(pairs == sorted(pairs) and pairs for pairs in self._followers.values())


def _num_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Ids that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
