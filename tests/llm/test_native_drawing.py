"""A whole engine on the native runner: whatever a request may ask, drawn by its sampler and by torch's."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from llm.config import SamplingParams
from llm.engine import Engine
from llm.grammar import Grammars, GrammarSpec
from llm.sampler.eager import EagerSampler
from llm.sequence import Sequence, TokenEvent
from llm.tokenizer import ByteTokenizer
from tests.llm.native_models import CONFIGS, engine_config, isas, native

pytestmark = pytest.mark.skipif(not isas(), reason="needs a CPU with AVX2 and a C compiler")
GRAMMARS = Grammars(ByteTokenizer(), 257)
FORM = GrammarSpec(
    "json_schema", '{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}'
)


def everybody() -> list[Sequence]:
    """Whatever a request may ask for, side by side: forks, grammars, penalties, prompts that are scored."""
    rng = random.Random(11)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 5, "prompt_logprobs": 2},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.1, "logprobs": 0},
        {"min_p": 0.02, "logit_bias": ((7, 4.0), (200, -100.0))},
        {"min_tokens": 12, "stop_token_ids": frozenset(range(128))},
        {"temperature": 1.7, "top_p": 0.99, "presence_penalty": 1.0, "logprobs": 20},
    ]
    crowd = []
    for i in range(18):
        params = SamplingParams(rng.randint(14, 40), seed=i, **kinds[i % 6])
        matcher = GRAMMARS.compile(FORM).matcher(params.stop_token_ids) if i % 4 == 3 else None
        crowd.append(
            Sequence([rng.randrange(257) for _ in range(rng.randint(1, 60))], params, matcher=matcher)
        )
        if i % 5 == 1:
            crowd[-1].forks = [replace_choice(crowd[-1], choice) for choice in (1, 2)]
    return crowd


def replace_choice(leader: Sequence, choice: int) -> Sequence:
    """Another reply to the prompt, which is scored for the leader alone."""
    params = replace(leader.params, choice=choice, prompt_logprobs=None)
    return Sequence(leader.prompt, params, leader=leader)


def test_an_engine_says_the_same_by_either_sampler() -> None:
    """Rows come, go, are preempted and come back. Which ones a step holds hangs on how long steps take,
    and is another matter each time here; so each sequence is compared by itself.
    """

    def say(by_torch: bool) -> tuple[list[tuple[Any, ...]], list[float]]:
        network = replace(CONFIGS["llama"], vocab_size=257)
        config = engine_config(
            network, num_blocks=20, max_num_seqs=8, max_num_batched_tokens=24 if by_torch else 64
        )
        runner = native(network, config, num_threads=2)
        runner.sampler = EagerSampler() if by_torch else runner.sampler  # type: ignore[assignment]
        events: list[TokenEvent] = []
        engine = Engine(runner, config, 257, events.extend)
        crowd = everybody()
        numbers = {s.id: i for i, s in enumerate(s for leader in crowd for s in (leader, *leader.forks))}
        for leader in crowd:
            engine.scheduler.add(leader)
        while engine.step():
            pass
        assert engine.scheduler.num_preemptions > 0
        events.sort(key=lambda event: numbers[event.sequence_id])
        logprobs = [p for e in events for p in (e.logprob, *e.prompt_logprobs) if p is not None]
        drawn = [e for e in events if e.token_id is not None]  # others bring a part of a prompt's logprobs
        said: list[tuple[Any, ...]] = [
            (numbers[e.sequence_id], e.token_id, e.finish, e.is_text) for e in drawn
        ]
        said += [(p.token_id, p.rank, [token for token, _ in p.top]) for p in logprobs]
        return said, [value for p in logprobs for value in (p.value, *(v for _, v in p.top))]

    (own, values), (eager, expected) = say(False), say(True)
    assert own == eager
    assert len(values) > 500 and values == pytest.approx(expected, abs=4e-6)
