"""Several adapters on one base in one batch: each sequence says what it says alone, and what its merged model
says.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from llm.adapt.lora import merge
from llm.config import EngineConfig, SamplingParams
from llm.engine import Engine
from llm.generate import generate_naive
from llm.model import Decoder
from llm.runner.eager import EagerRunner
from llm.sequence import Sequence, TokenEvent
from tests.adapters import random_adapter
from tests.fakes import TINY, tiny_model

ADAPTERS = {
    "a": random_adapter(TINY, 1),
    "b": random_adapter(TINY, 2, targets="c_attn", rank=1),
    "c": random_adapter(TINY, 3, targets="*.1.*", rank=5),
}
PROMPT = list(b"the same prompt for everyone")
GREEDY = SamplingParams(max_tokens=9, temperature=0.0, logprobs=3)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny_model(dtype=torch.float64, scale=4.0).requires_grad_(False)


def replies(model: Decoder, names: list[str]) -> tuple[list[list[TokenEvent]], Engine]:
    """Of all adapters at once, every prompt in chunks of its own, a prefix cache between them."""
    events: dict[int, list[TokenEvent]] = {}
    bounds = EngineConfig(max_model_len=64, max_num_seqs=8, block_size=4, max_num_batched_tokens=23)
    runner = EagerRunner(model, bounds)
    for name, adapter in ADAPTERS.items():
        runner.shelf.prepare(name, adapter)()
    engine = Engine(
        runner,
        bounds,
        257,
        lambda some: [events.setdefault(event.sequence_id, []).append(event) for event in some],
    )
    sequences = [Sequence(PROMPT, GREEDY, adapter=name) for name in names]
    for sequence in sequences:
        engine.scheduler.add(sequence)
    while engine.step():
        pass
    return [events[sequence.id] for sequence in sequences], engine


def test_a_batch_of_the_base_and_three_adapters_is_each_alone(model: Decoder) -> None:
    names = ["", "a", "b", "c", "a", ""]
    together, _ = replies(model, names)
    assert len({tuple(event.token_id for event in events) for events in together}) == 4
    for name, events in zip(names, together, strict=True):
        (alone,), _ = replies(model, [name])
        assert [event.token_id for event in events] == [event.token_id for event in alone]
        for one, other in zip(events, alone, strict=True):
            assert one.logprob is not None and other.logprob is not None
            assert one.logprob.value == pytest.approx(other.logprob.value, abs=1e-9)
        merged = deepcopy(model)
        if name:
            merge(merged, ADAPTERS[name])
        assert [event.token_id for event in alone] == generate_naive(merged, PROMPT, GREEDY)[0]


def test_no_adapter_gets_anothers_keys_and_values(model: Decoder) -> None:
    """Only the second sequence of a name finds what the first computed."""
    _, engine = replies(model, ["a"])
    found = []
    for name in ("", "b", "a"):
        sequence = Sequence(PROMPT, GREEDY, adapter=name)
        engine.scheduler.add(sequence)
        while engine.step():
            pass
        found.append(sequence.num_cached)
    assert found == [0, 0, len(PROMPT) - 1]
