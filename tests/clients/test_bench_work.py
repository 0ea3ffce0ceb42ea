"""What is sent: the same shape in every round, other texts; lengths, mixtures and arrivals as asked."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest

from clients.bench.work import QUESTIONS, REQUEST, WORDS, Fit, Job, Kind, Length, Level, Work

LEVEL = Level(32, streams=4)


def work(prompt: int | Length = 48, reply: int | Length = 64, seed: int = 0, prefix: int = 0) -> Work:
    lengths = (n if isinstance(n, Length) else Length(n) for n in (prompt, reply))
    return Work([Kind(*lengths)], seed, in_words=True, prefix=prefix)


def num_words(job: Job) -> int:
    return len(job.prompt.split())


def test_all_words_have_four_letters_and_are_distinct() -> None:
    assert {len(word) for word in WORDS + REQUEST} == {4}
    assert len(set(WORDS)) == len(WORDS) >= 256


@pytest.mark.parametrize("count", [1, 13, 14, 48, 1000])
def test_prompts_have_exactly_so_many_words_and_replies_so_many_tokens(count: int) -> None:
    jobs = work(Length(count)).jobs(LEVEL, 0)
    assert {num_words(job) for job in jobs} == {count}
    assert {job.max_tokens for job in jobs} == {64} and [job.seed for job in jobs] == list(range(32))
    assert all(job.prompt.endswith(" ".join(REQUEST)) for job in jobs) == (count >= 14)


def test_one_seed_is_one_work() -> None:
    assert work().jobs(LEVEL, 3) == work().jobs(LEVEL, 3)
    assert work().jobs(LEVEL, 3) != work(seed=1).jobs(LEVEL, 3)


def test_rounds_and_levels_share_no_text_so_that_nothing_is_remembered() -> None:
    made = work()
    texts = [
        job.prompt for level in (LEVEL, Level(32, streams=1)) for n in (0, 1) for job in made.jobs(level, n)
    ]
    assert len({tuple(text.split()[:3]) for text in texts}) == len(texts) == 128


def test_rounds_share_lengths_and_arrivals() -> None:
    made, level = work(Length(10, 40), Length(1, 99)), Level(32, rate=5)
    first, second = made.jobs(level, 0), made.jobs(level, 1)
    shapes = [[(num_words(job), job.max_tokens, job.due) for job in jobs] for jobs in (first, second)]
    assert shapes[0] == shapes[1]
    assert {job.prompt for job in first}.isdisjoint(job.prompt for job in second)
    lengths, replies = [shape[0] for shape in shapes[0]], [shape[1] for shape in shapes[0]]
    assert 10 <= min(lengths) < 18 and 32 < max(lengths) <= 40
    assert 1 <= min(replies) < 20 and 80 < max(replies) <= 99


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    dues = [job.due for job in work().jobs(Level(4000, rate=20), 0)]
    gaps = [late - early for early, late in zip(dues, dues[1:], strict=False)]
    assert dues[0] == 0 and min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.06), (
        "gaps of a Poisson process spread as wide"
    )
    short = sum(gap < 0.5 / 20 for gap in gaps) / len(gaps)
    assert short == pytest.approx(1 - 2.718281828**-0.5, abs=0.03)


def test_streams_do_not_wait() -> None:
    assert {job.due for job in work().jobs(LEVEL, 0)} == {0.0}


def test_a_mixture_is_drawn_by_weight() -> None:
    mix = Work([Kind(Length(20), Length(8), 3), Kind(Length(200), Length(2), 1)], seed=0)
    jobs = mix.jobs(Level(2000, streams=1), 0)
    counts = Counter((num_words(job), job.max_tokens) for job in jobs)
    assert set(counts) == {(20, 8), (200, 2)}
    assert counts[20, 8] / 2000 == pytest.approx(0.75, abs=0.03)


def test_lengths_are_met_in_tokens_as_the_server_counts() -> None:
    made = Work([Kind(Length(64), Length(1))], fit=Fit(extra=10, per_word=5))  # a tokenizer of bytes
    job = made.jobs(LEVEL, 0)[0]
    assert num_words(job) == 10 and 10 + 5 * 10 <= 64
    assert Fit(extra=80, per_word=1).num_words(64) == 1, "the template alone is longer"


def test_a_common_prefix_is_the_runs_own() -> None:
    made = work(Length(20), prefix=100)
    made.fit = Fit(extra=0, per_word=2)

    def heads(level: Level, number: int) -> set[str]:
        return {" ".join(job.prompt.split()[:50]) for job in made.jobs(level, number)}

    runs = [heads(level, number) for level in (LEVEL, Level(8, streams=1)) for number in (0, 1)]
    assert [len(run) for run in runs] == [1] * 4 and len(set.union(*runs)) == 4
    assert {num_words(job) for job in made.jobs(LEVEL, 0)} == {50 + 20}, "the prefix is in tokens"
    first = made.first_of_prefix(LEVEL, 1)
    assert first is not None and {" ".join(first.prompt.split()[:50])} == runs[1]
    assert first.prompt not in {job.prompt for job in made.jobs(LEVEL, 1)}
    assert work().first_of_prefix(LEVEL, 0) is None


def test_no_length_sends_plain_questions() -> None:
    assert [job.prompt for job in work(Length(0)).jobs(LEVEL, 0)] == list(QUESTIONS) * 2
