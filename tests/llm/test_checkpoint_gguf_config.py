"""Metadata to configuration: every key that matters is used; one that is not understood is not ignored."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.checkpoint.gguf.config import read_architecture, read_config
from llm.config import ModelConfig
from llm.errors import CheckpointError
from llm.rope import yarn_factors
from tests.checkpoint_writers import LLAMA, gguf_metadata

PATH = Path("model.gguf")
NAMES = ["tokens.weight"]


def metadata(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """LLAMA's, with keys replaced, added, or left out where the value is None; "__" stands for a dot."""
    values = gguf_metadata(LLAMA, architecture) | {"general.architecture": architecture}
    values |= {f"{architecture}.{name.replace('__', '.')}": value for name, value in changes.items()}
    return {key: value for key, value in values.items() if value is not None}


def config(names: list[str] = NAMES, factors: tuple[float, ...] = (), **changes: Any) -> ModelConfig:
    found, warnings = read_config(PATH, metadata(**changes), names, LLAMA.vocab_size, factors)
    assert warnings == []
    return found


def refusal(architecture: str = "llama", **changes: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_config(PATH, metadata(architecture, **changes), NAMES, LLAMA.vocab_size, ())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_converter_writes_is_the_network() -> None:
    assert config() == LLAMA
    defaults = {"attention__key_length": None, "attention__value_length": None, "rope__dimension_count": None}
    assert config(**defaults, rope__freq_base=None, attention__head_count_kv=4) == replace(
        LLAMA, num_kv_heads=4
    )
    assert config(**defaults, attention__head_count_kv=None) == replace(LLAMA, num_kv_heads=4)


def test_numbers_stored_in_single_precision_are_the_decimals_they_were() -> None:
    found = config(attention__layer_norm_rms_epsilon=float(np.float32(1e-6)), rope__freq_base=1e5 + 0.1)
    assert (found.norm_eps, found.rope_theta) == (1e-6, 1e5 + 0.1)


def test_biases_the_head_and_head_norms_are_what_is_there() -> None:
    names = ["head.weight", "blocks.0.attention.qkv.bias"]
    found, _ = read_config(PATH, metadata("qwen2"), names, 7, ())
    assert (found.vocab_size, found.tied_head, found.attention_bias) == (7, False, True)
    assert (found.attention_out_bias, found.ffn_bias, found.qk_norm) == (False, False, False)
    names = ["blocks.0.attention.out.bias", "blocks.0.ffn.up.bias"]
    found, _ = read_config(PATH, metadata("qwen3"), names, 7, ())
    assert (found.attention_out_bias, found.ffn_bias, found.qk_norm, found.tied_head) == (True,) * 4


def test_heads_of_another_size_than_width_over_heads() -> None:
    sizes = {"attention__key_length": 8, "attention__value_length": 8, "rope__dimension_count": 8}
    assert config(**sizes) == replace(LLAMA, head_size=8)
    assert "attention.value_length is 16" in refusal(attention__key_length=8)
    assert "rope.dimension_count is 8" in refusal(rope__dimension_count=8)
    assert "below attention.head_count 65" in refusal(attention__head_count=65, attention__key_length=None)


def test_one_number_for_all_layers_may_be_a_list() -> None:
    lists = {"feed_forward_length": [96, 96], "attention__head_count_kv": [2, 2]}
    assert config(**lists) == LLAMA
    assert "must be one number, or 2 times the same, got [96, 64]" in refusal(feed_forward_length=[96, 64])
    assert "llama.attention.head_count must be" in refusal(attention__head_count=[4])
    assert "must be a whole number" in refusal(feed_forward_length=["a", "a"])


def test_a_window_that_leaves_something_out() -> None:
    assert config(attention__sliding_window=16).sliding_window == 16
    assert config(attention__sliding_window=0).sliding_window is None
    assert config(attention__sliding_window=64).sliding_window is None


def test_rotary_factors_of_the_file_and_of_a_scaling_multiply() -> None:
    factors = tuple(float(n) for n in range(1, 9))
    assert config(factors=factors).rope_factors == factors
    assert config(rope__scaling__type="linear", rope__scaling__factor=4.0).rope_factors == (4.0,) * 8
    assert config(rope__scaling__factor=4.0).rope_factors == (4.0,) * 8
    assert config(rope__scale_linear=4.0).rope_factors == (4.0,) * 8
    doubled = config(factors=factors, rope__scaling__factor=2.0).rope_factors
    assert doubled == tuple(2 * n for n in factors)
    for none in ({"type": "none", "factor": 4.0}, {"type": "yarn", "factor": 1.0}, {"factor": 0.0}):
        assert config(**{f"rope__scaling__{name}": value for name, value in none.items()}) == LLAMA
    with pytest.raises(CheckpointError, match="rope_freqs.weight has 3 numbers, expected 8"):
        config(factors=factors[:3], rope__scaling__factor=2.0)
    with pytest.raises(CheckpointError, match="must be a number from 1e-6 to 1e12, got nan"):
        config(factors=(math.nan, *factors[1:]))


def test_yarn() -> None:
    scaling = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 16,
        "rope__scaling__finetuned": True,
    }
    found = config(**scaling)
    assert found.rope_factors == yarn_factors(16, 10000.0, 4.0, 16)
    assert found.rope_attention_scale == pytest.approx(1 + 0.1 * math.log(4))
    found = config(**scaling, rope__scaling__yarn_beta_fast=8.0, rope__scaling__attn_factor=0.5)
    assert found.rope_factors == yarn_factors(16, 10000.0, 4.0, 16, beta_fast=8.0)
    assert found.rope_attention_scale == pytest.approx(0.5 * (1 + 0.1 * math.log(4)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"block_count": None}, "llama.block_count is missing"),
        ({"block_count": 2.0}, "llama.block_count must be a whole number from 1 to 16777216, got 2.0"),
        ({"block_count": True}, "must be a whole number"),
        ({"block_count": 0}, "must be a whole number"),
        ({"context_length": 1 << 40}, "llama.context_length must be a whole number from 1 to 16777216"),
        ({"embedding_length": "64"}, "llama.embedding_length must be a whole number"),
        ({"attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"attention__layer_norm_rms_epsilon": math.nan}, "must be a number from 1e-12 to 1, got nan"),
        ({"rope__freq_base": math.inf}, "llama.rope.freq_base must be a number"),
        ({"rope__freq_base": 0.0}, "llama.rope.freq_base must be a number"),
        ({"attention__head_count_kv": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"attention__head_count_kv": 0}, "llama.attention.head_count_kv must be a whole number"),
        ({"rope__scaling__type": "longrope"}, "rope.scaling.type is 'longrope', supported are none, linear"),
        ({"rope__scaling__type": 7}, "llama.rope.scaling.type must be a string"),
        ({"expert_count": 8}, "llama.expert_count is 8: mixtures of experts are not supported"),
        ({"attention__causal": False}, "llama.attention.causal is false"),
        ({"attention__scale": 0.1}, "would change the network: llama.attention.scale"),
        ({"rope__dimension_sections": [1, 2]}, "would change the network: llama.rope.dimension_sections"),
        ({"rope__scaling__yarn_log_multiplier": 0.1}, "llama.rope.scaling.yarn_log_multiplier"),
        ({"logit_scale": 0.1}, "would change the network: llama.logit_scale"),
        ({"final_logit_softcapping": 30.0}, "would change the network: llama.final_logit_softcapping"),
    ],
)
def test_what_is_missing_wrong_or_not_understood_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(**changes)


def test_a_key_that_changes_nothing_we_know_of_is_reported() -> None:
    values = metadata(surprise=1) | {"general.author": "somebody", "qwen2.attention.scale": 1.0}
    found, warnings = read_config(PATH, values, NAMES, LLAMA.vocab_size, ())
    assert (found, warnings) == (LLAMA, ["metadata: ignored llama.surprise"])


def test_architectures_we_do_not_serve() -> None:
    assert read_architecture(PATH, {"general.architecture": "qwen3"}) == "qwen3"
    for fields, expected in (
        ({"general.architecture": "gemma3"}, "is 'gemma3', supported are llama, qwen2, qwen3"),
        ({"general.architecture": ["llama"]}, "is ['llama'], supported are"),
        ({}, "is None, supported are"),
        ({"general.architecture": "llama", "general.type": "adapter"}, "general.type is 'adapter'"),
    ):
        with pytest.raises(CheckpointError) as caught:
            read_architecture(PATH, fields)
        assert expected in str(caught.value)
