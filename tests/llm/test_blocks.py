"""The block pool: nothing lost, nothing handed out twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.blocks import BlockPool


@given(st.lists(st.integers(0, 5), max_size=40))
def test_any_order_of_taking_and_giving_back_keeps_every_block(requests: list[int]) -> None:
    pool, held = BlockPool(8), []
    for count in requests:
        if count <= pool.num_free:
            held.append(pool.take(count))
        elif held:
            pool.give_back(held.pop(0))
        pool.check_integrity(block for blocks in held for block in blocks)
    for blocks in held:
        pool.give_back(blocks)
    pool.check_integrity()
    assert pool.num_free == 8


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
