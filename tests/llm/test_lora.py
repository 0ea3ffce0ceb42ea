"""Adapters beside and inside the base weights: nothing learned changes nothing, merged equals beside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm.adapt.lora import AdaptedLinear, attach, attached, detach, merge, new_adapter, unmerge
from llm.adapt.rows import Shelf
from llm.adapt.targets import choose, find_targets
from llm.checkpoint import load_model
from llm.checkpoint.gguf.open import open_gguf
from llm.config import ModelConfig
from llm.errors import OptionError
from llm.kv.concat import NoCache
from llm.model import Decoder, Project, plainly
from tests.adapters import random_adapter
from tests.checkpoint_writers import LLAMA, random_weights, write_gguf
from tests.fakes import TINY, tiny_model

CONFIGS = [pytest.param(TINY, id="gpt"), pytest.param(LLAMA, id="llama")]
BIASED = replace(TINY, attention_bias=True, attention_out_bias=True, ffn_bias=True)
IDS = torch.tensor([[1, 2, 3, 250, 0], [9, 9, 30, 4, 7]])


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float64) -> Decoder:
    model = Decoder(config)
    model.load_state_dict(random_weights(config))
    return model.to(dtype).requires_grad_(False).eval()


def logits(model: Decoder, project: Project = plainly) -> Tensor:
    return model.logits(model(IDS, torch.arange(5), NoCache(), project))


@pytest.mark.parametrize("config", CONFIGS)
def test_an_adapter_that_has_learned_nothing_is_the_base_bit_for_bit(config: ModelConfig) -> None:
    model = model_of(config, torch.float32)
    expected = logits(model)
    attach(model, new_adapter(find_targets(config), rank=4, alpha=8, seed=1))
    assert sum(isinstance(module, AdaptedLinear) for module in model.modules()) >= 8
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(detach(model)), expected)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())


@pytest.mark.parametrize("targets", ["all-linear", "qkv", "down,*.0.attention.out"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@pytest.mark.parametrize("config", CONFIGS)
def test_merged_is_the_same_as_beside(
    config: ModelConfig, dtype: torch.dtype, tolerance: float, targets: str
) -> None:
    model, adapter = model_of(config, dtype), random_adapter(config, targets=targets)
    base = logits(model)
    attach(model, adapter.to(model.device, dtype))
    beside = logits(model)
    assert (beside - base).abs().max() > 0.1, "an adapter that says nothing would prove nothing"
    assert len(attached(model)) == len(adapter.parts)
    merge(detach(model), adapter)
    torch.testing.assert_close(logits(model), beside, rtol=tolerance, atol=tolerance)
    unmerge(model, adapter)
    torch.testing.assert_close(logits(model), base, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", [*CONFIGS, pytest.param(BIASED, id="biases")])
def test_only_a_and_b_learn(config: ModelConfig) -> None:
    model = model_of(config, torch.float32)
    attach(model, new_adapter(choose(find_targets(config), "qkv,up"), rank=2, alpha=2, seed=1))
    logits(model).square().mean().backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-2] for name in learning} == {"a", "b"}
    assert learning == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(bool(part.b.grad.abs().max() > 0) for part in attached(model) if part.b.grad is not None)


def test_the_scale_is_alpha_by_rank() -> None:
    one, two = (new_adapter(find_targets(TINY), rank=4, alpha=alpha, seed=1) for alpha in (4, 10))
    assert {part.scale for part in one.parts} == {1.0} and {part.scale for part in two.parts} == {2.5}
    assert torch.equal(one.parts[0].a, two.parts[0].a)


def test_q_k_and_v_are_blocks_of_one_matrix() -> None:
    targets = {t.name: t for t in find_targets(LLAMA) if ".layers.0." in t.name}
    q, k, v = (targets[f"model.layers.0.self_attn.{part}_proj"] for part in "qkv")
    assert {q.linear, k.linear, v.linear} == {"blocks.0.attention.qkv"}
    assert [(t.start, t.stop) for t in (q, k, v)] == [(0, 64), (64, 96), (96, 128)]
    assert targets["model.layers.0.mlp.down_proj"].width == 96
    gpt2 = [t.name for t in find_targets(TINY)]
    assert gpt2[0] == "transformer.h.0.attn.c_attn" and len(gpt2) == 8


def test_patterns_mean_the_ends_of_names() -> None:
    targets = find_targets(LLAMA)
    assert len(choose(targets, "q_proj, v_proj")) == 4
    assert len(choose(targets, "*.0.*")) == 7
    assert choose(targets, "qkv") == choose(targets, "q_proj,k_proj,v_proj")
    with pytest.raises(OptionError, match="'proj' names no matrix.*q_proj"):
        choose(targets, "q_proj,proj")
    with pytest.raises(OptionError, match="names no matrix"):
        choose(targets, " , ")


def test_a_ggufs_rows_are_in_the_adapters_order(tmp_path: Path) -> None:
    """The file keeps q and k in interleaved pairs; an adapter knows Hugging Face's order."""
    weights = random_weights(LLAMA)
    write_gguf(tmp_path / "model.gguf", LLAMA, weights)
    model = load_model(open_gguf(tmp_path / "model.gguf"), torch.device("cpu"), torch.float64)
    expected, adapter = model_of(LLAMA), random_adapter(LLAMA, targets="q_proj,k_proj")
    merge(expected, adapter)
    attach(model, adapter.to(model.device, torch.float64))
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_rows_of_several_adapters_are_each_adapters_own(config: ModelConfig) -> None:
    """A flat batch, as it is served, against the base with one adapter attached at a time."""
    model = model_of(config)
    adapters = {"a": random_adapter(config, 1), "b": random_adapter(config, 2, targets="qkv", rank=1)}
    x = torch.randn(7, config.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    runs = [("a", 2), ("", 1), ("b", 1), ("a", 1), ("", 2)]
    owners = [name for name, count in runs for _ in range(count)]
    shelf = Shelf(model)
    for one, adapter in adapters.items():
        shelf.prepare(one, adapter)()
    project = shelf.project(runs)
    for linear in (model.blocks[0].attention.qkv, model.blocks[1].ffn.up):
        got = project(linear, x)
        name = next(n for n, module in model.named_modules() if module is linear)
        for row, owner in enumerate(owners):
            expected = linear(x[row])
            for part in adapters[owner].by_linear().get(name, []) if owner else []:
                rows = slice(part.target.start, part.target.stop)
                expected[rows] += part.scale * part.b.double() @ (part.a.double() @ x[row])
            torch.testing.assert_close(got[row], expected, rtol=1e-12, atol=1e-12)


def test_a_batch_of_the_base_alone_is_computed_plainly() -> None:
    model = tiny_model()
    shelf = Shelf(model)
    shelf.prepare("a", random_adapter(TINY))()
    assert shelf.project([("", 3), ("", 1)]) is plainly
    assert shelf.project([("", 3), ("a", 1)]) is not plainly
