"""The index of the prefix cache, against the obvious way: to look at every block."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from llm.prefix import Entry, PrefixIndex, next_name, root_name

PARENTS = [root_name(client, "") for client in "ab"]
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)


def entry(parent: bytes, tokens: tuple[int, ...]) -> Entry:
    """Blocks are of four tokens here."""
    return Entry(parent, tokens, next_name(parent, tokens) if len(tokens) == 4 else None)


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(PARENTS), TOKENS), max_size=40))
def test_what_is_found_is_what_looking_at_every_block_finds(
    steps: list[tuple[bool, bytes, tuple[int, ...]]],
) -> None:
    index, listed = PrefixIndex(), dict[int, Entry]()
    for block, (adds, parent, tokens) in enumerate(steps):
        if adds:
            new = entry(parent, tokens)
            as_good = any(
                e.parent == parent and e.tokens[: len(tokens)] == tokens and (new.name is None or e.name)
                for e in listed.values()
            )
            assert index.add(block, new) is not as_good
            if not as_good:
                listed[block] = new
        elif listed:
            gone = list(listed)[block % len(listed)]
            index.remove(gone)
            del listed[gone]
        index.check_integrity()
        most = max((common(e.tokens, tokens) for e in listed.values() if e.parent == parent), default=0)
        found, num = index.closest(parent, tokens)
        assert num == most
        if num:
            assert (listed[found].parent, listed[found].tokens[:num]) == (parent, tokens[:num])
        named = [b for b, e in listed.items() if e.name == next_name(parent, tokens)]
        assert [index.find(next_name(parent, tokens))] == (named or [None])
    assert len(index) == len(listed) and all(block in index for block in listed)


def test_no_two_clients_and_no_two_salts_have_one_root() -> None:
    pairs = [("", ""), ("a", ""), ("", "a"), ("a", "b"), ("ab", ""), ("", "ab"), ("b", "a"), ("\ud800", "")]
    assert len({root_name(*pair) for pair in pairs}) == len(pairs)
    assert root_name("a", "b") == root_name("a", "b")


def test_a_name_says_every_token_and_everything_before() -> None:
    root = root_name("", "")
    names = [next_name(root, [1, 2]), next_name(root, [2, 1]), next_name(root, [258]), next_name(root, [1])]
    names += [next_name(names[0], [1, 2]), next_name(names[1], [1, 2])]
    assert len(set(names)) == len(names)
