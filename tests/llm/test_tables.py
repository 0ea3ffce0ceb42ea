"""What a sequence finds computed: full blocks by name, the rest by copy; never another's, never too
little.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.batch import Drawn
from llm.config import EngineConfig, SamplingParams
from llm.errors import StepFailed
from llm.scheduler import Scheduler
from llm.sequence import FinishReason, Sequence
from tests.llm.blackboard import Rehearsal

P = 4
CONFIG = EngineConfig(64, max_num_seqs=4, max_num_batched_tokens=16, block_size=P)


def make(
    prompt: list[int], max_tokens: int = 1, client: str = "", salt: str = "", **params: object
) -> Sequence:
    sampling = SamplingParams(max_tokens=max_tokens, **params)  # type: ignore[arg-type]
    return Sequence(prompt, sampling, client=client, cache_salt=salt)


def text(length: int, first: int = 0) -> list[int]:
    return list(range(first, first + length))


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9, 15])
def test_the_same_prompt_again_computes_its_last_token_alone(length: int) -> None:
    """Whether it ends with a block or within one."""
    rehearsal = Rehearsal(CONFIG)
    assert rehearsal.finish(make(text(length))) == length
    again = make(text(length))
    assert rehearsal.finish(again) == 1
    assert again.num_cached == length - 1


@pytest.mark.parametrize("num_common", range(13))
def test_a_prompt_that_goes_on_differently_computes_from_there(num_common: int) -> None:
    """Also where the difference is within a block."""
    rehearsal = Rehearsal(CONFIG)
    rehearsal.finish(make(text(12)))
    other = make(text(num_common) + text(13 - num_common, first=100))
    assert rehearsal.finish(other) == 13 - num_common
    assert other.num_cached == num_common
    assert rehearsal.board.num_copies == (num_common % P > 0)
    assert rehearsal.finish(make(text(12))) == 1, "what it began like is still there"


def test_a_ten_turn_chat_computes_no_token_twice() -> None:
    """Each turn's prompt is the last one's, its reply, and something new. The reply's last token is drawn,
    not computed, until then.
    """
    config = EngineConfig(256, max_num_seqs=4, max_num_batched_tokens=64, block_size=16)
    rng, rehearsal, history = random.Random(4), Rehearsal(config), list[int]()
    for turn in range(10):
        history += [rng.randrange(1000) for _ in range(rng.randint(1, 12))]
        sequence = make(list(history), max_tokens=rng.randint(1, 12))
        rehearsal.finish(sequence, token=turn)
        history += sequence.output
    assert rehearsal.num_computed == len(history) - 1
    tables = rehearsal.scheduler.tables
    assert tables.num_queries - tables.num_hits < len(history)


def test_of_several_that_begin_alike_the_nearest_is_copied() -> None:
    rehearsal = Rehearsal(CONFIG)
    for ending in ([7], [7, 8], [7, 9], [5, 8], [7, 8, 1]):
        rehearsal.finish(make(text(4) + ending))
    assert rehearsal.finish(make([*text(4), 7, 8, 2, 3])) == 2
    assert rehearsal.finish(make([*text(4), 5, 9, 2, 3])) == 3


@pytest.mark.parametrize("whose", [{"client": "b"}, {"salt": "s"}, {"client": "b", "salt": "s"}])
def test_nothing_is_found_of_another_client_or_salt(whose: dict[str, str]) -> None:
    rehearsal = Rehearsal(CONFIG)
    for terms in ({"client": "a"}, whose):
        assert rehearsal.finish(make(text(12), **terms)) == 12  # type: ignore[arg-type]
    for terms in ({"client": "a"}, whose):
        assert rehearsal.finish(make(text(12), **terms)) == 1  # type: ignore[arg-type]


def test_without_the_cache_nothing_is_found() -> None:
    rehearsal = Rehearsal(replace(CONFIG, enable_prefix_caching=False))
    assert [rehearsal.finish(make(text(12))) for _ in range(2)] == [12, 12]
    pool, tables = rehearsal.scheduler.blocks, rehearsal.scheduler.tables
    assert (pool.num_cached, len(pool.index), tables.num_queries, tables.num_hits) == (0, 0, 0, 0)


def test_whose_every_position_is_wanted_finds_nothing_and_leaves_what_it_computed() -> None:
    rehearsal = Rehearsal(CONFIG)
    rehearsal.finish(make(text(12)))
    scored, embeds = make(text(12), prompt_logprobs=0), make(text(12, first=50))
    embeds.embeds = True
    assert rehearsal.finish(scored) == 12
    assert rehearsal.finish(embeds) == 12
    assert rehearsal.finish(make(text(13, first=50))) == 1
    tables = rehearsal.scheduler.tables
    assert (tables.num_queries, tables.num_hits) == (12 + 13, 12), "they were not looked up"


def test_a_full_pool_gives_up_what_was_not_used_for_longest_and_a_tail_before_its_head() -> None:
    rehearsal = Rehearsal(replace(CONFIG, num_blocks=16))
    for first in (0, 100, 200, 300):
        assert rehearsal.finish(make(text(16, first))) == 16  # 4 blocks each
    assert rehearsal.finish(make(text(16, 0))) == 1, "it takes the last block of the chain of 100"
    assert rehearsal.scheduler.blocks.num_cached == 15, "and leaves it empty: what is in it is there already"
    assert rehearsal.finish(make(text(16, 100))) == 4
    assert rehearsal.finish(make(text(16, 0))) == 1


def test_who_needs_every_block_takes_the_one_it_would_have_copied() -> None:
    """A pool for one sequence: the tail that it could copy is the only block left to copy it into."""
    rehearsal = Rehearsal(replace(CONFIG, max_model_len=8, num_blocks=2))
    rehearsal.finish(make(text(6)))
    assert rehearsal.finish(make([*text(5), 77, 78])) == 3, "the full block is found, the tail is not"
    assert rehearsal.board.num_copies == 0


def test_a_preempted_sequence_finds_what_is_left_of_its_own() -> None:
    rehearsal = Rehearsal(replace(CONFIG, num_blocks=16))
    first, second = make(text(28), max_tokens=20), make(text(28, first=100), max_tokens=20)
    computed = rehearsal.finish(first, second)
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert 2 * 47 < computed < 2 * 47 + 28, "the oldest of its blocks were taken, not all"
    assert (second.num_cached, rehearsal.scheduler.tables.num_hits) == (0, 0), "its own are no hits"


def test_a_scored_prompt_finds_of_its_own_what_is_scored() -> None:
    rehearsal = Rehearsal(replace(CONFIG, num_blocks=16))
    first = make(text(28), max_tokens=20)
    second = make(text(28, first=100), max_tokens=20, prompt_logprobs=0)
    assert rehearsal.finish(first, second) < 2 * 47 + 28
    assert second.num_preemptions == 1


def test_what_came_of_numbers_that_are_none_is_not_found_again() -> None:
    rehearsal = Rehearsal(CONFIG)
    rehearsal.finish(make(text(4)))
    rehearsal.scheduler.add(poisoned := make(text(12)))
    assert rehearsal.step(token=-1) is not None
    assert poisoned.status.name == "FINISHED"
    assert rehearsal.finish(make(text(12))) == 12


def test_what_a_failed_step_wrote_is_not_found_again() -> None:
    scheduler = Scheduler(CONFIG)
    scheduler.add(make(text(12), max_tokens=9))
    first = scheduler.schedule()
    assert first is not None
    scheduler.commit(first, Drawn([7]))
    second = scheduler.schedule()
    assert second is not None
    (event,) = scheduler.fail(second, StepFailed, "no")
    assert event.finish is FinishReason.ERROR
    scheduler.check_integrity()
    assert scheduler.blocks.num_cached == 0


def test_an_aborted_reply_leaves_what_it_computed() -> None:
    rehearsal = Rehearsal(CONFIG)
    rehearsal.scheduler.add(aborted := make(text(10), max_tokens=9))
    rehearsal.step()
    rehearsal.scheduler.abort(aborted)
    assert rehearsal.finish(make(text(10))) == 1


def test_forks_start_from_what_their_leader_found_and_leave_their_own() -> None:
    rehearsal = Rehearsal(CONFIG)
    rehearsal.finish(make(text(10)))
    leader, fork = make(text(10), max_tokens=5), make(text(10), max_tokens=5)
    leader.forks, fork.leader = [fork], leader
    assert rehearsal.finish(leader, token=1) == 1 + 2 * 4
    assert (leader.num_cached, fork.num_cached) == (9, 9)
    assert rehearsal.finish(make([*text(10), 1, 1, 1, 1, 2])) == 1


@given(st.integers(0, 2**32), st.integers(8, 24), st.integers(4, 16))
def test_whatever_comes_everyone_reads_what_it_would_have_computed(
    seed: int, num_blocks: int, budget: int
) -> None:
    """Law 3 without a model: common beginnings, salts, forks, aborts, preemptions, small pools."""
    traffic(seed, num_blocks, budget)


def traffic(seed: int, num_blocks: int, budget: int) -> Rehearsal:
    """Random requests until none is left; whatever is read, copied and held is checked on the way."""
    rng = random.Random(seed)
    config = replace(CONFIG, max_model_len=32, num_blocks=num_blocks, max_num_batched_tokens=budget)
    rehearsal = Rehearsal(config)
    scheduler = rehearsal.scheduler
    for _ in range(60):
        if rng.random() < 0.4:
            scheduler.add(request(rng))
        if (alive := list(scheduler.sequences())) and rng.random() < 0.1:
            scheduler.abort(rng.choice(alive))
        rehearsal.step(token=-1 if rng.random() < 0.02 else rng.choice([0, 1]))
    rehearsal.finish()
    assert scheduler.tables.num_hits <= scheduler.tables.num_queries
    return rehearsal


def request(rng: random.Random) -> Sequence:
    """One of two texts, cut somewhere, and a few tokens of its own; two replies now and then."""
    prompt = text(rng.randint(0, 27), first=rng.choice([0, 100]))
    prompt += [rng.choice([0, 1]) for _ in range(rng.randint(1, 4))]
    terms = (rng.randint(1, 12), rng.choice("aab"), rng.choice(["", "", "s"]))
    leader, fork = make(prompt, *terms), make(prompt, *terms)
    if rng.random() < 0.2:
        leader.forks, fork.leader = [fork], leader
    elif rng.random() < 0.1:
        leader.params = replace(leader.params, prompt_logprobs=0)
    return leader


def test_all_of_it_happens_in_that_traffic() -> None:
    """The law would be empty if nothing were found, copied, taken again and preempted."""
    runs = [traffic(seed, 8 + seed % 17, 4 + seed % 13) for seed in range(40)]
    tables = [run.scheduler.tables for run in runs]
    assert sum(t.num_hits for t in tables) > 0.1 * sum(t.num_queries for t in tables) > 1000
    assert sum(run.board.num_copies for run in runs) > 100
    assert sum(run.scheduler.num_preemptions for run in runs) > 50
    assert sum(run.num_computed for run in runs) > 1000


def test_a_source_may_be_taken_in_the_step_that_copies_it() -> None:
    """What one sequence copies is the only block left for the next, which copies into it. Copies are made in
    order.
    """
    rehearsal = Rehearsal(replace(CONFIG, max_model_len=16, num_blocks=5))
    scheduler = rehearsal.scheduler
    rehearsal.finish(make([1, 1]))
    scheduler.add(held := make(text(8, first=50), max_tokens=5))
    rehearsal.step()
    rehearsal.step()
    assert (len(held.block_ids), scheduler.blocks.num_free, scheduler.blocks.num_cached) == (3, 2, 1)
    one, other = make([1, 1, 5], max_tokens=2), make([*text(5, first=50), 9], max_tokens=2)
    scheduler.add(one)
    scheduler.add(other)
    rehearsal.step()
    assert (one.num_cached, other.num_cached) == (2, 5)
    assert rehearsal.board.num_reused_sources == 1
