"""PEFT's layout: what is saved comes back, a folder that lies is refused in one line, and PEFT agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.adapt.lora import attach, merge
from llm.adapt.peft import CONFIG, WEIGHTS, open_adapter, save_adapter
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from tests.adapters import random_adapter
from tests.checkpoint_writers import LLAMA
from tests.fakes import TINY

Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "mine", random_adapter(LLAMA, targets="q_proj,v_proj"), LLAMA)
    return tmp_path / "mine"


def edit_config(folder: Path, **fields: object) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_adapter(folder, LLAMA)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(folder))
    return message.removeprefix(str(folder))


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj", "*.1.*"])
@pytest.mark.parametrize("config", [TINY, LLAMA], ids=["gpt", "llama"])
def test_round_trip(tmp_path: Path, config: Any, targets: str) -> None:
    if config is TINY:
        targets = targets.replace("q_proj,v_proj", "c_attn")
    adapter = replace(random_adapter(config, targets=targets), base="mine", base_digest="0123456789abcdef")
    save_adapter(tmp_path, adapter, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    back = open_adapter(tmp_path, config)
    assert (back.base, back.base_digest, len(back.digest)) == ("mine", "0123456789abcdef", 16)
    assert [(p.target, p.scale) for p in back.parts] == [(p.target, p.scale) for p in adapter.parts]
    for one, other in zip(back.parts, adapter.parts, strict=True):
        assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b)


def test_ranks_and_alphas_of_their_own(tmp_path: Path) -> None:
    """What differs goes through the patterns."""
    usual = random_adapter(LLAMA, targets="q_proj,v_proj", rank=3, alpha=6)
    other = random_adapter(LLAMA, targets="*.1.*.k_proj", rank=2, alpha=10)
    save_adapter(tmp_path, replace(usual, parts=usual.parts + other.parts), LLAMA)
    values = json.loads((tmp_path / CONFIG).read_text())
    assert (values["r"], values["lora_alpha"]) == (3, 6)
    assert values["rank_pattern"] == {"^model.layers.1.self_attn.k_proj": 2}
    scales = {p.target.name.split(".", 2)[2]: p.scale for p in open_adapter(tmp_path, LLAMA).parts}
    assert scales["0.self_attn.q_proj"] == 2.0 and scales["1.self_attn.k_proj"] == 5.0


def test_the_scale_follows_the_configuration(folder: Path) -> None:
    edit_config(folder, use_rslora=True, lora_alpha=9, alpha_pattern={"layers.1.self_attn.q_proj": 3})
    scales = [p.scale for p in open_adapter(folder, LLAMA).parts]
    assert scales == pytest.approx([9 / 3**0.5, 9 / 3**0.5, 3 / 3**0.5, 9 / 3**0.5])


def test_what_peft_writes_besides_is_no_matter(folder: Path) -> None:
    quiet = {
        "revision": None,
        "lora_bias": False,
        "loftq_config": {},
        "megatron_core": "x",
        "eva_config": None,
    }
    edit_config(folder, **quiet, modules_to_save=None, layer_replication=None, some_new_switch=False)
    assert len(open_adapter(folder, LLAMA).parts) == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"use_dora": True}, "use_dora true is not supported"),
        ({"bias": "all"}, 'bias "all" is not supported'),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save ["lm_head"] is not supported'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa" is not supported'),
        ({"layer_replication": [[0, 2]]}, "layer_replication [[0, 2]] is not supported"),
        ({"use_something_new": True}, "use_something_new true is not supported"),
        ({"r": 0}, "r must be a whole number from 1 to 4096, got 0"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number"),
        ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern: '(a+)+$' is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, "has shape [3, 64], rank 2 on this base takes [2, 64]"),
    ],
)
def test_a_configuration_is_refused_by_name_and_value(
    folder: Path, fields: dict[str, object], words: str
) -> None:
    edit_config(folder, **fields)
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(Q0.format("B")), "A without B, or B without A"),
        (lambda t: t.update({"a.b": torch.ones(1)}), "no place for 1 tensors: a.b"),
        (lambda t: t.update({Q0.format("A").replace("layers.0", "layers.9"): torch.ones(3, 64)}), "no place"),
        (lambda t: t.update({Q0.format("B"): torch.ones(32, 3)}), "has shape [32, 3]"),
        (lambda t: t.update({Q0.format("A"): torch.ones(3, 64, dtype=torch.int32)}), "has type I32"),
        (lambda t: t[Q0.format("A")].fill_(float("nan")), "NaN or infinite"),
        (lambda t: t.update({Q0.format("B"): torch.full((64, 3), 1e300, dtype=torch.float64)}), "too large"),
        (
            lambda t: t.update({Q0.format("A").replace(".model.layers", ".layers"): torch.ones(3, 64)}),
            "under two names",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    edit_tensors(folder, change)
    assert words in refusal(folder)


def test_what_is_no_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert "not a readable safetensors file" in refusal(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "a pickle and is not read" in refusal(folder)
    with pytest.raises(CheckpointError, match="no adapter"):
        open_adapter(tmp_path, LLAMA)


def test_an_adapter_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    adapter = random_adapter(LLAMA)
    adapter.parts[0].a[0, 0] = float("inf")
    with pytest.raises(CheckpointError, match="not saved"):
        save_adapter(tmp_path, adapter, LLAMA)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft is not installed: pip install -e .[dev]")


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"target_modules": ["q_proj", "v_proj", "down_proj"], "alpha_pattern": {"v_proj": 3}},
    "GPT2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "use_rslora": True},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_ours_and_we_read_its_own(peft: Any, family: str, tmp_path: Path) -> None:
    from tests.llm.test_parity import GPT2, Pair, random_ids, reference
    from tests.llm.test_parity import LLAMA as LLAMA_FIELDS

    pair = Pair(reference(family, GPT2 if family == "GPT2" else LLAMA_FIELDS), tmp_path / "base")
    base, config, ids = pair.theirs, pair.checkpoint.config, random_ids(2, 40)
    lora = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **FAMILIES[family])
    theirs = peft.get_peft_model(base, lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = theirs(ids, use_cache=False).logits.detach()
    adapter = open_adapter(tmp_path / "theirs", config)
    assert relative(logits(pair, ids), expected) > 1e-2, "an adapter that says nothing would prove nothing"
    merge(pair.ours, adapter)
    assert relative(logits(pair, ids), expected) <= 1e-4
    merge(pair.ours, adapter, sign=-1)

    mine = random_adapter(config, seed=5, rank=2, alpha=3)
    save_adapter(tmp_path / "mine", mine, config)
    loaded = peft.PeftModel.from_pretrained(theirs.unload(), tmp_path / "mine")
    attach(pair.ours, mine)
    got = loaded(ids, use_cache=False).logits.detach()
    assert relative(logits(pair, ids), got) <= 1e-4
    assert relative(got, expected) > 1e-2


def logits(pair: Any, ids: Tensor) -> Tensor:
    out: Tensor = pair.ours.logits(pair.ours(ids, torch.arange(ids.shape[1]), NoCache())).detach()
    return out


def relative(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the logits' range."""
    return float((got - expected).abs().max() / (expected.max() - expected.min()))


def test_a_rank_and_a_file_beyond_what_is_allowed_are_refused_unread(tmp_path: Path) -> None:
    save_adapter(tmp_path, random_adapter(TINY, rank=4), TINY)
    assert open_adapter(tmp_path, TINY, 4).parts[0].rank == 4
    with pytest.raises(CheckpointError, match="r must be"):
        open_adapter(tmp_path, TINY, 3)
    with (tmp_path / WEIGHTS).open("r+b") as file:
        file.truncate(64 << 20)  # of holes; nobody looks at its header
    with pytest.raises(CheckpointError, match="has 67108864 bytes, an adapter of rank 4 at most"):
        open_adapter(tmp_path, TINY, 4)
