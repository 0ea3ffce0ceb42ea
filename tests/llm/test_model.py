"""What the decoder's switches do, checked against the obvious formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llm.kv.concat import NoCache, causal_attention, seen_mask
from llm.model import Decoder
from llm.rope import Rotary, rotate
from tests.fakes import TINY, tiny_model

LLAMA = replace(TINY, norm="rms", activation="swiglu", rope_theta=10000.0)


def test_a_windowed_query_sees_itself_and_those_just_before() -> None:
    assert seen_mask(2, 5, 3, torch.device("cpu")).tolist() == [
        [False, True, True, True, False],
        [False, False, True, True, True],
    ]


@pytest.mark.parametrize("window", [1, 2, 5, 6, 7])
def test_windowed_attention_is_attention_over_the_window(window: int) -> None:
    q, k, v = (torch.randn(1, 6, 2, 8, dtype=torch.float64) for _ in range(3))
    whole = causal_attention(q, k, v, window)
    for i in range(6):
        seen = slice(max(0, i - window + 1), i + 1)
        alone = causal_attention(q[:, i : i + 1], k[:, seen], v[:, seen])
        assert torch.allclose(whole[:, i : i + 1], alone, atol=1e-12)


def test_a_rotation_turns_pairs_by_position_times_frequency() -> None:
    config = replace(LLAMA, num_heads=1, num_kv_heads=1, head_size=4, rope_factors=(1.0, 2.0))
    cos, sin = Rotary(config)(torch.tensor([5]), torch.float64)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64)
    turned = rotate(x, cos, sin)[0, 0].tolist()
    for i, frequency in enumerate((1.0, 10000.0**-0.5 / 2)):
        a, b, angle = x[0, 0, i].item(), x[0, 0, i + 2].item(), 5 * frequency
        assert turned[i] == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-6)
        assert turned[i + 2] == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-6)


def test_rotary_attention_knows_distances_only() -> None:
    model = tiny_model(norm="rms", activation="swiglu", rope_theta=100.0, dtype=torch.float64)
    ids, positions = torch.tensor([[1, 2, 3, 4]]), torch.arange(4)
    near, far = (model(ids, positions + shift, NoCache()) for shift in (0, 40))
    assert torch.allclose(near, far, atol=1e-4), "the table is float32"
    assert not torch.allclose(near, model(ids, positions * 3, NoCache()), atol=1e-2)


def test_a_table_made_while_serving_can_be_trained_with() -> None:
    model = tiny_model(norm="rms", activation="swiglu", rope_theta=10000.0)
    ids, positions = torch.tensor([[1, 2, 3]]), torch.arange(3)
    with torch.inference_mode():
        model(ids, positions, NoCache())
    model(ids, positions, NoCache()).sum().backward()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"activation": "relu"}, "activation must be gelu or gelu_tanh or swiglu"),
        ({"norm": "batch"}, "norm must be layer or rms"),
        ({"rope_theta": 0.0}, "rope_theta must be a number"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number"),
        ({"rope_theta": 1e4, "rope_factors": (1.0,)}, "rope_factors must be 8 numbers, got 1"),
        ({"rope_factors": (1.0,) * 8}, "need rope_theta"),
        ({"rope_theta": 1e4, "head_size": 15}, "an even head size, got 15"),
        ({"sliding_window": 0}, "sliding_window must be a whole number from 1"),
        ({"num_full_layers": 3}, "num_full_layers must be 0 to 2, got 3"),
        ({"head_size": 0}, "head_size must be a whole number from 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TINY, **wrong)  # type: ignore[arg-type]


def test_layers_choose_their_window() -> None:
    config = replace(LLAMA, sliding_window=3, num_full_layers=1)
    assert [config.window(layer) for layer in range(2)] == [None, 3]
    model = Decoder(config)
    assert [block.attention.window for block in model.blocks] == [None, 3]
