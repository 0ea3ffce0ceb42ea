"""Scheduling without a model: budgets, order, preemption, abort, and the one last event."""

import random

from hypothesis import given
from hypothesis import strategies as st

from llm.batch import Drawn
from llm.config import EngineConfig, SamplingParams
from llm.scheduler import Scheduler
from llm.sequence import Accepted, FinishReason, Sequence, TokenEvent


def make(num_prompt: int, max_tokens: int = 4, first: int = 0, **params: object) -> Sequence:
    prompt = list(range(first, first + num_prompt))
    return Sequence(prompt, SamplingParams(max_tokens=max_tokens, **params))  # type: ignore[arg-type]


def config(**overrides: int) -> EngineConfig:
    return EngineConfig(
        **{"max_model_len": 32, "max_num_seqs": 4, "max_num_batched_tokens": 8, "block_size": 4} | overrides
    )


def turn(scheduler: Scheduler, token: int = 7) -> tuple[list[tuple[int, int, int]], list[TokenEvent]]:
    """One step without a model: (sequence id, start, length) of each chunk, and the events."""
    batch = scheduler.schedule()
    assert batch is not None
    chunks = [(c.sequence.id, c.start, c.length) for c in batch.chunks]
    events = scheduler.commit(batch, Drawn([token] * len(batch.asking)))
    scheduler.check_integrity()
    return chunks, events


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoders() -> None:
    scheduler = Scheduler(config())
    short, long = make(2, max_tokens=8), make(20)
    scheduler.add(short)
    assert turn(scheduler)[0] == [(short.id, 0, 2)]
    scheduler.add(long)
    seen = [turn(scheduler)[0] for _ in range(3)]
    assert seen == [
        [(short.id, 2, 1), (long.id, 0, 7)],
        [(short.id, 3, 1), (long.id, 7, 7)],
        [(short.id, 4, 1), (long.id, 14, 6)],
    ]


def test_a_token_is_drawn_only_when_the_prompt_is_complete() -> None:
    scheduler = Scheduler(config())
    scheduler.add(make(20))
    assert [len(turn(scheduler)[1]) for _ in range(3)] == [0, 0, 1]


def test_first_come_first_served_up_to_the_row_limit() -> None:
    scheduler = Scheduler(config(max_num_seqs=2))
    sequences = [make(2, max_tokens=2) for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert [c[0] for c in turn(scheduler)[0]] == [sequences[0].id, sequences[1].id]
    turn(scheduler)
    assert [c[0] for c in turn(scheduler)[0]] == [sequences[2].id]


def test_out_of_blocks_preempts_the_youngest_and_finishes_everyone() -> None:
    scheduler = Scheduler(config(num_blocks=8, max_num_batched_tokens=32))
    sequences = [make(8, max_tokens=16) for _ in range(3)]  # 3 × 6 blocks wanted, 8 there
    for sequence in sequences:
        scheduler.add(sequence)
    finished: list[int] = []
    while scheduler.running or scheduler.waiting:
        finished += [e.sequence_id for e in turn(scheduler)[1] if e.finish]
    assert finished == [s.id for s in sequences], "the oldest finishes first, nobody is lost"
    assert scheduler.num_preemptions > 0
    assert sequences[0].num_preemptions == 0, "the oldest is never the victim"
    assert scheduler.blocks.num_free == 8


def test_stop_token_and_length_and_full_context() -> None:
    scheduler = Scheduler(config(max_num_batched_tokens=64))
    by_stop = make(2, stop_token_ids=frozenset({7}))
    by_length, by_context = make(2, max_tokens=1), make(31, max_tokens=9)
    for sequence in (by_stop, by_length, by_context):
        scheduler.add(sequence)
    events = {e.sequence_id: e for e in turn(scheduler)[1]}
    assert events[by_stop.id].finish is FinishReason.STOP
    assert events[by_length.id].finish is FinishReason.LENGTH
    assert events[by_context.id] == TokenEvent(by_context.id, 7, FinishReason.LENGTH)
    assert scheduler.schedule() is None


def test_logits_that_are_not_finite_end_that_sequence_alone() -> None:
    scheduler = Scheduler(config())
    poisoned, healthy = make(2), make(2)
    scheduler.add(poisoned)
    scheduler.add(healthy)
    batch = scheduler.schedule()
    assert batch is not None
    events = scheduler.commit(batch, Drawn([-1, 7]))
    assert [(e.sequence_id, e.finish) for e in events] == [
        (poisoned.id, FinishReason.ERROR),
        (healthy.id, None),
    ]
    scheduler.check_integrity()


@given(st.integers(0, 2**32), st.integers(8, 24), st.integers(4, 16))
def test_random_traffic_ends_every_sequence_exactly_once(seed: int, num_blocks: int, budget: int) -> None:
    """Joins, aborts and preemptions in any order: one last event each, no block lost, context never
    exceeded.
    """
    rng = random.Random(seed)
    scheduler = Scheduler(config(num_blocks=num_blocks, max_num_batched_tokens=budget))
    alive: dict[int, Sequence] = {}
    ended: list[int] = []
    for _ in range(60):
        if rng.random() < 0.3:
            sequence = make(rng.randint(1, 31), max_tokens=rng.randint(1, 40))
            alive[sequence.id] = sequence
            scheduler.add(sequence)
        if alive and rng.random() < 0.1:
            victim = rng.choice(list(alive.values()))
            ended += [e.sequence_id for e in scheduler.abort(victim)]
            assert scheduler.abort(victim) == []
        if (batch := scheduler.schedule()) is not None:
            assert batch.num_tokens <= budget
            ended += [
                e.sequence_id
                for e in scheduler.commit(batch, Drawn([rng.randint(0, 9) for _ in batch.asking]))
                if e.finish
            ]
        scheduler.check_integrity()
        for sequence_id in ended:
            alive.pop(sequence_id, None)
    for sequence in list(alive.values()):
        ended += [e.sequence_id for e in scheduler.abort(sequence)]
    assert len(ended) == len(set(ended))
    assert scheduler.blocks.num_free == num_blocks
    scheduler.check_integrity()


def test_a_preempted_sequence_goes_ahead_of_those_that_came_later() -> None:
    scheduler = Scheduler(config(num_blocks=8, max_num_batched_tokens=32, max_num_seqs=2))
    first, second, third = (make(12, max_tokens=16, first=100 * i) for i in range(3))
    for sequence in (first, second, third):
        scheduler.add(sequence)
    while not scheduler.num_preemptions:
        turn(scheduler)
    assert second.num_computed == 0
    assert second.block_ids == []
    assert [scheduler.waiting.pop() for _ in range(2)] == [second, third]


def test_a_block_is_taken_when_its_first_token_is_computed_and_not_before() -> None:
    scheduler = Scheduler(config())
    sequence = make(4, max_tokens=9)
    scheduler.add(sequence)
    held = []
    while scheduler.running or scheduler.waiting:
        turn(scheduler)
        held.append(len(sequence.block_ids))
    assert held == [1, 2, 2, 2, 2, 3, 3, 3, 0]


def test_the_first_fork_of_a_leader_that_leaves_the_queue_takes_its_place() -> None:
    scheduler = Scheduler(config(max_num_seqs=2))
    before, leader, after = make(2), make(2), make(2)
    fork = make(2)
    leader.forks, fork.leader = [fork], leader
    for sequence in (before, leader, after):
        scheduler.add(sequence)
    scheduler.abort(leader)
    scheduler.check_integrity()
    assert [scheduler.waiting.pop() for _ in range(3)] == [before, fork, after]


def test_a_stop_id_that_a_grammar_has_as_text_is_text() -> None:
    scheduler = Scheduler(config())
    sequence = make(2, stop_token_ids=frozenset([7]))
    scheduler.add(sequence)
    for accepted, finish in ((Accepted.GOES_ON, None), (Accepted.END, FinishReason.STOP)):
        batch = scheduler.schedule()
        assert batch is not None
        (event,) = scheduler.commit(batch, Drawn([7], accepted=[accepted]))
        assert (event.finish, event.is_text) == (finish, finish is None)
    scheduler.check_integrity()


def test_forks_that_have_not_started_count_as_waiting() -> None:
    scheduler = Scheduler(config(max_num_batched_tokens=4))
    leader = make(6)
    leader.forks = [make(6), make(6)]
    for fork in leader.forks:
        fork.leader = leader
    scheduler.add(leader)
    assert scheduler.num_waiting == 3
    turn(scheduler)
    assert (len(scheduler.running), scheduler.num_waiting) == (1, 2)
    turn(scheduler)
    assert (len(scheduler.running), scheduler.num_waiting) == (3, 0)
