"""Torch files as training scripts write them, from a model of ours: material for tests."""

from __future__ import annotations

import base64
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from llm.config import ModelConfig
from llm.model import Decoder

NANOGPT = {
    "tokens": "wte",
    "positions": "wpe",
    "norm": "ln_f",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
    "head": "lm_head",
}
_LITGPT = {
    "tokens": "wte",
    "norm": "ln_f",
    "attention_norm": "norm_1",
    "attention.qkv": "attn.qkv",
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "attention.out": "attn.proj",
    "ffn_norm": "norm_2",
    "ffn.down": "mlp.proj",
    "head": "lm_head",
}


def byte_vocabulary(folder: Path) -> Path:
    """A tokenizer.tiktoken of 256 bytes, whose 257th id is the end of text; returns the folder."""
    lines = (b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256))
    (folder / "tokenizer.tiktoken").write_bytes(b"".join(lines))
    return folder


def translate(model: Decoder, words: Mapping[str, str]) -> dict[str, Tensor]:
    """Our parameters under `transformer.h.N.…`, the head at the top, a tied one included."""
    named = {name: p.detach().clone() for name, p in model.named_parameters()}
    named.setdefault("head.weight", named["tokens.weight"])
    state = {}
    for name, tensor in named.items():
        stem, _, kind = name.rpartition(".")
        start = "" if stem == "head" else "transformer."
        if stem.startswith("blocks."):
            _, index, stem = stem.split(".", 2)
            start = f"transformer.h.{index}."
        state[f"{start}{words[stem]}.{kind}"] = tensor
    return state


def nanogpt_checkpoint(model: Decoder, *, compiled: bool = True, **arguments: Any) -> dict[str, Any]:
    """What nanoGPT's training script hands to torch.save; `arguments` change model_args."""
    config = model.config
    prefix = "_orig_mod." if compiled else ""
    state = {prefix + name: tensor for name, tensor in translate(model, NANOGPT).items()}
    return {
        "model": state,
        "optimizer": {
            "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(1).expand(1 << 20, 1 << 20)}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        },
        "model_args": {
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_embd": config.width,
            "block_size": config.num_positions,
            "bias": config.norm_bias,
            "vocab_size": config.vocab_size,
            "dropout": 0.0,
        }
        | arguments,
        "iter_num": 5000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"dataset": "shakespeare_char", "out_dir": "out"},
    }


def write_meta(path: Path, characters: str, **changes: Any) -> None:
    """nanoGPT's meta.pkl."""
    meta = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {c: i for i, c in enumerate(characters)},
    }
    path.write_bytes(pickle.dumps(meta | changes))


def litgpt_state(model: Decoder, *, grouped: bool = False) -> dict[str, Tensor]:
    """litgpt's names; `grouped` for those before 0.5.5, with q, k and v by group."""
    gated = model.config.activation == "swiglu"
    feed_forward = {"ffn.gate": "mlp.fc_1", "ffn.up": "mlp.fc_2"} if gated else {"ffn.up": "mlp.fc"}
    state = translate(model, _LITGPT | feed_forward)
    if not grouped:
        return state
    return {
        name.replace(".attn.qkv.", ".attn.attn."): by_group(t, model.config) if ".qkv." in name else t
        for name, t in state.items()
    }


def by_group(qkv: Tensor, config: ModelConfig) -> Tensor:
    """All queries, keys, values → for each key, its queries, itself and its value; written with a loop."""
    size, share = config.head_dim, config.num_heads // config.num_kv_heads
    heads = list(qkv.split(size))
    q, k = heads[: config.num_heads], heads[config.num_heads : config.num_heads + config.num_kv_heads]
    v = heads[config.num_heads + config.num_kv_heads :]
    rows: list[Tensor] = []
    for group in range(config.num_kv_heads):
        rows += [*q[group * share : (group + 1) * share], k[group], v[group]]
    return torch.cat(rows)


def litgpt_fields(config: ModelConfig) -> dict[str, Any]:
    """model_config.yaml as litgpt 0.5.11 dumps it."""
    gated = config.activation == "swiglu"
    return {
        "name": "tiny-litgpt",
        "hf_config": {"org": "nobody", "name": "tiny-litgpt"},
        "block_size": config.num_positions,
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "vocab_size": config.vocab_size,
        "padding_multiple": 64,
        "padded_vocab_size": config.vocab_size,
        "norm_class_name": "RMSNorm" if config.norm == "rms" else "LayerNorm",
        "norm_eps": config.norm_eps,
        "norm_qk": config.qk_norm,
        "norm_qk_type": "default",
        "post_attention_norm": False,
        "post_mlp_norm": False,
        "parallel_residual": False,
        "shared_attention_norm": False,
        "n_head": config.num_heads,
        "head_size": config.head_dim,
        "n_query_groups": config.num_kv_heads,
        "attn_bias": config.attention_bias,
        "attention_scores_scalar": None,
        "sliding_window_size": config.sliding_window,
        "sliding_window_indices": None,
        "attention_logit_softcapping": None,
        "rope_base": int(config.rope_theta or 0),
        "rotary_percentage": 1.0,
        "rope_condense_ratio": 1,
        "rope_adjustments": None,
        "intermediate_size": config.ffn_width,
        "moe_intermediate_size": None,
        "bias": config.ffn_bias,
        "mlp_class_name": "LLaMAMLP" if gated else "GptNeoxMLP",
        "gelu_approximate": "tanh" if config.activation == "gelu_tanh" else "none",
        "n_expert": 0,
        "n_expert_per_token": 0,
        "scale_embeddings": False,
        "lm_head_bias": False,
        "final_logit_softcapping": None,
        "norm_1": True,
        "norm_2": True,
        "latent_attention": None,
        "rope_local_base_freq": None,
        "rope_indices": None,
    }


def write_litgpt(folder: Path, model: Decoder, *, grouped: bool = False, **changes: Any) -> Path:
    """litgpt's folder with a byte vocabulary; `changes` are fields of model_config.yaml."""
    folder.mkdir(exist_ok=True)
    (byte_vocabulary(folder) / "model_config.yaml").write_text(
        yaml.dump(litgpt_fields(model.config) | changes)
    )
    torch.save(litgpt_state(model, grouped=grouped), folder / "lit_model.pth")
    return folder


def retag(path: Path, device: str) -> None:
    """Make a torch file look as if its tensors were saved on another device."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    spelled = b"X" + len(device).to_bytes(4, "little") + device.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            if name.endswith("data.pkl"):
                assert data.count(b"X\x03\x00\x00\x00cpu") == 1, (
                    "the location is spelled once, then referred to"
                )
                data = data.replace(b"X\x03\x00\x00\x00cpu", spelled)
            archive.writestr(name, data)
