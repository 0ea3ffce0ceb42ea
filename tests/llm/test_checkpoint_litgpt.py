"""litgpt's folders: both layouts of q, k and v, every switch honoured or refused by name, hostile YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from llm.checkpoint import Checkpoint, load_model, open_checkpoint, save_folder
from llm.checkpoint.litgpt.config import MAX_YAML_BYTES, read_litgpt_config, read_yaml
from llm.checkpoint.litgpt.open import has_litgpt_names, ungroup
from llm.config import COURSE_DEFAULTS, ModelConfig
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.rope import linear_factors, llama3_factors
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model
from tests.torch_writers import by_group, litgpt_fields, litgpt_state, write_litgpt

LLAMA: dict[str, Any] = {
    "norm": "rms",
    "norm_bias": False,
    "activation": "swiglu",
    "rope_theta": 10000.0,
    "num_heads": 4,
    "num_kv_heads": 2,
    "tied_head": False,
}
NEOX: dict[str, Any] = {
    "rope_theta": 10000.0,
    "attention_bias": True,
    "attention_out_bias": True,
    "ffn_bias": True,
    "tied_head": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "one key head": LLAMA | {"num_kv_heads": 1},
    "a key for every query": LLAMA | {"num_kv_heads": 4},
    "wider heads": LLAMA | {"head_size": 16},
    "qwen2": LLAMA | {"attention_bias": True},
    "qwen3": LLAMA | {"qk_norm": True},
    "window": LLAMA | {"sliding_window": 3},
    "tied": LLAMA | {"tied_head": True},
    "neox": NEOX,
    "neox with tanh": NEOX | {"activation": "gelu_tanh"},
}


def logits(checkpoint: Checkpoint) -> Tensor:
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    return model.logits(model(torch.tensor([[1, 2, 3, 250, 0, 9]]), torch.arange(6), NoCache()))


def refusal(path: Path, num_heads: int | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, num_heads=num_heads)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_weights_in_our_folder_give_the_same_logits(
    tmp_path: Path, variant: str, grouped: bool
) -> None:
    model = tiny_model(**VARIANTS[variant])
    save_folder(tmp_path / "ours", model, ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "", torch.float32)
    checkpoint = open_checkpoint(write_litgpt(tmp_path / "lit", model, grouped=grouped))
    assert checkpoint.config == model.config
    assert (checkpoint.kind, checkpoint.architecture, checkpoint.name) == (
        "litgpt checkpoint",
        "tiny-litgpt",
        "lit",
    )
    assert torch.equal(logits(checkpoint), logits(open_checkpoint(tmp_path / "ours")))
    assert any(note.startswith("layout: attn.attn") for note in checkpoint.notes) == grouped


def test_the_file_stands_for_its_folder_and_a_wrapper_is_opened(tmp_path: Path) -> None:
    model = tiny_model(**LLAMA)
    folder = write_litgpt(tmp_path / "lit", model)
    expected = logits(open_checkpoint(folder))
    assert torch.equal(logits(open_checkpoint(folder / "lit_model.pth")), expected)
    assert open_checkpoint(folder / "lit_model.pth").name == "lit"
    state = {f"_orig_mod.{name}": t for name, t in litgpt_state(model).items()}
    torch.save({"model": state, "iter_num": 3}, folder / "lit_model.pth")
    assert torch.equal(logits(open_checkpoint(folder)), expected)


def test_rows_by_group_come_back_in_order() -> None:
    config = tiny_model(**LLAMA).config
    rows = torch.arange(64.0)[:, None]  # (4 + 2·2 heads)·8
    assert torch.equal(ungroup(by_group(rows, config), config), rows)
    assert not torch.equal(by_group(rows, config), rows)


def test_the_folders_template_and_ends_are_used(tmp_path: Path) -> None:
    folder = write_litgpt(tmp_path / "lit", tiny_model(**LLAMA))
    assert open_checkpoint(folder).warnings, "no template: plain, with a warning"
    (folder / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Alpaca\n")
    (folder / "tokenizer_config.json").write_text(
        '{"chat_template": "{% for m in messages %}[{{ m.role }}] {{ m.content }}~{% endfor %}'
        '{% if add_generation_prompt %}[assistant] {% endif %}"}'
    )
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [250, 251]}')
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.warnings and checkpoint.defaults.temperature == 0.6
    assert checkpoint.defaults.stop_token_ids == {250, 251, 256} and checkpoint.defaults.stop == ("~",)
    assert "template: prompt_style.yaml ignored" in checkpoint.notes


def read(tmp_path: Path, **changes: Any) -> ModelConfig:
    """The configuration of a Llama-like litgpt file; a change to None is absent."""
    values = litgpt_fields(tiny_model(**LLAMA).config) | changes
    (tmp_path / "model_config.yaml").write_text(yaml.dump({k: v for k, v in values.items() if v is not None}))
    return read_litgpt_config(tmp_path / "model_config.yaml")[1]


LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8192}


def test_stretched_positions(tmp_path: Path) -> None:
    assert read(tmp_path).rope_factors == ()
    assert read(tmp_path, rope_condense_ratio=4).rope_factors == linear_factors(8, 4.0)
    assert read(tmp_path, rope_adjustments={"factor": 8.0}).rope_factors == linear_factors(8, 8.0)
    both = read(tmp_path, rope_adjustments={"factor": 8.0}, rope_condense_ratio=2)
    assert both.rope_factors == linear_factors(8, 16.0)
    llama3 = read(tmp_path, rope_base=500000, rope_adjustments=LLAMA3)
    assert llama3.rope_factors == llama3_factors(8, 500000.0, 32.0, 1.0, 4.0, 8192)


def test_windows_on_some_layers(tmp_path: Path) -> None:
    assert read(tmp_path, sliding_window_size=8).window(0) == 8
    some = read(tmp_path, sliding_window_size=8, sliding_window_indices=[0, 1])
    assert (some.window(0), some.window(1)) == (None, 8)
    assert read(tmp_path, sliding_window_size=8, sliding_window_indices=[0, 0]).sliding_window is None
    assert read(tmp_path, sliding_window_size=8, sliding_window_layer_placing=1).window(0) == 8
    assert read(tmp_path, sliding_window_layer_placing=2).sliding_window is None


def test_what_litgpt_computes_when_a_field_is_absent(tmp_path: Path) -> None:
    absent = "padded_vocab_size head_size n_query_groups norm_eps rope_base block_size".split()
    config = read(tmp_path, vocab_size=250, padding_multiple=64, **dict.fromkeys(absent))
    assert (config.vocab_size, config.head_dim, config.num_kv_heads) == (256, 8, 4)
    assert (config.norm_eps, config.rope_theta, config.num_positions) == (1e-5, 10000.0, 4096)
    neox = read(tmp_path, mlp_class_name="GptNeoxMLP", intermediate_size=None, bias=None)
    assert neox.ffn_width == 128 and neox.ffn_bias and neox.attention_bias


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel_residual": True}, "parallel_residual is True: only False is supported"),
        ({"parallel_residual": None}, "parallel_residual is True: only False is supported"),
        ({"shared_attention_norm": True}, "shared_attention_norm is True"),
        ({"post_attention_norm": True}, "post_attention_norm is True"),
        ({"post_mlp_norm": True}, "post_mlp_norm is True"),
        ({"norm_1": False}, "norm_1 is False: only True is supported"),
        ({"norm_qk_type": "olmo2"}, "norm_qk_type is 'olmo2'"),
        ({"norm_qk": True, "norm_class_name": "LayerNorm"}, "norm_qk with norm_class_name LayerNorm"),
        ({"rotary_percentage": 0.25}, "rotary_percentage is 0.25: only 1.0 is supported"),
        ({"rotary_percentage": None}, "rotary_percentage is 0.25: only 1.0 is supported"),
        ({"rope_interleave": True}, "rope_interleave is True"),
        ({"lm_head_bias": True}, "lm_head_bias is True"),
        ({"scale_embeddings": True}, "scale_embeddings is True"),
        ({"n_expert": 8}, "n_expert is 8"),
        ({"attention_scores_scalar": 144}, "attention_scores_scalar must be head_size, 8, or null"),
        ({"attention_logit_softcapping": 50.0}, "attention_logit_softcapping: not supported"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: not supported"),
        ({"latent_attention": {"q_lora_rank": 4}}, "latent_attention: not supported"),
        ({"rope_local_base_freq": 10000.0}, "rope_local_base_freq: not supported"),
        ({"some_day": 3}, "some_day: not supported"),
        ({"norm_class_name": "BatchNorm"}, "norm_class_name must be LayerNorm or RMSNorm"),
        ({"mlp_class_name": "GemmaMLP"}, "mlp_class_name must be GptNeoxMLP or LLaMAMLP, got 'GemmaMLP'"),
        ({"mlp_class_name": "LLaMAMoE"}, "mlp_class_name must be"),
        (
            {"mlp_class_name": "GptNeoxMLP", "gelu_approximate": "fast"},
            "gelu_approximate must be none or tanh",
        ),
        ({"intermediate_size": None}, "intermediate_size is missing"),
        ({"name": "Gemma-2-2b"}, "Gemma is not supported"),
        ({"name": "OLMo-1B-hf"}, "OLMo is not supported"),
        ({"sliding_window_size": 8, "sliding_window_layer_placing": 2}, "sliding_window_size: only for all"),
        ({"sliding_window_size": 8, "sliding_window_indices": [1, 0]}, "sliding_window_size: only for all"),
        ({"sliding_window_size": 8, "sliding_window_indices": [1]}, "sliding_window_size: only for all"),
        ({"rope_adjustments": LLAMA3 | {"beta_fast": 32}}, "rope_adjustments: unknown field 'beta_fast'"),
        ({"rope_adjustments": {"factor": 2.0, "low_freq_factor": 1.0}}, "high_freq_factor is missing"),
        ({"rope_adjustments": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor 4 must be below"),
        ({"rope_adjustments": []}, "rope_adjustments must be an object"),
        ({"n_layer": 10**9}, "n_layer must be a whole number from 1 to 4096"),
        ({"n_layer": -1}, "n_layer must be a whole number"),
        ({"head_size": 10**6}, "head_size must be a whole number from 1 to 4096"),
        (
            {"head_size": None, "n_embd": 1 << 24, "n_head": 1},
            "n_embd 16777216 must be a multiple of n_head 1",
        ),
        ({"n_embd": "32"}, "n_embd must be a whole number"),
        ({"n_embd": True}, "n_embd must be a whole number"),
        ({"n_query_groups": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"head_size": 7}, "rotary positions need an even head size"),
        ({"rope_base": float("nan")}, "rope_base must be a number"),
        ({"norm_eps": float("inf")}, "norm_eps must be a number"),
        ({"bias": "False"}, "bias must be true or false"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, **changes)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model_config.yaml'}: ") and said in message
    assert "\n" not in message


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping"),
        ("- 1", "expected a mapping"),
        ("1: 2", "expected a mapping"),
        ("a: [", "not readable YAML"),
        ("a: 1\na: 2", "a key is given twice"),
        (BOMB, "aliases are not read"),
        ("a: &a {x: 1}\nb: {<<: *a}", "aliases are not read"),
        ("a: &a [*a]", "aliases are not read"),
        ("a: !!python/object/apply:os.system ['true']", "not readable YAML"),
        ("a: !!python/name:os.system", "not readable YAML"),
        ("a: " + "[" * 20_000, "not readable YAML: nested too deeply"),
        ("a: " + "9" * 10_000, "not readable YAML"),
        ("? [1]\n: 2", "not readable YAML"),
        ("a: 2001-99-99", "not readable YAML"),
        ("\x00", "not readable YAML"),
        ("a" * (MAX_YAML_BYTES + 1), f"larger than the limit of {MAX_YAML_BYTES} bytes"),
    ],
)
def test_yaml_that_is_no_plain_mapping_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "model_config.yaml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_yaml(tmp_path / "model_config.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model_config.yaml").write_bytes(b"\xff\xfe\x00\xd8a: 1")
    with pytest.raises(CheckpointError, match="not readable YAML"):
        read_yaml(tmp_path / "model_config.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("transformer.ln_f.weight"), "missing, 1 in all: norm.weight"),
        (lambda s: s.pop("transformer.wte.weight"), "missing, 1 in all: tokens.weight"),
        (lambda s: s.pop("transformer.h.1.attn.qkv.weight"), "missing, 1 in all: blocks.1.attention.qkv"),
        (
            lambda s: s.update({"transformer.h.0.attn.proj.bias": torch.zeros(32)}),
            "attention.out.bias (our names)",
        ),
        (
            lambda s: s.update({"transformer.h.0.mlp.fc.weight": torch.zeros(1)}),
            "has no place in the network",
        ),
        (
            lambda s: s.update({"transformer.h.0.mlp.gate.weight": torch.zeros(1)}),
            "has no place in the network",
        ),
        (lambda s: s.update({"lm_head.bias": torch.zeros(257)}), "head.bias (our names)"),
        (
            lambda s: s.update({"transformer.h.7.norm_1.weight": torch.zeros(32)}),
            "blocks.7.attention_norm.weight",
        ),
        (
            lambda s: s.update({"transformer.h.0.attn.attn.weight": torch.zeros(1)}),
            "are both blocks.0.attention.qkv",
        ),
        (
            lambda s: s.update({"transformer.ln_f.weight": torch.zeros(31)}),
            "norm.weight has shape [31], model_config",
        ),
        (
            lambda s: s.update({"transformer.ln_f.weight": torch.zeros(32, dtype=torch.int8)}),
            "type torch.int8",
        ),
        (
            lambda s: s.update({"lm_head.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}),
            "its tensors claim",
        ),
    ],
)
def test_tensors_that_contradict_the_configuration_are_refused(
    tmp_path: Path, change: Any, said: str
) -> None:
    folder = write_litgpt(tmp_path / "lit", tiny_model(**LLAMA))
    state = litgpt_state(tiny_model(**LLAMA))
    change(state)
    torch.save(state, folder / "lit_model.pth")
    assert said in refusal(folder)


def test_more_layers_than_tensors_are_refused_at_once(tmp_path: Path) -> None:
    folder = write_litgpt(tmp_path / "lit", tiny_model(**LLAMA), n_layer=4096)
    assert "model_config.yaml says 4096 layers" in refusal(folder)


def test_adapters_alone_are_refused(tmp_path: Path) -> None:
    folder = write_litgpt(tmp_path / "lit", tiny_model(**LLAMA))
    lora = {"transformer.h.0.attn.qkv.lora_A": torch.zeros(4, 32)}
    torch.save({"model": lora}, folder / "lit_model.pth.lora")
    assert "holds adapter weights (transformer.h.0.attn.qkv.lora_A)" in refusal(folder / "lit_model.pth.lora")
    torch.save(litgpt_state(tiny_model(**LLAMA)) | lora, folder / "lit_model.pth")
    assert "merge them into their base model" in refusal(folder)


def test_without_its_configuration_or_with_another_head_count(tmp_path: Path) -> None:
    folder = write_litgpt(tmp_path / "lit", tiny_model(**LLAMA))
    assert "n_head is 4, 2 was asked for" in refusal(folder, 2)
    (folder / "model_config.yaml").unlink()
    assert "litgpt's weights, but no model_config.yaml beside them" in refusal(folder / "lit_model.pth")


def test_only_litgpts_names_are_litgpts() -> None:
    model: Decoder = tiny_model(**LLAMA)
    assert has_litgpt_names(litgpt_state(model))
    assert not has_litgpt_names(["transformer.h.0.ln_1.weight"])
    assert not has_litgpt_names(["transformer.h.0.norm_1.weight", "transformer.wpe.weight"])
