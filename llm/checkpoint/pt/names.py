"""Tables of parameter names: what other people's decoders call what our Decoder has.

A name is looked up in three steps: wrappers are stripped (`_orig_mod.`, `module.`, `model.`,
`transformer.` and the like), a block and its index are split off, and the rest is found in a table. Add a
variant by adding a word to a table. Guesses nothing: a name that is not in a table is not recognised. Refuses
to know what tensors hold, but for one kind of buffer that looks like a bias.

    >>> recognise("_orig_mod.transformer.h.3.attn.c_attn.weight")
    Target(name='blocks.3.attention.qkv.weight', part=None)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

Part = Literal["q", "k", "v"]


@dataclass(frozen=True, slots=True)
class Target:
    """Our parameter name; `part` when the tensor is one third of our fused qkv."""

    name: str
    part: Part | None = None


_TOKENS = """tokens tok_emb tok_embs tok_embed tok_embedding tok_embeddings token_emb token_embed
    token_embedding token_embeddings token_embedding_table wte embed_tokens embed embedding
    word_embeddings""".split()
_POSITIONS = """positions pos_emb pos_embed pos_embedding pos_embeddings pos_embedding_table position_emb
    position_embed position_embedding position_embeddings position_embedding_table positional_embedding
    wpe""".split()
_FINAL_NORM = (
    "norm ln_f lnf norm_f final_norm final_ln ln_final ln_out final_layernorm final_layer_norm".split()
)
_HEAD = "head lm_head output out_head output_head unembed unembedding".split()
_BLOCKS = "blocks block h layers layer trf_blocks transformer_blocks blk".split()

_ATTENTION_NORM = """attention_norm attn_norm ln1 ln_1 norm1 norm_1 layernorm1 ln_attn attn_ln
    input_layernorm""".split()
_FFN_NORM = """ffn_norm mlp_norm ff_norm ln2 ln_2 norm2 norm_2 layernorm2 ln_mlp ln_ffn mlp_ln
    post_attention_layernorm""".split()
_ATTENTION = "attention attn att self_attn self_attention sa mha".split()
_QKV = "qkv c_attn in_proj qkv_proj to_qkv Wqkv W_qkv wqkv".split()
_Q = "q_proj q wq Wq W_q query W_query query_proj to_q".split()
_K = "k_proj k wk Wk W_k key W_key key_proj to_k".split()
_V = "v_proj v wv Wv W_v value W_value value_proj to_v".split()
_OUT = "out proj out_proj c_proj o_proj wo W_o o to_out output".split()
_FFN = "ffn mlp ff ffwd feed_forward feedforward".split()
_UP = "up fc c_fc fc1 fc_1 fc_in linear1 lin1 w1 up_proj net.0 layers.0 0".split()
_DOWN = """down proj c_proj fc2 fc_2 fc_out linear2 lin2 w2 down_proj out_proj
    net.2 net.3 layers.2 layers.3 2 3""".split()  # 3 when a dropout sits before the second projection

_WEIGHTS = {"weight": "weight", "bias": "bias"}
_NORMS = _WEIGHTS | {"scale": "weight", "shift": "bias", "gamma": "weight", "beta": "bias"}


def _spell(stems: list[str], ours: str, kinds: dict[str, str], part: Part | None = None) -> dict[str, Target]:
    """Table rows: every stem with every suffix."""
    return {f"{stem}.{kind}": Target(f"{ours}.{kinds[kind]}", part) for stem, kind in product(stems, kinds)}


def _inside(modules: list[str], leaves: list[str]) -> list[str]:
    return [f"{module}.{leaf}" for module, leaf in product(modules, leaves)]


_TOP: dict[str, Target] = {
    **_spell(_TOKENS, "tokens", {"weight": "weight"}),
    **_spell(_POSITIONS, "positions", {"weight": "weight"}),
    **{stem: Target("positions.weight") for stem in _POSITIONS},  # a bare parameter, as minGPT has it
    **_spell(_FINAL_NORM, "norm", _NORMS),
    **_spell(_HEAD, "head", {"weight": "weight"}),
}
_IN_BLOCK: dict[str, Target] = {
    **_spell(_ATTENTION_NORM, "attention_norm", _NORMS),
    **_spell(_FFN_NORM, "ffn_norm", _NORMS),
    **_spell(_inside(_ATTENTION, _QKV), "attention.qkv", _WEIGHTS),
    **{f"{m}.in_proj_{kind}": Target(f"attention.qkv.{kind}") for m, kind in product(_ATTENTION, _WEIGHTS)},
    **_spell(_inside(_ATTENTION, _Q), "attention.qkv", _WEIGHTS, "q"),
    **_spell(_inside(_ATTENTION, _K), "attention.qkv", _WEIGHTS, "k"),
    **_spell(_inside(_ATTENTION, _V), "attention.qkv", _WEIGHTS, "v"),
    **_spell(_inside(_ATTENTION, _OUT), "attention.out", _WEIGHTS),
    **_spell(_inside(_FFN, _UP), "ffn.up", _WEIGHTS),
    **_spell(_inside(_FFN, _DOWN), "ffn.down", _WEIGHTS),
}
_PREFIX = re.compile(r"^(?:(?:module|_forward_module|model|net|network|gpt|transformer)\.)+")
_BLOCK = re.compile(rf"^(?:{'|'.join(_BLOCKS)})\.(0|[1-9]\d{{0,4}})\.(.+)")
_BUFFER = re.compile(
    r"(?:^|\.)(?:mask|tril|causal_mask|attn_mask|attention_mask|masked_bias|inv_freq|position_ids|pos_ids)$"
)
_MASK = re.compile(rf"\.(?:{'|'.join(_ATTENTION)})\.bias$")


def recognise(name: str) -> Target | None:
    """Our name for somebody's parameter, or None."""
    bare = _PREFIX.sub("", name.replace("_orig_mod.", ""))
    if bare in _TOP:
        return _TOP[bare]
    block = _BLOCK.fullmatch(bare)
    target = _IN_BLOCK.get(block[2]) if block else None
    return Target(f"blocks.{block[1]}.{target.name}", target.part) if block and target else None


def is_buffer(name: str, tensor: Tensor) -> bool:
    """Whether this is no parameter but a causal mask or an index table that training code registered."""
    if _BUFFER.search(name):
        return True
    shape = tensor.shape
    if not _MASK.search(name) or tensor.ndim not in (2, 4) or shape[-1] != shape[-2]:
        return False
    return shape[:2] == (1, 1) if tensor.ndim == 4 else _lower_triangular(tensor)


def _lower_triangular(mask: Tensor) -> bool:
    """Set on and below the diagonal, nowhere above; no context we load is longer than 8,192 here."""
    return mask.shape[-1] <= 8192 and torch.equal(mask != 0, torch.ones(mask.shape, dtype=torch.bool).tril())


_ADAPTER = re.compile(r"(?:^|\.)(?:lora_[AB]|lora_magnitude_vector|adapter_wte|gating_factor)(?:\.|$)")


def is_adapter(name: str) -> bool:
    """Whether this is part of a fine-tuning adapter (LoRA, LLaMA-Adapter) and not of the model."""
    return _ADAPTER.search(name) is not None


_COURSE = {
    "tokens": "tok_emb",
    "positions": "pos_emb",
    "norm": "ln_f",
    "head": "head",
    "attention_norm": "ln1",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "ffn_norm": "ln2",
    "ffn.up": "ffn.net.0",
    "ffn.down": "ffn.net.2",
}


def course_name(ours: str) -> str:
    """The course's name of our parameter: blocks.0.ffn.up.weight → blocks.0.ffn.net.0.weight."""
    block = _BLOCK.fullmatch(ours)
    stem, _, kind = (block[2] if block else ours).rpartition(".")
    return (f"blocks.{block[1]}." if block else "") + f"{_COURSE[stem]}.{kind}"
