"""The block pool: nothing lost, nothing handed out twice, nothing found that is not there."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.blocks import BlockPool
from llm.prefix import Entry, next_name, root_name

ROOT = root_name("", "")


def entry(number: int) -> Entry:
    """A full block of one token."""
    return Entry(ROOT, (number,), next_name(ROOT, [number]))


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 2**32))
def test_any_order_of_taking_and_giving_back_keeps_every_block(requests: list[int], seed: int) -> None:
    rng, pool, held = random.Random(seed), BlockPool(8), list[list[int]]()
    for number, count in enumerate(requests):
        if count <= pool.num_free:
            held.append(pool.take(count))
            for block in held[-1][: rng.randint(0, count)]:
                pool.list_block(block, entry(rng.randint(0, number)))
        elif held:
            pool.give_back(held.pop(0), forget=rng.random() < 0.2)
        found = pool.index.find(entry(rng.randint(0, number)).name or b"")
        if found is not None:
            pool.share([found])
            held.append([found])
        pool.check_integrity(block for blocks in held for block in blocks)
    for blocks in held:
        pool.give_back(blocks)
    pool.check_integrity()
    assert pool.num_free == 8


def test_empty_blocks_are_taken_first_then_those_not_used_for_longest() -> None:
    pool = BlockPool(5)
    for number in (3, 4):
        (block,) = pool.take(1)
        pool.list_block(block, entry(number))
        pool.give_back([block])
    old, young = pool.index.find(entry(3).name or b""), pool.index.find(entry(4).name or b"")
    assert old is not None and young is not None
    pool.share([old])
    pool.give_back([old])  # and so it is the younger of the two
    assert set(pool.take(3)).isdisjoint({old, young})
    assert [pool.take(1), pool.take(1)] == [[young], [old]]
    assert (pool.num_free, len(pool.index)) == (0, 0)


def test_of_blocks_given_back_together_the_later_are_taken_first() -> None:
    pool = BlockPool(3)
    blocks = pool.take(3)
    for number, block in enumerate(blocks):
        pool.list_block(block, entry(number))
    pool.give_back(blocks)
    assert [pool.take(1) for _ in blocks] == [[block] for block in reversed(blocks)]


def test_a_block_that_is_shared_with_the_cache_is_not_free() -> None:
    pool = BlockPool(1)
    blocks = pool.take(1)
    pool.list_block(blocks[0], entry(0))
    pool.give_back(blocks)
    assert pool.num_free == 1
    pool.share(blocks)
    assert (pool.num_free, pool.is_shared(blocks[0])) == (0, False)
    pool.check_integrity(blocks)


def test_giving_back_a_block_twice_is_caught() -> None:
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.give_back(blocks)
    with pytest.raises(AssertionError, match="not held"):
        pool.give_back(blocks)


def test_a_leak_is_caught() -> None:
    pool = BlockPool(2)
    pool.take(1)
    with pytest.raises(AssertionError, match="sequences claim"):
        pool.check_integrity()
