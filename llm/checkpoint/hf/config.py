"""Hugging Face's config.json → ModelConfig, for the families in FAMILIES.

A field that changes what the network computes is honoured, or refused by name when it asks for something our
Decoder does not have; the many others say nothing here. What an absent field means is what transformers takes
it to mean, and that differs from null: an absent `sliding_window` of a Mistral is 4096. Refuses to know
tensors and every other file; code that `auto_map` names is never run.

    >>> config, notes = read_hf_config(json.loads(text), "folder/config.json")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm.checkpoint.hf.rope import MAX_HEAD_DIM, read_rope
from llm.config import MAX_DIMENSION, Activation, ModelConfig
from llm.fields import Fields

_GELUS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Family:
    """How one member of Llama's family differs from Llama, and what its absent fields mean.

    Attributes:
        qkv_bias: None when the field attention_bias decides.
        mlp_bias: the family knows that field.
        qk_norm: queries and keys are normalised.
        num_kv_heads: when absent; None for as many as query heads.
        head_dim: when absent; None for hidden_size / num_attention_heads.
        window: which layers slide: none, all while `sliding_window` is a number, or those that
            `use_sliding_window` and `max_window_layers` or `layer_types` choose.
    """

    qkv_bias: bool | None = None
    mlp_bias: bool = False
    qk_norm: bool = False
    num_kv_heads: int | None = None
    head_dim: int | None = None
    window: Literal["none", "all", "chosen"] = "none"


FAMILIES = {
    "llama": Family(mlp_bias=True),
    "mistral": Family(qkv_bias=False, num_kv_heads=8, window="all"),
    "qwen2": Family(qkv_bias=True, num_kv_heads=32, window="chosen"),
    "qwen3": Family(qk_norm=True, num_kv_heads=32, head_dim=128, window="chosen"),
}
MODEL_TYPES = ("gpt2", *FAMILIES)


def read_hf_config(values: dict[str, object], where: str) -> tuple[ModelConfig, list[str]]:
    """The network a config.json describes.

    Args:
        values: the file's object.
        where: its path, for messages.

    Returns:
        The configuration, and notes on fields that were seen and left aside.

    Raises:
        CheckpointError: another model_type, a field that is missing, of the wrong type or out of bounds, or a
            value that asks for something else than we compute.
    """
    fields = Fields(values, where)
    model_type = fields.text("model_type")
    if model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        fields.refuse(f"model_type {model_type[:64]!r} is not supported, supported are {known}")
    if "quantization_config" in fields:
        inner = fields.inner("quantization_config")
        method = inner.text("quant_method") if "quant_method" in inner else "unknown"
        fields.refuse(f"quantization_config: weights quantised by {method[:64]!r} are not supported")
    if fields.says("is_causal") and fields.take("is_causal") is not True:
        fields.refuse("is_causal is not true: not a model that writes text")
    notes = ["config: ignored auto_map: no code of a checkpoint is run"] if "auto_map" in fields else []
    try:
        if model_type == "gpt2":
            return _gpt2(fields), notes
        return _llama(fields, FAMILIES[model_type], notes), notes
    except ValueError as error:  # ModelConfig's own checks
        fields.refuse(str(error))


def _gpt2(fields: Fields) -> ModelConfig:
    activation = fields.text("activation_function") if "activation_function" in fields else "gelu_new"
    if activation not in _GELUS:
        fields.refuse(f"activation_function must be {' or '.join(_GELUS)}, got {activation[:64]!r}")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if _flag(fields, name, False):
            fields.refuse(f"{name} is true: not supported")
    if not _flag(fields, "scale_attn_weights", True):
        fields.refuse("scale_attn_weights is false: not supported")
    width = _size(fields, "n_embd")
    return ModelConfig(
        vocab_size=_size(fields, "vocab_size"),
        num_positions=_size(fields, "n_positions"),
        num_layers=_size(fields, "n_layer"),
        num_heads=(num_heads := _size(fields, "n_head")),
        num_kv_heads=num_heads,
        width=width,
        ffn_width=_size(fields, "n_inner") if "n_inner" in fields else 4 * width,
        activation=_GELUS[activation],
        attention_bias=True,
        attention_out_bias=True,
        ffn_bias=True,
        norm_eps=_eps(fields, "layer_norm_epsilon", 1e-5),
        tied_head=_flag(fields, "tie_word_embeddings", True),
    )


def _llama(fields: Fields, family: Family, notes: list[str]) -> ModelConfig:
    if "hidden_act" in fields and (act := fields.text("hidden_act")) != "silu":
        fields.refuse(f"hidden_act must be silu, got {act[:64]!r}")
    width, num_heads = _size(fields, "hidden_size"), _size(fields, "num_attention_heads")
    num_layers = _size(fields, "num_hidden_layers")
    head_dim = _head_dim(fields, family, width, num_heads)
    rope = read_rope(fields, head_dim, _size(fields, "max_position_embeddings"), notes)
    window, num_full_layers = _window(fields, family, num_layers)
    if window is None or window >= rope.num_positions:
        window, num_full_layers = None, 0
    bias = _flag(fields, "attention_bias", False) if family.qkv_bias is None else None
    return ModelConfig(
        vocab_size=_size(fields, "vocab_size"),
        num_positions=rope.num_positions,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, family, num_heads),
        width=width,
        ffn_width=_size(fields, "intermediate_size"),
        activation="swiglu",
        attention_bias=bool(family.qkv_bias if bias is None else bias),
        attention_out_bias=bool(bias),
        ffn_bias=family.mlp_bias and _flag(fields, "mlp_bias", False),
        norm_bias=False,
        norm_eps=_eps(fields, "rms_norm_eps", 1e-6),
        tied_head=_flag(fields, "tie_word_embeddings", False),
        norm="rms",
        head_size=None if head_dim * num_heads == width else head_dim,
        qk_norm=family.qk_norm,
        rope_theta=rope.theta,
        rope_factors=rope.factors,
        rope_attention_scale=rope.attention_scale,
        sliding_window=window,
        num_full_layers=num_full_layers,
    )


def _size(fields: Fields, name: str) -> int:
    return fields.whole(name, 1, MAX_DIMENSION)


def _eps(fields: Fields, name: str, absent: float) -> float:
    return fields.number(name, 0.0, 1.0) if name in fields else absent


def _flag(fields: Fields, name: str, absent: bool) -> bool:
    return fields.boolean(name) if name in fields else absent


def _head_dim(fields: Fields, family: Family, width: int, num_heads: int) -> int:
    if "head_dim" in fields:
        return fields.whole("head_dim", 1, MAX_HEAD_DIM)
    if family.head_dim is not None:
        return family.head_dim
    if width % num_heads or width // num_heads > MAX_HEAD_DIM:
        fields.refuse(
            f"hidden_size {width} must be a multiple of num_attention_heads {num_heads}, "
            f"at most {MAX_HEAD_DIM} times as large, when there is no head_dim"
        )
    return width // num_heads


def _num_kv_heads(fields: Fields, family: Family, num_heads: int) -> int:
    """Absent and null differ: null is always one for each query head."""
    if "num_key_value_heads" in fields:
        return _size(fields, "num_key_value_heads")
    if fields.says("num_key_value_heads") or family.num_kv_heads is None:
        return num_heads
    return family.num_kv_heads


def _window(fields: Fields, family: Family, num_layers: int) -> tuple[int | None, int]:
    """The sliding window, None for none, and how many of the first layers ignore it."""
    if num_layers > _MAX_LAYERS:
        fields.refuse(f"num_hidden_layers must be at most {_MAX_LAYERS}, got {num_layers}")
    slides = family.window == "all" or (
        family.window == "chosen" and _flag(fields, "use_sliding_window", False)
    )
    window = None
    if slides and (not fields.says("sliding_window") or "sliding_window" in fields):
        window = _size(fields, "sliding_window") if "sliding_window" in fields else 4096
    first = 0
    if family.window == "chosen" and window is not None:
        name = "max_window_layers"
        first = min(fields.whole(name, 0, MAX_DIMENSION) if name in fields else 28, num_layers)
    usual = [_FULL if window is None or i < first else _SLIDING for i in range(num_layers)]
    if "layer_types" not in fields or (kinds := fields.items("layer_types")) == usual:
        return window, first
    num_full = next((i for i, kind in enumerate(kinds) if kind != _FULL), num_layers)
    if kinds != [_FULL] * num_full + [_SLIDING] * (num_layers - num_full):
        fields.refuse(
            f"layer_types must be {num_layers} layers, first those with {_FULL}, then those with {_SLIDING}"
        )
    if family.window != "chosen" or (window is None and num_full < num_layers):
        fields.refuse("layer_types contradicts the fields that say which layers have a sliding window")
    return window, num_full


_MAX_LAYERS = 1 << 12
"""Layers beyond any network of this kind: a lying config costs no time."""
