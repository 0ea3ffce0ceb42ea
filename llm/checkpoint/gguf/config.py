"""From a GGUF file's metadata to a configuration.

Keys begin with the architecture's name: llama (Llama, Mistral, SmolLM2, TinyLlama and their fine-tunes),
qwen2 or qwen3. A key we do not know is reported; one that would change attention, rotation or a scale is
refused, for ignoring it would serve another network. Refuses to know files, and tensors but for the names of
those that are there.

    >>> read_config(Path("model.gguf"), file.fields, parameters.keys(), 49152, ())
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from llm.checkpoint.record import some
from llm.config import MAX_DIMENSION, ModelConfig
from llm.errors import CheckpointError
from llm.fields import Fields
from llm.rope import linear_factors, yarn_attention_scale, yarn_factors

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_SILENT = (
    "attention.layer_norm_epsilon",  # beside the one for RMSNorm, which counts
    "expert_used_count",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",  # the embedding's rows count
)
_CHANGES_THE_NETWORK = re.compile(r"(attention|rope|ssm)\.|.*(scale|softcapping|parallel_residual)")


def read_architecture(path: Path, fields: Mapping[str, object]) -> str:
    """The network's family, one of ARCHITECTURES.

    Raises:
        CheckpointError: another one, or no network at all.
    """
    kind, name = fields.get("general.type", "model"), fields.get("general.architecture")
    if kind != "model":
        raise CheckpointError(f"{path}: general.type is {repr(kind)[:64]}: not a model by itself")
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture is {repr(name)[:64]}, supported are {', '.join(ARCHITECTURES)}"
        )
    assert isinstance(name, str)
    return name


class _Keys(Fields):
    """The metadata of one architecture, by what follows its name; a default stands for an absent key."""

    def __init__(self, path: Path, architecture: str, metadata: Mapping[str, object]) -> None:
        self._start = f"{architecture}."
        super().__init__({k: v for k, v in metadata.items() if k.startswith(self._start)}, str(path))

    def count(self, name: str, default: int | None = None, low: int = 1) -> int:
        """A whole number from `low` to the largest dimension; required without a default."""
        key = self._start + name
        return default if default is not None and key not in self else self.whole(key, low, MAX_DIMENSION)

    def real(self, name: str, default: float | None, low: float, high: float) -> float:
        """A number; the shortest decimal where it is stored as float32, so 1e-5 and not 9.99999974e-06."""
        key = self._start + name
        if default is not None and key not in self:
            return default
        value = self.number(key, low, high)
        single = np.float32(value)
        return float(str(single)) if float(single) == value else value

    def word(self, name: str, default: str) -> str:
        key = self._start + name
        return self.text(key) if key in self else default

    def flag(self, name: str, default: bool) -> bool:
        key = self._start + name
        return self.boolean(key) if key in self else default

    def per_layer(self, name: str, num_layers: int, default: int | None = None) -> int:
        """A whole number that may be a list, one for each layer, of equal numbers."""
        key = self._start + name
        value = self._left.get(key)
        if isinstance(value, list):
            if len(value) != num_layers or any(item != value[0] for item in value):
                self.refuse(
                    f"{key} must be one number, or {num_layers} times the same, got {repr(value)[:64]}"
                )
            self._left[key] = value[0]
        return self.count(name, default)

    def finish(self) -> list[str]:
        """A warning about keys that were not taken, when ignoring them is safe."""
        names = [key.removeprefix(self._start) for key in self.left()]
        names = [name for name in names if name not in _SILENT]
        if grave := [self._start + name for name in names if _CHANGES_THE_NETWORK.match(name)]:
            self.refuse(f"not supported, and ignoring it would change the network: {some(grave)}")
        return [f"metadata: ignored {some(self._start + name for name in names)}"] if names else []


def read_config(
    path: Path,
    metadata: Mapping[str, object],
    names: Collection[str],
    vocab_size: int,
    rope_factors: tuple[float, ...],
) -> tuple[ModelConfig, list[str]]:
    """The network that the metadata describe; biases and the head are what is there.

    Args:
        metadata: every field of the file.
        names: of the parameters that are there, ours.
        vocab_size: rows of the token embedding.
        rope_factors: the numbers of the tensor rope_freqs.weight, or ().

    Returns:
        The configuration, still to be compared with the tensors' shapes, and warnings.

    Raises:
        CheckpointError: a key that is missing, of a wrong type, out of bounds, or not understood.
    """
    architecture = read_architecture(path, metadata)
    keys = _Keys(path, architecture, metadata)
    _refuse_other_kinds(keys, architecture)
    layers, width = keys.count("block_count"), keys.count("embedding_length")
    heads = keys.per_layer("attention.head_count", layers)
    head_dim = _head_dim(keys, width, heads)
    positions = keys.count("context_length")
    window = keys.count("attention.sliding_window", 0, low=0)
    theta, factors, scale = _rope(keys, head_dim, positions, rope_factors)
    try:
        config = ModelConfig(
            vocab_size=vocab_size,
            num_positions=positions,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=keys.per_layer("attention.head_count_kv", layers, heads),
            width=width,
            ffn_width=keys.per_layer("feed_forward_length", layers),
            activation="swiglu",
            attention_bias=_any(names, "attention.qkv.bias"),
            attention_out_bias=_any(names, "attention.out.bias"),
            ffn_bias=_any(names, "ffn.up.bias"),
            norm_bias=False,
            norm_eps=keys.real("attention.layer_norm_rms_epsilon", None, 1e-12, 1.0),
            tied_head="head.weight" not in names,
            norm="rms",
            head_size=None if head_dim * heads == width else head_dim,
            qk_norm=architecture == "qwen3",
            rope_theta=theta,
            rope_factors=factors,
            rope_attention_scale=scale,
            sliding_window=window if 0 < window < positions else None,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return config, keys.finish()


def _refuse_other_kinds(keys: _Keys, architecture: str) -> None:
    if (experts := keys.count("expert_count", 0, low=0)) > 0:
        keys.refuse(f"{architecture}.expert_count is {experts}: mixtures of experts are not supported")
    if not keys.flag("attention.causal", True):
        keys.refuse(f"{architecture}.attention.causal is false: not a model that writes text")


def _any(names: Collection[str], ending: str) -> bool:
    return any(name.endswith(ending) for name in names)


def _head_dim(keys: _Keys, width: int, heads: int) -> int:
    """Numbers per head; keys, values and rotation cover all of them."""
    if not (head_dim := keys.count("attention.key_length", width // heads, low=0)):
        keys.refuse(f"embedding_length {width} is below attention.head_count {heads}")
    for name in ("attention.value_length", "rope.dimension_count"):
        if (size := keys.count(name, head_dim)) != head_dim:
            keys.refuse(f"{name} is {size}, supported is the key length of a head, {head_dim}")
    return head_dim


def _rope(
    keys: _Keys, head_dim: int, positions: int, rope_factors: tuple[float, ...]
) -> tuple[float, tuple[float, ...], float]:
    """The base, the factors and the attention scale of the rotation.

    Source: the rotation that llama.cpp computes from these keys; rope_freqs.weight and a scaling multiply.
    """
    theta = keys.real("rope.freq_base", 10000.0, 2.0, 1e12)
    kind = keys.word("rope.scaling.type", "linear")
    legacy = keys.real("rope.scale_linear", 1.0, 0.0, 1e6)
    factor = keys.real("rope.scaling.factor", legacy, 0.0, 1e6)
    scale = keys.real("rope.scaling.attn_factor", 1.0, 1e-3, 1e3)
    original = keys.count("rope.scaling.original_context_length", positions)
    fast = keys.real("rope.scaling.yarn_beta_fast", 32.0, 1e-3, 1e6)
    slow = keys.real("rope.scaling.yarn_beta_slow", 1.0, 1e-3, 1e6)
    if kind not in ("none", "linear", "yarn"):
        keys.refuse(f"rope.scaling.type is {kind[:64]!r}, supported are none, linear and yarn")
    if len(rope_factors) not in (0, head_dim // 2):
        keys.refuse(f"rope_freqs.weight has {len(rope_factors)} numbers, expected {head_dim // 2}")
    if kind == "none" or factor in (0.0, 1.0):  # 0 stands for none
        return theta, rope_factors, scale
    if kind == "linear":
        factors = linear_factors(head_dim, factor)
    else:
        factors = yarn_factors(head_dim, theta, factor, original, fast, slow)
        scale *= yarn_attention_scale(factor)
    if rope_factors:
        factors = tuple(a * b for a, b in zip(factors, rope_factors, strict=True))
    return theta, factors, scale
