"""Rotary positions: the factors are transformers' own, the table turns pairs by the angle it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llm.config import ModelConfig
from llm.rope import Rotary, linear_factors, llama3_factors, rotate, yarn_attention_scale, yarn_factors

LONG = 8191
DIM, THETA = 64, 500_000.0
ORIGINAL = 8192


def reference(kind: str, **fields: object) -> tuple[torch.Tensor, float]:
    """transformers' inverse frequencies (D/2,) and attention factor."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": THETA} | fields
    config = transformers.LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=4 * ORIGINAL,
        rope_parameters=parameters,
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies, scale


def network(factors: tuple[float, ...], scale: float = 1.0) -> ModelConfig:
    return ModelConfig(
        vocab_size=8,
        num_positions=LONG + 1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        width=DIM,
        ffn_width=8,
        rope_theta=THETA,
        rope_factors=factors,
        rope_attention_scale=scale,
    )


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN: dict[str, dict[str, Any]] = {
    "plain": {},
    "other turns": {"beta_fast": 16.0, "beta_slow": 2.0},
    "untruncated": {"truncate": False},
    "weighted": {"mscale": 0.707, "mscale_all_dim": 1.2},
    "a context shorter than every wave": {"original_max_position_embeddings": 4},
    "one dimension wide": {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
}


def assert_same(factors: tuple[float, ...], kind: str, scale: float = 1.0, **fields: object) -> None:
    """The same frequencies to float32's last digits, and so the same cosines far into a text."""
    frequencies, expected_scale = reference(kind, **fields)
    plain = 1.0 / THETA ** (torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    ours = plain / torch.tensor(factors, dtype=torch.float64)
    torch.testing.assert_close(ours, frequencies.double(), rtol=1e-6, atol=0)
    assert scale == pytest.approx(expected_scale, rel=1e-9)
    cos, sin = Rotary(network(factors, scale))(torch.tensor([1, LONG]), torch.float32)
    for position, row in ((1, 0), (LONG, 1)):
        angles = position * frequencies.double()
        # Half a unit of float32's last place, 8191 turns on: 8191 · 6e-8.
        torch.testing.assert_close(cos[row, 0].double(), angles.cos() * scale, rtol=0, atol=2e-3)
        torch.testing.assert_close(sin[row, 0].double(), angles.sin() * scale, rtol=0, atol=2e-3)


def test_linear_is_transformers() -> None:
    assert_same(linear_factors(DIM, 4.0), "linear", factor=4.0)


def test_llama3_is_transformers() -> None:
    factors = llama3_factors(DIM, THETA, 8.0, 1.0, 4.0, ORIGINAL)
    assert {1.0, 8.0} <= set(factors) and len(set(factors)) > 4, "kept, stretched and blended"
    assert_same(factors, "llama3", **LLAMA3, original_max_position_embeddings=ORIGINAL)


@pytest.mark.parametrize("name", YARN)
def test_yarn_is_transformers(name: str) -> None:
    fields = {"original_max_position_embeddings": ORIGINAL} | YARN[name]
    factors = yarn_factors(
        DIM,
        THETA,
        4.0,
        fields["original_max_position_embeddings"],
        fields.get("beta_fast", 32.0),
        fields.get("beta_slow", 1.0),
        fields.get("truncate", True),
    )
    scale = yarn_attention_scale(4.0)
    if name == "weighted":
        scale = yarn_attention_scale(4.0, 0.707) / yarn_attention_scale(4.0, 1.2)
    assert_same(factors, "yarn", scale, factor=4.0, **fields)


def test_yarn_sharpens_only_what_is_stretched() -> None:
    assert yarn_attention_scale(1.0) == yarn_attention_scale(0.5) == 1.0
    assert yarn_attention_scale(4.0) == pytest.approx(0.1 * math.log(4) + 1)


def test_a_rotation_keeps_lengths_and_sees_only_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    rotary = Rotary(network(()))

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, *(part.double() for part in rotary(torch.tensor([position]), torch.float64)))

    assert torch.equal(turned(q, 0), q)
    torch.testing.assert_close(turned(q, LONG).norm(), q.norm())
    products = [float((turned(q, start + 9) * turned(k, start)).sum()) for start in (0, 5, 1000)]
    assert products == pytest.approx([products[0]] * 3, rel=1e-3)
    assert products[0] != pytest.approx(float((turned(q, 3) * turned(k, 0)).sum()), rel=1e-2)
