"""Checkpoints as other people's tools write them, from weights under our own names: material for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from torch import Tensor

from llm.config import ModelConfig
from llm.model import Decoder

LLAMA = ModelConfig(
    vocab_size=258,
    num_positions=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    width=64,
    ffn_width=96,
    activation="swiglu",
    norm_bias=False,
    tied_head=True,
    norm="rms",
    rope_theta=10000.0,
)
"""A network of the Llama family that runs in a millisecond; its vocabulary is tiny_gguf_vocabulary's."""


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Every parameter of `Decoder(config)`: norms around 1, the rest wide enough for prompts to differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Decoder(config).named_parameters()}
    return {
        name: torch.randn(shape, generator=generator) * 0.15 + ("norm" in name)
        for name, shape in shapes.items()
    }


_GGUF_NAMES = {
    "tokens": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.out": "attn_output",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def gguf_tensors(config: ModelConfig, weights: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Weights by their names in a GGUF file: q, k and v apart, and for llama with the converter's pairs."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    apart: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".attention.qkv." not in name:
            apart[name] = tensor
            continue
        for part, rows, heads in zip(
            "qkv", tensor.split([q, kv, kv]), (config.num_heads, config.num_kv_heads, 0), strict=True
        ):
            if architecture == "llama" and heads:  # (heads, half, i) → (heads, i, half)
                rows = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
            apart[name.replace("attention.qkv", f"attention.{part}")] = rows
    named = {}
    for name, tensor in apart.items():
        stem, _, kind = name.rpartition(".")
        start = ""
        if stem.startswith("blocks."):
            _, index, stem = stem.split(".", 2)
            start = f"blk.{index}."
        named[f"{start}{_GGUF_NAMES[stem]}.{kind}"] = tensor.contiguous()
    return named


def gguf_metadata(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What a converter writes about the network."""
    values = {
        "block_count": config.num_layers,
        "context_length": config.num_positions,
        "embedding_length": config.width,
        "feed_forward_length": config.ffn_width,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    return {f"{architecture}.{name}": value for name, value in values.items()}


def tiny_gguf_vocabulary() -> dict[str, Any]:
    """256 bytes, a single merge and an end of text, as GPT-2's byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable} | {b: chr(256 + i) for i, b in enumerate(other)}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*(spelling[byte] for byte in range(256)), "he", "<|endoftext|>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": 257,
    }


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    architecture: str = "llama",
    fields: Mapping[str, Any] | None = None,
    kind: Callable[[str], str] = lambda name: "F32",
    packed: Mapping[str, tuple[str, np.ndarray]] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """A GGUF file of these weights, with a byte vocabulary.

    Args:
        weights: by our names, float32.
        fields: metadata beside or instead of the usual; None leaves one out.
        kind: type of a tensor by its GGUF name; a matrix only, the rest is F32.
        packed: by GGUF name, type and uint8 (rows, bytes of one) as they are to be stored.
        extra: tensors beside the weights, by GGUF name.
    """
    writer = GGUFWriter(path, architecture)
    metadata = gguf_metadata(config, architecture) | tiny_gguf_vocabulary() | dict(fields or {})
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            add_gguf_field(writer, key, value)
    tensors = gguf_tensors(config, weights, architecture)
    for name, tensor in tensors.items():
        stored = GGMLQuantizationType[kind(name) if tensor.ndim == 2 else "F32"]
        if packed and name in packed:
            writer.add_tensor(name, packed[name][1], raw_dtype=GGMLQuantizationType[packed[name][0]])
        elif stored == GGMLQuantizationType.F64:
            writer.add_tensor(name, tensor.double().numpy())
        else:
            writer.add_tensor(name, quants.quantize(tensor.numpy(), stored), raw_dtype=stored)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_gguf_field(writer: GGUFWriter, key: str, value: Any) -> None:
    """One field, typed as converters type it."""
    if isinstance(value, list):
        writer.add_key_value(key, value, GGUFValueType.ARRAY)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        writer.add_key_value(key, value, GGUFValueType.UINT32)
    else:
        writer.add_key_value(key, value, GGUFValueType.get_type(value))
