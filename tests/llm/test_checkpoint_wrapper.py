"""State dicts inside what training scripts save: found, with their number of heads, and nothing else read."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.checkpoint import load_model, open_checkpoint
from llm.checkpoint.pt.names import course_name
from llm.checkpoint.pt.wrapper import heads_beside, unwrap
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.model import Decoder
from tests.fakes import tiny_model
from tests.torch_writers import byte_vocabulary

State = dict[str, Tensor]
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return byte_vocabulary(tmp_path) / "model.pt"


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny_model(tied_head=False, ffn_bias=True)


@pytest.fixture(scope="module")
def state(model: Decoder) -> State:
    return {course_name(name): p.detach().clone() for name, p in model.named_parameters()}


WRAPPERS: dict[str, Callable[[State], dict[str, Any]]] = {
    "a loop's": lambda state: {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer_state_dict": OPTIMIZER,
        "loss": 1.5,
    },
    "model": lambda state: {
        "model": state,
        "optimizer": OPTIMIZER,
        "rng": {"cpu": torch.zeros(8, dtype=torch.uint8)},
    },
    "Lightning's": lambda state: {
        "state_dict": OrderedDict((f"model.{name}", t) for name, t in state.items()),
        "optimizer_states": [OPTIMIZER],
        "pytorch-lightning_version": "2.5",
        "callbacks": {"ModelCheckpoint{}": {"best": torch.tensor(1.0)}},
        "hyper_parameters": {"lr": 0.1},
    },
    "an odd name": lambda state: {"weights_of_mine": state, "config": {"depth": 2}},
    "an average beside": lambda state: {
        "ema": {name: t * 0 for name, t in state.items()},
        "model": state,
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_state_dict_is_found(path: Path, model: Decoder, state: State, wrapper: str) -> None:
    torch.save(WRAPPERS[wrapper](state), path)
    checkpoint = open_checkpoint(path, num_heads=2)
    assert checkpoint.kind == "state dict" and checkpoint.config == model.config
    assert checkpoint.notes[0].startswith("wrapper: the state dict is ")
    loaded = load_model(checkpoint, torch.device("cpu"), torch.float32)
    ids = torch.tensor([[1, 2, 250]])
    ours, expected = (m.logits(m(ids, torch.arange(3), NoCache())) for m in (loaded, model))
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "beside",
    [
        {"config": {"n_head": 2}},
        {"hparams": {"n_heads": 2, "lr": 0.1}},
        {"hyper_parameters": {"num_heads": 2}},
        {"config": {"model": {"num_attention_heads": 2}}},
        {"args": {"n_head": 2}, "model_config": {"num_heads": 2}},
        {"n_head": 2, "extra": {}},
    ],
)
def test_a_number_of_heads_beside_it_is_used(path: Path, state: State, beside: dict[str, Any]) -> None:
    torch.save({"model": state} | beside, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.num_heads == 2 and not checkpoint.warnings
    assert any(note.startswith("heads: 2, as ") and note.endswith(" says") for note in checkpoint.notes)
    assert open_checkpoint(path, num_heads=4).config.num_heads == 4


@pytest.mark.parametrize(
    "beside",
    [
        {"config": {"n_head": 2}, "hparams": {"n_head": 4}},
        {"config": {"n_head": "2"}},
        {"config": {"n_head": True}},
        {"config": {"n_head": 0}},
        {"config": {"n_head": 1 << 70}},
        {"config": {"data": {"n_head": 2}}},
        {"config": {"lr": 0.1}},
    ],
)
def test_settings_that_disagree_or_say_nothing_are_left_aside(
    path: Path, state: State, beside: dict[str, Any]
) -> None:
    torch.save({"model": state} | beside, path)
    checkpoint = open_checkpoint(path)
    assert not any(note.endswith("beside the state dict says") for note in checkpoint.notes)
    assert checkpoint.config.num_heads == 1, "the usual number for width 32"


def test_settings_that_contradict_the_tensors_are_refused(path: Path, state: State) -> None:
    torch.save({"model": state, "config": {"n_head": 3}}, path)
    with pytest.raises(CheckpointError, match=r"model.pt: width 32 is not a multiple of 3 heads$"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda s: {"epoch": 3, "optimizer": OPTIMIZER},
            "no state dict in epoch, optimizer: save model.state",
        ),
        (lambda s: {"model": {}}, "no state dict in model"),
        (lambda s: {"model": {"a": 1}}, "no state dict in model"),
        (lambda s: {"model": {1: torch.zeros(1)}}, "no state dict in model"),
        (lambda s: {"model": {"net": s}}, "no state dict in model"),
        (lambda s: {"a": s, "b": s}, "a, b are all state dicts: save one alone"),
        (lambda s: {"model": s | {"x": torch.zeros(1)}}, "names not recognised, 1 in all: x"),
        (lambda s: {"model": {"x": torch.eye(2).to_sparse()}}, "x is not a dense tensor"),
        (lambda s: {"model": {"blocks.0.attn.qkv.lora_A.weight": torch.zeros(1)}}, "holds adapter weights"),
        (lambda s: {"model": s, "args": argparse.Namespace(n_head=2)}, "asks for argparse.Namespace: only"),
        (lambda s: {"model": s, "args": argparse.Namespace(n_head=2)}, "(vars(args), not args)"),
    ],
)
def test_a_wrapper_we_cannot_open_is_refused(
    path: Path, state: State, make: Callable[[State], dict[str, Any]], said: str
) -> None:
    torch.save(make(state), path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, num_heads=2)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message


def test_a_wrapper_that_contains_itself(path: Path, state: State) -> None:
    wrapper: dict[str, Any] = {"model": state}
    wrapper["config"] = wrapper
    torch.save(wrapper, path)
    assert open_checkpoint(path, num_heads=2).config.num_layers == 2


def test_what_lies_beside_is_kept_by_name(state: State) -> None:
    unwrapped = unwrap(Path("x.pt"), {"model": state, "epoch": 3, 7: "numbered"})
    assert unwrapped.beside == {"epoch": 3} and unwrapped.state.keys() == state.keys()
    assert heads_beside({"cfg": {"model_args": {"n_head": 6}}, "epoch": 3}) == {"cfg.model_args.n_head": 6}
