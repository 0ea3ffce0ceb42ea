"""How long a step may last: learned from steps, right within a few, never so little that a prompt does not
end.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable

import pytest

from llm.batch import Drawn
from llm.config import EngineConfig, SamplingParams
from llm.pace import LEAST, Pace
from llm.scheduler import Scheduler
from llm.sequence import Sequence

BOUND = 0.1
DECODERS = 8


def steps(pace: Pace, cost: Callable[[int, int], float], turns: Iterable[int]) -> list[float]:
    """Seconds of steps in which a prompt goes on beside decoders. `cost` is of its next tokens, from
    where.
    """
    seconds, start = [], 0
    for _ in turns:
        room = pace.room()
        assert room is not None
        seconds.append(cost(start, room))
        pace.learn(DECODERS, room, seconds[-1])
        start += room
    return seconds


def linear(start: int, num_tokens: int) -> float:
    """7 ms for eight decoders and 1,500 tokens a second."""
    return 0.007 + num_tokens / 1500


def decoding(pace: Pace, seconds: float = 0.007) -> None:
    """As an engine with open replies."""
    for _ in range(5):
        pace.learn(DECODERS, 0, seconds)


def test_steps_come_to_last_as_long_as_they_may_and_no_longer() -> None:
    """From no idea of what a prompt costs."""
    pace = Pace(BOUND)
    decoding(pace)
    seconds = steps(pace, linear, range(12))
    assert max(seconds) <= 1.1 * BOUND
    assert all(0.9 * BOUND < one <= 1.05 * BOUND for one in seconds[3:])


def test_a_prompt_whose_later_tokens_cost_more_stays_within_the_bound() -> None:
    pace = Pace(BOUND)
    pace.learn(0, 512, 512 / 1500)
    decoding(pace)
    seconds = steps(pace, lambda start, n: linear(start, n) * (1 + start / 4000), range(40))
    assert max(seconds) <= 1.1 * BOUND
    assert min(seconds) > 0.8 * BOUND


@pytest.mark.parametrize("hiccup", ["decoders", "prompt"])
def test_a_step_that_something_else_held_up_is_forgotten_soon(hiccup: str) -> None:
    pace = Pace(BOUND)
    pace.learn(0, 512, 512 / 1500)
    decoding(pace)
    if hiccup == "decoders":
        pace.learn(DECODERS, 0, 0.070)
    else:
        pace.learn(DECODERS, 100, 1.0)
    seconds = steps(pace, linear, range(12))
    assert max(seconds) <= 1.2 * BOUND
    assert all(0.8 * BOUND < one for one in seconds[8:])


def test_a_prompt_goes_on_however_long_decoders_take() -> None:
    pace = Pace(BOUND)
    decoding(pace, seconds=0.5)
    assert pace.room() == LEAST


def test_without_a_bound_or_without_a_step_there_is_room_for_all() -> None:
    free, fresh = Pace(0), Pace(BOUND)
    decoding(free)
    assert free.room() is None and fresh.room() is None


def test_a_chunk_is_cut_beside_decoders_and_only_there() -> None:
    """The scheduler asks; nobody else is let in behind a prompt that was cut."""
    scheduler = Scheduler(EngineConfig(400, max_num_seqs=4, max_num_batched_tokens=256, block_size=16))
    scheduler.pace.learn(0, 100, 0.1)  # a millisecond a token, so 100 of them

    def turn() -> list[tuple[int, int]]:
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.commit(batch, Drawn([7] * len(batch.asking)))
        scheduler.check_integrity()
        return [(chunk.sequence.id, chunk.length) for chunk in batch.chunks]

    params = SamplingParams(max_tokens=50)
    first, long, last = (Sequence([i] * n, params) for i, n in enumerate((300, 250, 10)))
    scheduler.add(first)
    assert [turn(), turn()] == [[(first.id, 256)], [(first.id, 44)]], "it is alone"
    scheduler.add(long)
    scheduler.add(last)
    assert [turn() for _ in range(3)] == [
        [(first.id, 1), (long.id, 100)],
        [(first.id, 1), (long.id, 100)],
        [(first.id, 1), (long.id, 50), (last.id, 10)],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_4000_tokens_among_eight_decoders_hold_nobody_up_longer_than_a_chunk(seed: int) -> None:
    """On a device of which only the clock is made up: later tokens of a prompt cost more, and a step takes up
    to a tenth more or less than it should.
    """
    rng = random.Random(seed)
    scheduler = Scheduler(EngineConfig(5000, max_num_seqs=9, block_size=16, enable_prefix_caching=False))

    def step() -> float:
        batch = scheduler.schedule()
        assert batch is not None
        prompts = [chunk for chunk in batch.chunks if chunk.length > 1]
        seconds = 0.003 + 0.0005 * batch.num_decoding
        seconds += sum(chunk.length / 1500 * (1 + chunk.start / 8000) for chunk in prompts)
        seconds *= rng.uniform(0.9, 1.1)
        scheduler.pace.learn(batch.num_decoding, batch.num_tokens - batch.num_decoding, seconds)
        scheduler.commit(batch, Drawn([7] * len(batch.asking)))
        return seconds

    for i in range(DECODERS):
        scheduler.add(Sequence([i] * 64, SamplingParams(max_tokens=1000)))
    for _ in range(20):
        step()
    long = Sequence([9] * 4000, SamplingParams(max_tokens=2))
    scheduler.add(long)
    gaps = []
    while not long.output:
        gaps.append(step())
    assert max(gaps) <= 1.2 * statistics.median(gaps)
    assert 0.8 * BOUND < statistics.median(gaps) < 1.1 * BOUND
    assert len(gaps) < 2 * 4000 / 1500 / BOUND, "and the prompt goes on"
