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
MOST = 1024


def steps(pace: Pace, cost: Callable[[int, int], float], turns: Iterable[int]) -> list[float]:
    """Seconds of steps in which a prompt goes on beside decoders. `cost` is of its next tokens, from
    where.
    """
    seconds, start = [], 0
    for _ in turns:
        count = pace.room(DECODERS, MOST).take(start, MOST)
        seconds.append(cost(start, count))
        pace.learn(DECODERS, seconds[-1], count, attended(start, count))
        start += count
    return seconds


def attended(start: int, count: int) -> int:
    """How many stand before so many tokens, one by one."""
    return sum(range(start, start + count))


def linear(start: int, num_tokens: int) -> float:
    """7 ms for eight decoders and 1,500 tokens a second."""
    return 0.007 + num_tokens / 1500


def deepening(start: int, num_tokens: int) -> float:
    """The same at the start, and after 4,000 tokens five times as much a token."""
    return linear(start, num_tokens) + attended(start, num_tokens) / 1e6


class Flat(Pace):
    """A millisecond a token, wherever it stands."""

    token = 0.001


def decoding(pace: Pace, seconds: float = 0.007) -> None:
    """As an engine with open replies."""
    for _ in range(5):
        pace.learn(DECODERS, seconds)


def test_steps_come_to_last_as_long_as_they_may_and_no_longer() -> None:
    """From no idea of what a prompt costs."""
    pace = Pace(BOUND)
    decoding(pace)
    seconds = steps(pace, linear, range(12))
    assert max(seconds) <= 1.1 * BOUND
    assert all(0.8 * BOUND < one <= 1.05 * BOUND for one in seconds[1:])


def test_a_prompt_whose_later_tokens_cost_more_stays_within_the_bound() -> None:
    pace = Pace(BOUND)
    pace.learn(0, deepening(0, 512), 512, attended(0, 512))
    decoding(pace)
    first, again = (steps(pace, deepening, range(60)) for _ in range(2))
    assert max(first) <= 1.15 * BOUND and max(again) <= 1.05 * BOUND
    assert min(first[1:] + again[5:]) > 0.9 * BOUND


def test_what_long_prompts_cost_is_known_after_many_short_ones() -> None:
    """A conversation of 4,000 tokens goes on, found computed: its next part is no longer than there is time
    for.
    """
    pace = Pace(BOUND)
    decoding(pace)
    steps(pace, deepening, range(60))
    for _ in range(200):
        pace.learn(DECODERS, deepening(0, 40), 40, attended(0, 40))
    count = pace.room(DECODERS, MOST).take(4000, 900)
    assert 0.75 * BOUND < deepening(4000, count) < 1.1 * BOUND


@pytest.mark.parametrize("hiccup", ["decoders", "prompt"])
def test_a_step_that_something_else_held_up_is_forgotten_soon(hiccup: str) -> None:
    pace = Pace(BOUND)
    pace.learn(0, 512 / 1500, 512)
    decoding(pace)
    if hiccup == "decoders":
        pace.learn(DECODERS, 0.070)
    else:
        pace.learn(DECODERS, 1.0, 100)
    seconds = steps(pace, linear, range(12))
    assert max(seconds) <= 1.2 * BOUND
    assert all(0.8 * BOUND < one for one in seconds[8:])


def test_a_prompt_goes_on_however_long_decoders_take() -> None:
    pace = Pace(BOUND)
    decoding(pace, seconds=0.5)
    room = pace.room(DECODERS, MOST)
    assert room and room.take(0, 100) == LEAST
    assert not room, "and nobody else's begins"


def test_several_prompts_share_a_step() -> None:
    pace = Flat(BOUND + 1e-6)
    decoding(pace, 0.010)
    room = pace.room(DECODERS, MOST)
    assert [room.take(0, wanted) for wanted in (50, 20)] == [50, 20] and room
    assert room.take(0, 30) == 20 and not room
    room = pace.room(DECODERS, MOST)
    assert room.take(0, 80) == 80 and not room, "ten tokens are no beginning"
    room = pace.room(DECODERS, 40)
    assert [room.take(0, 30), room.take(0, 30)] == [30, 2] and not room, "a step's tokens are a bound too"


def test_without_a_bound_or_without_a_step_or_alone_there_is_room_for_all() -> None:
    free, fresh, known = Pace(0), Pace(BOUND), Pace(BOUND)
    decoding(free)
    decoding(known)
    assert free.room(DECODERS, MOST).take(0, 5000) == MOST - DECODERS
    assert fresh.room(DECODERS, MOST).take(0, 5000) == MOST - DECODERS
    assert known.room(0, MOST).take(0, 5000) == MOST


def test_a_chunk_is_cut_beside_decoders_and_only_there() -> None:
    """The scheduler asks; nobody else is let in behind a prompt that was cut."""
    scheduler = Scheduler(EngineConfig(400, max_num_seqs=4, max_num_batched_tokens=256, block_size=16))
    scheduler.pace = Flat(BOUND)  # so 100 of them

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
        seconds += sum(chunk.length / 1500 * (1 + chunk.start / 1000) for chunk in prompts)
        seconds *= rng.uniform(0.9, 1.1)
        assert batch.num_attended == sum(attended(chunk.start, chunk.length) for chunk in prompts)
        scheduler.learn(batch, seconds)
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
    assert max(gaps) <= 1.3 * statistics.median(gaps)  # a fifth of that is the clock's own
    assert 0.9 * BOUND < statistics.median(gaps) < 1.1 * BOUND
    assert len(gaps) < 1.2 * 3 * 4000 / 1500 / BOUND, "and the prompt goes on"


def test_a_guess_costs_what_guesses_cost_beside_so_many() -> None:
    """A prompt's token is the first guess at it; a hiccup is one of many steps."""
    pace = Flat(BOUND)
    decoding(pace, 0.010)
    assert pace.guess(1) == pace.guess(DECODERS) == pace.token
    for _ in range(30):
        pace.learn_guesses(DECODERS, 0.016, 4)
    assert pace.guess(DECODERS) == pytest.approx(0.0015) and pace.guess(1) == pace.token
    pace.learn_guesses(DECODERS, 0.050, 4)
    assert 0.0015 < pace.guess(DECODERS) < 0.003
