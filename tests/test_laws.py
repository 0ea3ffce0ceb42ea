"""The laws that hold across files: fast equals slow, alone equals in company, streamed equals whole.

Run in float64 on a tiny model, where the order of a matrix product's sums cannot move a token.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llm.config import EngineConfig, SamplingParams
from llm.engine import Engine
from llm.generate import generate_cached, generate_naive
from llm.grammar import Grammars, GrammarSpec, Kind
from llm.kv.concat import NoCache
from llm.pace import Pace
from llm.runner.eager import EagerRunner
from llm.sequence import FinishReason, Sequence, TokenEvent
from llm.tokenizer import ByteTokenizer
from tests.fakes import one_by_one, tiny_model, tiny_text_model

LLAMA = {
    "norm": "rms",
    "activation": "swiglu",
    "rope_theta": 10000.0,
    "num_heads": 4,
    "num_kv_heads": 2,
    "tied_head": False,
}
SHAPES = {
    "course": {"tied_head": False},
    "gpt2": {
        "activation": "gelu_tanh",
        "attention_bias": True,
        "attention_out_bias": True,
        "ffn_bias": True,
        "tied_head": True,
    },
    "grouped queries": {"num_heads": 4, "num_kv_heads": 2},
    "llama": LLAMA,
    "qwen3": LLAMA | {"head_size": 12, "qk_norm": True, "rope_factors": (1.0, 1.0, 1.5, 2.0, 4.0, 8.0)},
    "mistral": LLAMA | {"sliding_window": 7, "num_full_layers": 1, "attention_bias": True},
}
MODELS = {name: tiny_model(dtype=torch.float64, **shape) for name, shape in SHAPES.items()}

GRAMMARS = Grammars(ByteTokenizer(), 257)

PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 70),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    top_k=st.sampled_from([0, 5, 50]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7, -0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    logit_bias=st.sampled_from([(), (), ((5, 3.0), (65, -100.0))]),
    seed=st.integers(0, 2**40),
    stop_token_ids=st.sampled_from([frozenset(), frozenset(range(0, 257, 29))]),
    min_tokens=st.sampled_from([0, 0, 1]),
)
PROMPTS = st.lists(st.integers(0, 256), min_size=1, max_size=50) | st.lists(
    st.integers(0, 2), min_size=1, max_size=50
)
NUM_GUESSES = st.sampled_from([0, 1, 5])


class FreeRows(Pace):
    """A pace at which every guess pays."""

    decoders = 1.0
    token = 0.0


class Drive:
    """An engine without its thread: steps when told, keeps every event."""

    def __init__(self, model_name: str, **config: int) -> None:
        self.model = MODELS[model_name]
        bounds = EngineConfig(**{"max_model_len": 64, "max_num_seqs": 4, "block_size": 4} | config)
        self.events: dict[int, list[TokenEvent]] = defaultdict(list)
        self.engine = Engine(EagerRunner(self.model, bounds), bounds, 257, self._keep)
        self.scheduler = self.engine.scheduler
        self.scheduler.speculation.pace = FreeRows(0.0)

    def _keep(self, events: list[TokenEvent]) -> None:
        for event in events:
            self.events[event.sequence_id].append(event)

    def finish(self) -> None:
        while self.engine.step():
            self.scheduler.check_integrity()
        assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_blocks

    def reply(self, sequence: Sequence) -> tuple[list[int], FinishReason]:
        events = self.events[sequence.id]
        assert [e.finish for e in events[:-1]] == [None] * (len(events) - 1), "a last event, and only one"
        assert events[-1].finish is not None
        return [e.token_id for e in events if e.token_id is not None], events[-1].finish


def replies(prompt: list[int], params: SamplingParams, n: int, **terms: str) -> list[Sequence]:
    """n replies to one prompt: the first leads, the others fork from it."""
    terms = terms or {"client": str(len(prompt) % 3)}
    leader, *forks = (
        Sequence(prompt, replace(params, choice=i), priority=len(prompt) % 2, **terms)  # type: ignore[arg-type]
        for i in range(n)
    )
    leader.forks = list(forks)
    for fork in forks:
        fork.leader = leader
    return [leader, *forks]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None)
@given(prompt=PROMPTS, params=PARAMS, budget=st.integers(4, 64), guesses=NUM_GUESSES)
def test_engine_equals_cached_equals_naive(
    shape: str, prompt: list[int], params: SamplingParams, budget: int, guesses: int
) -> None:
    """Law 1, for any prompt, policy, prefill chunking and drafts, up to and at the end of the positions."""
    drive = Drive(shape, max_num_batched_tokens=budget, num_speculative_tokens=guesses)
    sequence = Sequence(prompt, params)
    drive.scheduler.add(sequence)
    drive.finish()
    cached = generate_cached(drive.model, prompt, params)
    assert cached == generate_naive(drive.model, prompt, params)
    assert drive.reply(sequence) == cached


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None)
@given(
    jobs=st.lists(st.tuples(PROMPTS, PARAMS, st.sampled_from([1, 1, 1, 2, 5])), min_size=2, max_size=5),
    seed=st.integers(0, 2**32),
    budget=st.integers(4, 40),
    num_blocks=st.integers(16, 40),
    guesses=NUM_GUESSES,
)
def test_company_changes_nothing(
    shape: str,
    jobs: list[tuple[list[int], SamplingParams, int]],
    seed: int,
    budget: int,
    num_blocks: int,
    guesses: int,
) -> None:
    """Law 2: joins at any step, forks, aborts of others, chunked prefills, preemptions and drafts leave a
    reply as it is alone.
    """
    rng = random.Random(seed)
    bounds = {"max_num_batched_tokens": budget, "num_blocks": num_blocks, "num_speculative_tokens": guesses}
    drive = Drive(shape, **bounds)
    groups = [replies(prompt, params, n) for prompt, params, n in jobs]
    sequences = [sequence for group in groups for sequence in group]
    waiting, aborted = [group[0] for group in groups], set()
    while waiting or drive.scheduler.running or drive.scheduler.waiting:
        if waiting and rng.random() < 0.5:
            drive.scheduler.add(waiting.pop())
        if rng.random() < 0.05 and (alive := list(drive.scheduler.sequences())):
            victim = rng.choice(alive)
            aborted.add(victim.id)
            drive._keep(drive.scheduler.abort(victim))
        drive.engine.step()
        drive.scheduler.check_integrity()
    drive.finish()
    for sequence in sequences:
        tokens, finish = drive.reply(sequence)
        alone, reason = generate_cached(drive.model, sequence.prompt, sequence.params)
        if sequence.id in aborted:
            assert tokens == alone[: len(tokens)]
        else:
            assert (tokens, finish) == (alone, reason)


@pytest.mark.parametrize("num_prompt", [1, 3, 4, 5, 12, 13])
def test_forks_share_one_prefill_and_copy_what_they_write(num_prompt: int) -> None:
    """Four replies, one prompt: computed once, its full blocks held together, every reply as if alone."""
    drive = Drive("llama", max_num_seqs=4, max_num_batched_tokens=6)
    prompt = list(range(num_prompt))
    params = SamplingParams(max_tokens=9, temperature=1.3, seed=3)
    sequences = replies(prompt, params, 4)
    drive.scheduler.add(sequences[0])
    while len(drive.scheduler.running) < 4:
        drive.engine.step()
        drive.scheduler.check_integrity()
    pool = drive.scheduler.blocks
    assert pool.num_blocks - pool.num_free == -(-num_prompt // 4), "four replies hold one prompt's blocks"
    drive.finish()
    assert drive.engine.num_prompt_tokens == num_prompt
    alone = [generate_cached(drive.model, prompt, s.params) for s in sequences]
    assert [drive.reply(s) for s in sequences] == alone
    assert len({tuple(tokens) for tokens, _ in alone}) == 4


@pytest.mark.parametrize("shape", ["course", "llama"])
@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(prompt=PROMPTS, params=PARAMS, budget=st.integers(4, 40), num_blocks=st.integers(16, 24))
def test_logprobs_and_embeddings_are_the_teachers(
    shape: str, prompt: list[int], params: SamplingParams, budget: int, num_blocks: int
) -> None:
    """Whatever chunking, company and preemption: what one forward pass over the whole text says."""
    drive = Drive(shape, max_num_batched_tokens=budget, num_blocks=num_blocks)
    asked = replace(params, max_tokens=min(params.max_tokens, 20), logprobs=3, prompt_logprobs=1)
    drive.scheduler.add(Sequence([5] * 30, SamplingParams(max_tokens=30)))
    leader, fork = replies(prompt, asked, 2)
    fork.params = replace(fork.params, prompt_logprobs=None)
    embedded = Sequence(prompt, SamplingParams(max_tokens=1), embeds=True)
    for sequence in (leader, embedded):
        drive.scheduler.add(sequence)
    drive.finish()
    (event,) = drive.events[embedded.id]
    with torch.inference_mode():
        hidden = drive.model(torch.tensor([prompt]), torch.arange(len(prompt)), NoCache())[0]
    assert event.embedding == pytest.approx(hidden.mean(0).tolist(), abs=1e-9)
    for sequence in (leader, fork):
        tokens, _ = drive.reply(sequence)
        whole = torch.tensor([prompt + tokens])
        with torch.inference_mode():
            logits = drive.model.logits(drive.model(whole, torch.arange(whole.shape[1]), NoCache()))[0]
        values = (
            logits.log_softmax(-1)[:-1].gather(-1, whole[0, 1:, None])[:, 0].tolist()
        )  # from the second on
        events = drive.events[sequence.id]
        scored = [logprob for event in events for logprob in event.prompt_logprobs]
        drawn = [event.logprob for event in events if event.token_id is not None]
        assert all(logprob is not None for logprob in drawn)
        first = len(prompt) - 1
        assert [d.value for d in drawn if d] == pytest.approx(values[first:], abs=1e-5)
        assert all(len(d.top) == 3 and d.top[0][1] >= d.value - 1e-9 for d in drawn if d)
        if sequence is leader:
            assert [s.token_id for s in scored] == prompt[1:]
            assert [s.value for s in scored] == pytest.approx(values[:first], abs=1e-5)
            assert all((s.rank == 1) == (s.top[0][0] == s.token_id) for s in scored)
        else:
            assert not scored


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32), num_blocks=st.integers(16, 20), temperature=st.sampled_from([0.0, 1.0]))
def test_a_grammar_is_followed_alike_alone_and_in_company(
    seed: int, num_blocks: int, temperature: float
) -> None:
    """Law 2 for structured output: forks, preemption and neighbours without a grammar change no token."""
    kinds: list[Kind] = ["choice", "regex", "regex"]
    specs = ['["yes, of course", "no"]', "(ab|ba){3,12}", "[a-f0-9]{4,30}!"]
    forms = [GRAMMARS.compile(GrammarSpec(kind, spec)) for kind, spec in zip(kinds, specs, strict=True)]
    jobs = [([seed % 251, 7 + i], SamplingParams(40, temperature, seed=seed + i)) for i in range(4)]

    def run(drive: Drive, which: list[int]) -> list[list[Sequence]]:
        groups = []
        for i in which:
            group = replies(*jobs[i], 2)
            for sequence in group if i < len(forms) else []:
                sequence.matcher = forms[i].matcher(frozenset([256]))
            drive.scheduler.add(group[0])
            groups.append(group)
        drive.finish()
        return groups

    company = Drive("llama", num_blocks=num_blocks, max_num_seqs=8)
    together = run(company, [0, 1, 2, 3])
    for i, group in enumerate(together):
        alone = Drive("llama")
        for one, other in zip(run(alone, [i])[0], group, strict=True):
            assert alone.reply(one) == company.reply(other)
            text = bytes(token for token in alone.reply(one)[0] if token < 256).decode(errors="replace")
            if i == 0:
                assert text in ("yes, of course", "no")
            elif i < len(forms):
                assert re.fullmatch(specs[i], text) or alone.reply(one)[1] is FinishReason.LENGTH


class Visit(NamedTuple):
    """A request of one of two texts' beginnings, as it will be sent twice: with the cache and without."""

    prompt: list[int]
    params: SamplingParams
    terms: dict[str, str]
    num_choices: int
    comes: int
    leaves: int | None


def visits(rng: random.Random) -> list[Visit]:
    """A dozen, of two clients with two salts."""
    texts = [[rng.randrange(257) for _ in range(40)] for _ in range(2)]
    made = []
    for i in range(12):
        prompt = rng.choice(texts)[: rng.randint(0, 40)] + [
            rng.randrange(257) for _ in range(rng.randint(1, 5))
        ]
        logprobs = 0 if rng.random() < 0.1 else None
        params = SamplingParams(rng.randint(1, 20), rng.choice([0.0, 1.0]), seed=i, prompt_logprobs=logprobs)
        terms = {"client": rng.choice("aab"), "cache_salt": rng.choice(["", "", "s"])}
        leaves = rng.randint(1, 40) if rng.random() < 0.2 else None
        made.append(Visit(prompt, params, terms, rng.choice([1, 1, 1, 2]), rng.randint(0, 60), leaves))
    return made


def receive(drive: Drive, jobs: list[Visit]) -> list[tuple[list[int], FinishReason]]:
    """What each of their replies came to."""
    groups = [replies(job.prompt, job.params, job.num_choices, **job.terms) for job in jobs]
    for turn in range(100):
        for job, group in zip(jobs, groups, strict=True):
            if job.comes == turn:
                drive.scheduler.add(group[0])
            if job.leaves is not None and job.comes + job.leaves == turn:
                drive._keep(drive.scheduler.abort(group[0]))
        drive.engine.step()
        drive.scheduler.check_integrity()
    drive.finish()
    return [drive.reply(sequence) for group in groups for sequence in group]


@pytest.mark.parametrize("shape", ["course", "llama", "mistral"])
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32), budget=st.integers(4, 40), num_blocks=st.integers(16, 40))
def test_the_prefix_cache_changes_nothing(shape: str, seed: int, budget: int, num_blocks: int) -> None:
    """Law 3: with it and without, whoever comes, forks, leaves and is preempted. What is found of other
    tokens, clients and salts is looked at place by place in tests/llm/test_tables.py.
    """
    jobs = visits(random.Random(seed))
    bounds = {"max_num_batched_tokens": budget, "num_blocks": num_blocks}
    cached, plain = (Drive(shape, **bounds, enable_prefix_caching=on) for on in (True, False))
    pairs = zip(receive(cached, jobs), receive(plain, jobs), strict=True)
    for (tokens, finish), (expected, reason) in pairs:
        if FinishReason.ABORT in (finish, reason):
            num_common = min(len(tokens), len(expected))
            assert tokens[:num_common] == expected[:num_common]
        else:
            assert (tokens, finish) == (expected, reason)


def test_prefixes_are_really_found_in_these_tests() -> None:
    """The law above would be empty if the cache never helped."""
    drive = Drive("course", max_num_batched_tokens=16, num_blocks=40)
    receive(drive, visits(random.Random(1)))
    tables = drive.scheduler.tables
    assert 0.1 * tables.num_queries < tables.num_hits


def test_preemption_really_happens_in_these_tests() -> None:
    """The law above would be empty if no block pool ever ran out."""
    drive = Drive("course", num_blocks=16)
    for start in range(4):
        drive.scheduler.add(Sequence([start] * 20, SamplingParams(max_tokens=40, temperature=0.0)))
    drive.finish()
    assert drive.scheduler.num_preemptions > 0


@settings(max_examples=15, deadline=None)
@given(
    prompt=PROMPTS,
    params=PARAMS,
    stop=st.lists(st.binary(min_size=1, max_size=2).map(lambda b: b.decode("latin-1")), max_size=3).map(
        tuple
    ),
    n=st.integers(1, 3),
)
def test_streamed_text_joined_is_the_whole_text(
    prompt: list[int], params: SamplingParams, stop: tuple[str, ...], n: int
) -> None:
    """Law 4 at the text level: the deltas of every choice, joined, are the reply cut at its first stop
    string.
    """
    params = SamplingParams(**{f: getattr(params, f) for f in params.__slots__} | {"stop": stop})
    model = MODELS["course"]

    async def stream() -> dict[int, tuple[str, int, FinishReason | None]]:
        text_model = tiny_text_model(model)
        text_model.start()
        got: dict[int, tuple[str, int, FinishReason | None]] = {}
        try:
            async for delta in one_by_one(text_model.stream(prompt, params, n, strip=False)):
                text, tokens, finish = got.get(delta.choice, ("", 0, None))
                assert finish is None, "nothing follows a choice's last delta"
                got[delta.choice] = (text + delta.text, tokens + delta.num_tokens, delta.finish)
        finally:
            await text_model.close()
        text_model.engines[0].scheduler.check_integrity()
        return got

    for choice, (text, num_tokens, finish) in asyncio.run(stream()).items():
        same = SamplingParams(**{f: getattr(params, f) for f in params.__slots__} | {"choice": choice})
        tokens, reason = generate_cached(model, prompt, same)
        kept = [t for t in tokens if t not in params.stop_token_ids and t < 256]
        whole = bytes(kept).decode("utf-8", errors="replace")
        cut = min((whole.find(s) for s in stop if s in whole), default=None)
        assert text == (whole if cut is None else whole[:cut])
        assert finish is (reason if cut is None else FinishReason.STOP)
        assert num_tokens == len(tokens) if cut is None else num_tokens <= len(tokens)


def test_200_requests_with_a_fifth_aborted_leave_every_block_free() -> None:
    """Law 6, through the engine's own thread: one last event each, nothing held afterwards."""
    rng = random.Random(5)

    async def one(text_model: object, index: int) -> str:
        params = SamplingParams(max_tokens=rng.randint(1, 30), temperature=1.0, seed=index)
        prompt = [index % 256] * rng.randint(1, 40)
        stream = one_by_one(text_model.stream(prompt, params))  # type: ignore[attr-defined]
        leave_after = rng.randint(1, 5) if index % 5 == 0 else None
        seen = 0
        async for delta in stream:
            seen += 1
            if delta.finish is not None:
                return "finished"
            if seen == leave_after:
                await stream.aclose()
                return "aborted"
        raise AssertionError("the stream ended without a last delta")

    async def all_of_them() -> list[str]:
        text_model = tiny_text_model(MODELS["course"], num_blocks=24, max_num_seqs=8)
        text_model.start()
        ends = await asyncio.gather(*(one(text_model, i) for i in range(200)))
        while any(s.num_running or s.num_waiting for s in text_model.stats()):
            await asyncio.sleep(0)
        scheduler = text_model.engines[0].scheduler
        scheduler.check_integrity()
        assert scheduler.blocks.num_free == scheduler.blocks.num_blocks == 24
        assert not text_model._mailboxes
        await text_model.close()
        return ends

    ends = asyncio.run(all_of_them())
    assert len(ends) == 200
    assert 10 <= ends.count("aborted") <= 40
