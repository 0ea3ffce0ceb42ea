"""One set of weights, written as every format: the same logits bit for bit, the same text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llm.chat.template import Message, encode_prompt
from llm.checkpoint import load_model, open_checkpoint, save_folder, save_state_dict
from llm.config import COURSE_DEFAULTS, ModelConfig, SamplingParams
from llm.generate import generate_cached
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.tokenizer import load_tiktoken
from tests.checkpoint_writers import LLAMA, gguf_tensors, random_weights, write_gguf
from tests.torch_writers import NANOGPT, byte_vocabulary, nanogpt_checkpoint, translate, write_litgpt

VOCAB = LLAMA.vocab_size
LLAMA_CONFIG = replace(LLAMA, tied_head=False)
GPT_CONFIG = ModelConfig(
    vocab_size=VOCAB,
    num_positions=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    width=64,
    ffn_width=256,
    attention_bias=True,
    attention_out_bias=True,
    ffn_bias=True,
    tied_head=True,
)
HF_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def model_of(config: ModelConfig) -> Decoder:
    model = Decoder(config)
    model.load_state_dict(random_weights(config))
    return model.eval()


def ours(folder: Path, model: Decoder) -> Path:
    tokenizer = load_tiktoken(byte_vocabulary(folder) / "tokenizer.tiktoken")
    save_folder(folder / "ours", model, tokenizer, "plain", COURSE_DEFAULTS, [], "", dtype=torch.float32)
    return folder / "ours"


def llama_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.num_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_head,
    }


def llama_state(model: Decoder) -> dict[str, Tensor]:
    """Hugging Face's names, by way of GGUF's without its permutation."""
    state = {}
    for name, tensor in gguf_tensors(model.config, dict(model.named_parameters()), "qwen2").items():
        start, stem = "", name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, index, stem = stem.split(".", 2)
            start = f"model.layers.{index}."
        state[f"{start}{HF_LLAMA[stem]}.weight"] = tensor.detach()
    return state


def hf_llama(folder: Path, model: Decoder) -> Path:
    (byte_vocabulary(folder) / "config.json").write_text(json.dumps(llama_config(model.config)))
    save_file(llama_state(model), folder / "model.safetensors")
    return folder


def hf_llama_sharded(folder: Path, model: Decoder) -> Path:
    hf_llama(folder, model)
    (folder / "model.safetensors").unlink()
    shards: dict[str, dict[str, Tensor]] = {}
    for i, (name, tensor) in enumerate(llama_state(model).items()):
        shards.setdefault(f"model-{i % 2 + 1:05}-of-00002.safetensors", {})[name] = tensor
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    where = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def hf_llama_bin(folder: Path, model: Decoder) -> Path:
    hf_llama(folder, model)
    (folder / "model.safetensors").unlink()
    torch.save(llama_state(model), folder / "pytorch_model.bin")
    return folder


def gguf(folder: Path, model: Decoder) -> Path:
    path = folder / "tiny.gguf"
    write_gguf(path, model.config, {name: p.detach() for name, p in model.named_parameters()})
    return path


def litgpt(folder: Path, model: Decoder) -> Path:
    return write_litgpt(folder / "litgpt", model)


def bare(folder: Path, model: Decoder) -> Path:
    save_state_dict(byte_vocabulary(folder) / "model_sft.pt", model)
    return folder / "model_sft.pt"


def bare_compiled(folder: Path, model: Decoder) -> Path:
    state = {f"_orig_mod.module.{n}": t for n, t in translate(model, NANOGPT).items()}
    torch.save(state, byte_vocabulary(folder) / "model_sft.pt")
    return folder / "model_sft.pt"


def bare_apart(folder: Path, model: Decoder) -> Path:
    """q, k and v of their own."""
    state: dict[str, Tensor] = {}
    for name, tensor in translate(model, NANOGPT).items():
        if ".c_attn." in name:
            names = [name.replace("c_attn", f"{part}_proj") for part in "qkv"]
            state |= dict(zip(names, tensor.chunk(3), strict=True))
        else:
            state[name] = tensor
    torch.save(state, byte_vocabulary(folder) / "model_sft.pt")
    return folder / "model_sft.pt"


def nanogpt(folder: Path, model: Decoder) -> Path:
    torch.save(nanogpt_checkpoint(model), byte_vocabulary(folder) / "ckpt.pt")
    return folder / "ckpt.pt"


def hf_gpt2(folder: Path, model: Decoder) -> Path:
    config = model.config
    fields = {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.num_positions,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "activation_function": "gelu",
    }
    (byte_vocabulary(folder) / "config.json").write_text(json.dumps(fields))
    conv1d = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    state = {
        name: (tensor.t() if name.endswith(conv1d) else tensor).contiguous()
        for name, tensor in translate(model, NANOGPT).items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors")
    return folder


TURNS = [Message("user", "héllo <|endoftext|>"), Message("assistant", "yes"), Message("user", "and?")]
Write = Callable[[Path, Decoder], Path]
LLAMA_FORMATS: list[Write] = [hf_llama, hf_llama_sharded, hf_llama_bin, gguf, litgpt]
GPT_FORMATS: list[Write] = [bare, bare_compiled, bare_apart, nanogpt, hf_gpt2]


@pytest.mark.parametrize(
    ("config", "write"),
    [(LLAMA_CONFIG, write) for write in [ours, *LLAMA_FORMATS]]
    + [(GPT_CONFIG, write) for write in [ours, *GPT_FORMATS]],
    ids=lambda value: getattr(value, "__name__", "llama" if value is LLAMA_CONFIG else "gpt"),
)
def test_every_format_holds_the_same_network(tmp_path: Path, config: ModelConfig, write: Write) -> None:
    model = model_of(config)
    heads = config.num_heads if write in (bare, bare_compiled, bare_apart) else None
    checkpoint = open_checkpoint(write(tmp_path, model), num_heads=heads)
    loaded = load_model(checkpoint, torch.device("cpu"), torch.float32)
    assert torch.equal(logits(loaded), logits(model))
    prompt = checkpoint.tokenizer.encode("User: which one are you?")
    assert prompt == list(b"User: which one are you?")
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=7)
    said, expected = (generate_cached(m, prompt, params)[0] for m in (loaded, model))
    assert said == expected and len(set(said)) > 3, "a reply worth comparing"
    plain = [token for token in said if token < 256]
    assert checkpoint.tokenizer.decode(plain) == bytes(plain).decode(errors="replace")


@pytest.mark.parametrize(
    ("config", "write"),
    [(LLAMA_CONFIG, write) for write in LLAMA_FORMATS] + [(GPT_CONFIG, write) for write in GPT_FORMATS],
    ids=lambda value: getattr(value, "__name__", "llama" if value is LLAMA_CONFIG else "gpt"),
)
def test_every_format_can_be_saved_as_ours(tmp_path: Path, config: ModelConfig, write: Write) -> None:
    model = model_of(config)
    heads = config.num_heads if write in (bare, bare_compiled, bare_apart) else None
    theirs = open_checkpoint(write(tmp_path, model), num_heads=heads)
    folder = tmp_path / "saved"
    save_folder(
        folder, model, theirs.tokenizer, theirs.template, theirs.defaults, [], "", dtype=torch.float32
    )
    saved = open_checkpoint(folder)
    assert (saved.kind, saved.config, saved.defaults) == ("folder", theirs.config, theirs.defaults)
    assert saved.template.name == theirs.template.name
    prompts = [encode_prompt(c.tokenizer, c.template, TURNS) for c in (saved, theirs)]
    assert prompts[0] == prompts[1]
    assert saved.tokenizer.decode(prompts[0]) == theirs.tokenizer.decode(prompts[0])
    loaded = load_model(saved, torch.device("cpu"), torch.float32)
    assert torch.equal(logits(loaded), logits(model))


def logits(model: Decoder) -> Tensor:
    ids = torch.tensor([[1, 250, 0, 77, 13, 99]])
    with torch.inference_mode():
        return model.logits(model(ids, torch.arange(6), NoCache()))
