"""Guesses are computed where they pay, kept where they are right, and counted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from llm.batch import Batch, Drawn
from llm.checkpoint import open_checkpoint
from llm.config import EngineConfig, SamplingParams
from llm.engine import Engine
from llm.pace import Pace
from llm.runner.native.runner import NativeRunner
from llm.scheduler import Scheduler
from llm.sequence import Accepted, FinishReason, Sequence
from llm.speculation import Speculation

CAUSETTE = Path(__file__).parents[2] / "checkpoints" / "causette"
COUNTING = list(range(20)) * 2
"""Its end, 17 18 19, was followed by 0 1 2 … before."""


class Cost(Pace):
    """A pace that is what it is."""

    decoders = token = 0.0

    def __init__(self, decoders: float, token: float) -> None:
        super().__init__(0.0)
        self.decoders, self.token = decoders, token


def scheduler_of(most: int, decoders: float = 1.0, token: float = 0.0, **config: Any) -> Scheduler:
    bounds = EngineConfig(
        **{"max_model_len": 200, "max_num_seqs": 4, "num_speculative_tokens": most, **config}
    )
    scheduler = Scheduler(bounds)
    scheduler.pace = scheduler.speculation.pace = Cost(decoders, token)
    return scheduler


def step(scheduler: Scheduler, *tokens: int) -> Batch:
    """One step that draws these."""
    batch = scheduler.schedule()
    assert batch is not None and len(batch.asking) == len(tokens), batch
    scheduler.commit(batch, Drawn(list(tokens)))
    scheduler.check_integrity()
    return batch


def test_right_guesses_are_kept_up_to_the_first_that_is_wrong() -> None:
    scheduler = scheduler_of(4)
    sequence = Sequence(COUNTING, SamplingParams(max_tokens=50))
    scheduler.add(sequence)
    assert step(scheduler, 0).chunks[0].draft == ()  # the prompt itself is no time for guesses
    batch = step(scheduler, 1, 2, 77, 4, 5)
    assert batch.chunks[0].draft == (1, 2, 3, 4) and batch.num_tokens == 5
    assert (batch.places, batch.given) == ([1, 2, 3, 4, 5], [None, 1, 2, 3, 4])
    assert sequence.output == [0, 1, 2, 77], "the model's own token after the last right guess"
    assert sequence.num_uncomputed == 1
    assert (scheduler.speculation.num_drafted, scheduler.speculation.num_accepted) == (4, 2)
    assert scheduler.num_tokens == 4


def test_guesses_that_cost_too_much_stop_and_are_tried_again_in_a_while() -> None:
    """A guess beside one decoder turns out to cost one and a half times the step."""
    scheduler = Scheduler(EngineConfig(400, max_num_seqs=4, num_speculative_tokens=4))
    sequence = Sequence([7] * 40, SamplingParams(max_tokens=300))
    scheduler.add(sequence)
    drafted = []
    while len(sequence.output) < 290:
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.commit(batch, Drawn([7] * len(batch.asking)))
        scheduler.learn(batch, 0.010 + 0.015 * batch.num_guessed + 0.0001 * batch.num_tokens)
        drafted.append(batch.num_guessed)
    assert any(drafted[:4]), "nobody knew"
    tries = [place for place, count in enumerate(drafted) if count]
    assert len(tries) < 20 and max(tries) > 100


def test_a_wrong_guess_is_not_made_right_by_a_later_token() -> None:
    """The second guess equals what was drawn instead of the first: it stands elsewhere all the same."""
    scheduler = scheduler_of(2)
    sequence = Sequence([1, 2, 3, 8, 9, 1, 2], SamplingParams(max_tokens=50))
    scheduler.add(sequence)
    step(scheduler, 3)
    assert step(scheduler, 9, 5, 6).chunks[0].draft == (8, 9)
    assert sequence.output == [3, 9]


def test_what_ends_a_reply_ends_it_among_guesses() -> None:
    scheduler = scheduler_of(4)
    sequence = Sequence(COUNTING, SamplingParams(max_tokens=50, stop_token_ids=frozenset([2])))
    scheduler.add(sequence)
    step(scheduler, 0)
    batch = scheduler.schedule()
    assert batch is not None
    events = scheduler.commit(batch, Drawn([1, 2, 3, 4, 5]))
    assert [event.token_id for event in events] == [1, 2]
    assert [event.finish for event in events] == [None, FinishReason.STOP]
    assert scheduler.schedule() is None
    scheduler.check_integrity()


@pytest.mark.parametrize("limits", [{"max_tokens": 3}, {"max_model_len": 43}])
def test_guesses_end_where_the_reply_must(limits: dict[str, int]) -> None:
    scheduler = scheduler_of(4, max_model_len=limits.get("max_model_len", 200))
    scheduler.add(Sequence(COUNTING, SamplingParams(max_tokens=limits.get("max_tokens", 50))))
    step(scheduler, 0)
    assert step(scheduler, 1, 2).chunks[0].draft == (1,)
    assert scheduler.schedule() is None


def test_a_guess_takes_nobodys_block() -> None:
    """48 tokens fill three blocks, and there are three: the step goes on without guesses."""
    scheduler = scheduler_of(8, max_model_len=48, num_blocks=3)
    scheduler.add(Sequence(COUNTING + [0, 1, 2, 3], SamplingParams(max_tokens=50)))
    step(scheduler, 4)
    assert step(scheduler, 5, 6, 7).chunks[0].draft == (5, 6)
    other = scheduler_of(8, max_model_len=64, num_blocks=4)
    other.add(Sequence(COUNTING + [0, 1, 2, 3], SamplingParams(max_tokens=50)))
    other.add(Sequence([50], SamplingParams(max_tokens=50)))
    step(other, 4, 51)
    assert [chunk.draft for chunk in step(other, 5, 52).chunks] == [(), ()]


def test_penalties_grammars_forks_and_prompts_are_not_guessed_at() -> None:
    class Anything:
        error = None

        def accept(self, token: int) -> Accepted:
            return Accepted.GOES_ON

    penalty = Sequence(COUNTING, SamplingParams(max_tokens=9, presence_penalty=0.5))
    formed = Sequence(COUNTING, SamplingParams(max_tokens=9), matcher=Anything())
    for sequence in (penalty, formed):
        scheduler = scheduler_of(4)
        scheduler.add(sequence)
        step(scheduler, 0)
        assert step(scheduler, 1).chunks[0].draft == ()
    leader, fork = (Sequence([5], SamplingParams(max_tokens=9, choice=i)) for i in range(2))
    leader.forks, fork.leader = [fork], leader
    scheduler = scheduler_of(4)
    scheduler.add(leader)
    assert step(scheduler, 6, 6).chunks[0].draft == ()
    decoding = Sequence(COUNTING, SamplingParams(max_tokens=9))
    scheduler = scheduler_of(4)
    scheduler.add(decoding)
    step(scheduler, 0)
    scheduler.add(Sequence([7, 7, 7], SamplingParams(max_tokens=9)))
    assert step(scheduler, 1, 7).chunks[0].draft == ()


@pytest.mark.parametrize(
    ("num_streams", "rate", "per_token", "expected"),
    [
        (1, 0.5, 0.2, 2),  # 1/2 · 1.2 > 0.2 · 1 and 1/4 · 1.4 > 0.2 · 1.5, but 1/8 · 1.6 < 0.2 · 1.75
        (1, 0.1, 0.2, 0),
        (16, 0.5, 0.2, 0),
        (1, 1.0, 0.2, 8),
        (1, 0.5, 1e-9, 8),
    ],
)
def test_guesses_are_added_while_each_brings_more_than_it_costs(
    num_streams: int, rate: float, per_token: float, expected: int
) -> None:
    config = EngineConfig(max_model_len=200, num_speculative_tokens=8)
    speculation = Speculation(config, Cost(1.2, per_token))
    decoders = [Sequence(COUNTING, SamplingParams(max_tokens=50)) for _ in range(num_streams)]
    for sequence in decoders:
        speculation._guess(sequence, 8)
        assert sequence.lookup is not None
        sequence.lookup.rate = rate
    drafts = speculation.drafts(decoders, 512)
    assert len(drafts[0]) == expected
    assert drafts[0] == list(range(expected))


def test_a_budget_bounds_all_guesses_together() -> None:
    speculation = Speculation(EngineConfig(max_model_len=200, num_speculative_tokens=8), Cost(1.0, 0.0))
    decoders = [Sequence(COUNTING, SamplingParams(max_tokens=50)) for _ in range(3)]
    assert [len(draft) for draft in speculation.drafts(decoders, 11)] == [8, 3, 0]


@pytest.mark.slow
def test_five_hundred_requests_say_the_same_with_guesses_and_without() -> None:
    """On the kernel, to the bit: greedy and sampled, in batches, among aborts, in a cache so small that many
    are preempted. Every guess is computed, so many are wrong.
    """
    checkpoint = open_checkpoint(CAUSETTE)
    engines = []
    for guesses in (0, 5):
        config = EngineConfig(
            256, max_num_seqs=12, num_blocks=40, num_speculative_tokens=guesses, enable_prefix_caching=False
        )
        runner = NativeRunner(checkpoint.config, checkpoint.weights(), config, num_threads=1)
        engines.append(Engine(runner, config, checkpoint.tokenizer.vocab_size, emit=lambda events: None))
    rng = random.Random(0)
    jobs = []
    for number in range(500):
        said = [rng.randrange(50257) for _ in range(rng.randint(3, 20))]
        prompt = said * rng.randint(1, 3)
        params = SamplingParams(
            max_tokens=rng.randint(1, 60),
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([0, 3, 50]),
            top_p=rng.choice([0.9, 1.0]),
            seed=number,
        )
        jobs.append((prompt, params))
    plain, guessed = (replies_of(engine, jobs, seed) for seed, engine in enumerate(engines))
    for alone, other in zip(plain, guessed, strict=True):
        shorter = min(len(alone), len(other))  # one of them may have been aborted
        assert alone[:shorter] == other[:shorter]
    assert sum(len(a) == len(b) for a, b in zip(plain, guessed, strict=True)) > 300
    stats = engines[1].stats()
    assert stats.num_drafted > 1.5 * stats.num_accepted > 400 and stats.num_preemptions > 20


def replies_of(engine: Engine, jobs: list[tuple[list[int], SamplingParams]], seed: int) -> list[list[int]]:
    """What is said to each, while one of fifteen is aborted under way."""
    rng = random.Random(seed)
    engine.scheduler.speculation.pace = Cost(1.0, 0.0)
    sequences = [Sequence(prompt, params) for prompt, params in jobs]
    for sequence in sequences:
        engine.scheduler.add(sequence)
    while engine.step():
        engine.scheduler.check_integrity()
        if rng.random() < 0.05 and engine.scheduler.running:
            engine.scheduler.abort(rng.choice(engine.scheduler.running))
    return [sequence.output for sequence in sequences]
