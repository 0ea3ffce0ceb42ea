"""litgpt's model_config.yaml → ModelConfig.

A field that changes what the network computes is honoured, or refused by name when it asks for something our
Decoder does not have; an absent one has litgpt's own default. The YAML is plain data: no tags, no aliases (a
few lines of them unfold into any amount of memory), a small file. Refuses to know tensors.

    >>> name, config = read_litgpt_config(Path("model_config.yaml"))
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from llm.checkpoint.record import one_line, some
from llm.config import MAX_DIMENSION, Activation, ModelConfig, Norm
from llm.errors import CheckpointError
from llm.fields import Fields, read_bytes
from llm.rope import linear_factors, llama3_factors

MAX_YAML_BYTES = 64 << 10
MAX_HEAD_DIM, MAX_LAYERS = 4096, 4096
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "parallel_residual": (False,),
    "shared_attention_norm": (False,),
    "post_attention_norm": (False,),
    "post_mlp_norm": (False,),
    "norm_1": (True,),
    "norm_2": (True,),
    "norm_qk_type": ("default",),
    "rotary_percentage": (1.0,),
    "rope_interleave": (False,),
    "lm_head_bias": (False,),
    "scale_embeddings": (False,),
    "n_expert": (0,),
}
"""Switches our Decoder does not have, and what they must say."""
_DEFAULTS: dict[str, object] = {"parallel_residual": True, "rotary_percentage": 0.25}
"""litgpt's defaults of those switches, where they are not neutral."""
_SILENT = """hf_config org vocab_size padding_multiple n_expert_per_token moe_intermediate_size
    n_shared_expert n_expert_groups n_topk_groups n_topk_scores_per_group norm_topk_prob routed_scaling_factor
    first_k_dense_replace""".split()
"""Fields that say nothing about a network without experts."""
_NORMS: dict[str, Norm] = {"LayerNorm": "layer", "RMSNorm": "rms", "FusedRMSNorm": "rms"}


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML without aliases and without a key given twice."""

    def compose_node(self, parent: object, index: object) -> object:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        mapping: dict[Hashable, object] = super().construct_mapping(node, deep=True)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError("a key is given twice")
        return mapping


def read_yaml(path: Path) -> Fields:
    """One mapping of plain values.

    Raises:
        CheckpointError: too large, not YAML, with aliases or tags, or not a mapping with names for keys.
    """
    data = read_bytes(path, MAX_YAML_BYTES)
    try:
        values = yaml.load(data, Loader=_PlainLoader)  # safe: _PlainLoader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise CheckpointError(f"{path}: not readable YAML: {reason}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{path}: expected a mapping of names to values")
    return Fields(values, str(path))


def read_litgpt_config(path: Path) -> tuple[str, ModelConfig]:
    """The model's name and network, with an untied head: only the tensors say whether there is one.

    Raises:
        CheckpointError: a field of the wrong type or out of bounds, or one that asks for something we do not
            compute.
    """
    fields = read_yaml(path)
    name = fields.text("name")[:100] if "name" in fields else ""
    for word, why in (("Gemma", "its norms add one"), ("OLMo", "its norms have no weights")):
        if word in name:
            fields.refuse(f"name {name!r}: {word} is not supported: {why}")
    _check_neutral(fields)
    config = _config(fields)
    if unknown := [
        f for f in fields.left() if f in fields and f not in _SILENT and fields.take(f) is not False
    ]:
        fields.refuse(f"{some(unknown)}: not supported")
    return name or "litgpt", config


def _check_neutral(fields: Fields) -> None:
    for name, allowed in _NEUTRAL.items():
        value = fields.take(name) if name in fields else _DEFAULTS.get(name, allowed[0])
        if value not in allowed:
            fields.refuse(f"{name} is {repr(value)[:64]}: only {allowed[0]!r} is supported")


def _config(fields: Fields) -> ModelConfig:
    width, heads = _size(fields, "n_embd", 4096), _size(fields, "n_head", 32)
    if "head_size" not in fields and (width % heads or width // heads > MAX_HEAD_DIM):
        fields.refuse(f"n_embd {width} must be a multiple of n_head {heads}, at most {MAX_HEAD_DIM} times")
    head_dim = fields.whole("head_size", 1, MAX_HEAD_DIM) if "head_size" in fields else width // heads
    if "attention_scores_scalar" in fields and fields.take("attention_scores_scalar") != head_dim:
        fields.refuse(f"attention_scores_scalar must be head_size, {head_dim}, or null")
    num_layers = fields.whole("n_layer", 1, MAX_LAYERS) if "n_layer" in fields else 16
    window, num_full_layers = _window(fields, num_layers)
    bias = _flag(fields, "bias", True)
    norm = _norm(fields)
    activation, ffn_width = _feed_forward(fields, width)
    theta = fields.number("rope_base", 2, 1e12) if "rope_base" in fields else 10_000.0
    try:
        return ModelConfig(
            vocab_size=_vocab_size(fields),
            num_positions=_size(fields, "block_size", 4096),
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=_size(fields, "n_query_groups", heads),
            width=width,
            ffn_width=ffn_width,
            activation=activation,
            attention_bias=_flag(fields, "attn_bias", False) or bias,
            attention_out_bias=bias,
            ffn_bias=bias,
            norm_bias=norm == "layer",
            norm_eps=fields.number("norm_eps", 0.0, 1.0) if "norm_eps" in fields else 1e-5,
            norm=norm,
            head_size=None if head_dim * heads == width else head_dim,
            qk_norm=_qk_norm(fields, norm),
            rope_theta=theta,
            rope_factors=_rope_factors(fields, head_dim, theta),
            sliding_window=window,
            num_full_layers=num_full_layers,
        )
    except ValueError as error:  # ModelConfig's own checks
        fields.refuse(str(error))


def _size(fields: Fields, name: str, absent: int) -> int:
    return fields.whole(name, 1, MAX_DIMENSION) if name in fields else absent


def _flag(fields: Fields, name: str, absent: bool) -> bool:
    return fields.boolean(name) if name in fields else absent


def _vocab_size(fields: Fields) -> int:
    """Rows of the embedding: as padded, else the vocabulary rounded up as litgpt does."""
    if "padded_vocab_size" in fields:
        return fields.whole("padded_vocab_size", 1, MAX_DIMENSION)
    size, multiple = _size(fields, "vocab_size", 50254), _size(fields, "padding_multiple", 512)
    return -(-size // multiple) * multiple


def _norm(fields: Fields) -> Norm:
    name = fields.text("norm_class_name") if "norm_class_name" in fields else "LayerNorm"
    if name not in _NORMS:
        fields.refuse(f"norm_class_name must be {' or '.join(_NORMS)}, got {name[:64]!r}")
    return _NORMS[name]


def _qk_norm(fields: Fields, norm: Norm) -> bool:
    qk_norm = _flag(fields, "norm_qk", False)
    if qk_norm and norm != "rms":
        fields.refuse("norm_qk with norm_class_name LayerNorm is not supported")
    return qk_norm


def _feed_forward(fields: Fields, width: int) -> tuple[Activation, int]:
    """The activation, and the feed-forward layer's width."""
    name = fields.text("mlp_class_name") if "mlp_class_name" in fields else "GptNeoxMLP"
    approximate = fields.text("gelu_approximate") if "gelu_approximate" in fields else "none"
    if name == "LLaMAMLP":
        return "swiglu", fields.whole("intermediate_size", 1, MAX_DIMENSION)
    if name != "GptNeoxMLP":
        fields.refuse(f"mlp_class_name must be GptNeoxMLP or LLaMAMLP, got {name[:64]!r}")
    if approximate not in ("none", "tanh"):
        fields.refuse(f"gelu_approximate must be none or tanh, got {approximate[:64]!r}")
    return ("gelu_tanh" if approximate == "tanh" else "gelu"), _size(fields, "intermediate_size", 4 * width)


def _window(fields: Fields, num_layers: int) -> tuple[int | None, int]:
    """The sliding window, None for none, and how many of the first layers ignore it."""
    size = fields.whole("sliding_window_size", 1, MAX_DIMENSION) if "sliding_window_size" in fields else None
    placing = fields.take("sliding_window_layer_placing") if "sliding_window_layer_placing" in fields else 1
    slides: list[object] = [1] * num_layers
    if "sliding_window_indices" in fields:
        slides = fields.items("sliding_window_indices")
    if size is None:
        return None, 0
    num_full = next((i for i, slide in enumerate(slides) if slide), num_layers)
    if placing not in (1, "all") or [bool(s) for s in slides] != [i >= num_full for i in range(num_layers)]:
        fields.refuse(
            "sliding_window_size: only for all layers, or for all after the first few, is supported"
        )
    return (size, num_full) if num_full < num_layers else (None, 0)


def _rope_factors(fields: Fields, head_dim: int, theta: float) -> tuple[float, ...]:
    """Positions divided by rope_condense_ratio, frequencies by rope_adjustments: linear, or Llama 3's."""
    ratio = fields.number("rope_condense_ratio", 1e-3, 1e6) if "rope_condense_ratio" in fields else 1.0
    factors = linear_factors(head_dim, 1.0)
    if "rope_adjustments" in fields:
        inner = fields.inner("rope_adjustments")
        factor = inner.number("factor", 1e-3, 1e6)
        factors = linear_factors(head_dim, factor)
        if inner.left():
            low, high = (inner.number(f"{end}_freq_factor", 1e-3, 1e6) for end in ("low", "high"))
            if low >= high:
                inner.refuse(f"low_freq_factor {low:g} must be below high_freq_factor {high:g}")
            original = inner.whole("original_max_seq_len", 1, MAX_DIMENSION)
            inner.done()
            factors = llama3_factors(head_dim, theta, factor, low, high, original)
    factors = tuple(factor * ratio for factor in factors)
    return factors if any(factor != 1.0 for factor in factors) else ()
