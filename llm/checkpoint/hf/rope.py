"""The rotary part of Hugging Face's config.json.

It has two spellings: `rope_theta` and `rope_scaling`, or `rope_parameters` with both (since transformers 5).

Known variants are default, linear, llama3 and yarn. Those whose angles depend on how long the text is
(dynamic, longrope) and any other are refused by name. Refuses to know the rest of the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm.checkpoint.record import some
from llm.config import MAX_DIMENSION
from llm.fields import Fields
from llm.rope import linear_factors, llama3_factors, yarn_attention_scale, yarn_factors

MAX_HEAD_DIM = 4096
DEFAULT_THETA = 10_000.0
_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary fields of ModelConfig, without their prefix, and num_positions as stretched."""

    theta: float
    num_positions: int
    factors: tuple[float, ...] = ()
    attention_scale: float = 1.0


def read_rope(fields: Fields, head_dim: int, num_positions: int, notes: list[str]) -> Rope:
    """The rotary positions that a config.json describes.

    Args:
        fields: its top level, where theta may stand.
        num_positions: max_position_embeddings.
        notes: gets a line on what was left aside, and on a context that YaRN stretches.

    Raises:
        CheckpointError: a variant we do not have, or a field missing, of the wrong type or out of bounds.
    """
    inner = _parameters(fields)
    kind = next((inner.text(name) for name in ("rope_type", "type") if name in inner), "default")
    inner.skip("type")
    if kind not in _TYPES:
        inner.refuse(f"rope_type {kind[:64]!r} is not supported, supported are {', '.join(_TYPES)}")
    for place in (inner, fields):
        if "partial_rotary_factor" in place and place.number("partial_rotary_factor", 0, 1) != 1:
            place.refuse("partial_rotary_factor must be 1: every dimension of a head turns")
    owner = inner if "rope_theta" in inner else fields
    theta = owner.number("rope_theta", 2, 1e12) if "rope_theta" in owner else DEFAULT_THETA
    rope = _variant(fields, inner, kind, Rope(theta, num_positions), head_dim)
    if rope.num_positions != num_positions:
        notes.append(f"positions: {rope.num_positions}, as YaRN stretches them, not {num_positions}")
    if ignored := [name for name in inner.left() if name in inner]:
        notes.append(f"rotary positions: ignored {some(ignored)}")
    return rope


def _parameters(fields: Fields) -> Fields:
    """The object that holds the variant; an old one beside a new one wins, as in transformers."""
    for name in ("rope_scaling", "rope_parameters"):
        if name in fields:
            inner = fields.inner(name)
            if nested := [key for key in inner.left() if key.endswith("_attention")]:
                inner.refuse(f"differs between layers ({some(nested)}): not supported")
            if inner.left():
                return inner
    return Fields({}, fields.where)


def _variant(fields: Fields, inner: Fields, kind: str, plain: Rope, head_dim: int) -> Rope:
    theta, positions = plain.theta, plain.num_positions
    if kind == "default":
        return plain
    if kind == "yarn":
        return _yarn(inner, plain, head_dim, _original(fields, inner, positions))
    factor = inner.number("factor", 1, 1e6)
    if kind == "linear":
        return Rope(theta, positions, linear_factors(head_dim, factor))
    low, high = (inner.number(f"{end}_freq_factor", 1e-3, 1e6) for end in ("low", "high"))
    if low >= high:
        inner.refuse(f"low_freq_factor {low:g} must be below high_freq_factor {high:g}")
    original = _original(fields, inner, positions)
    return Rope(theta, positions, llama3_factors(head_dim, theta, factor, low, high, original))


def _yarn(inner: Fields, plain: Rope, head_dim: int, original: int) -> Rope:
    def number(name: str, absent: float) -> float:
        """Zero stands for absent here, as in transformers."""
        return (inner.number(name, 0, 1e6) if name in inner else absent) or absent

    stretch = (
        inner.number("factor", 1, 1e6) if "factor" in inner else max(plain.num_positions / original, 1.0)
    )
    fast, slow = number("beta_fast", 32.0), number("beta_slow", 1.0)
    truncate = inner.boolean("truncate") if "truncate" in inner else True
    mscale, all_dim = number("mscale", 0.0), number("mscale_all_dim", 0.0)
    scale = yarn_attention_scale(stretch)
    if mscale and all_dim:
        scale = yarn_attention_scale(stretch, mscale) / yarn_attention_scale(stretch, all_dim)
    if "attention_factor" in inner:
        scale = inner.number("attention_factor", 1e-6, 1e6)
    factors = yarn_factors(head_dim, plain.theta, stretch, original, fast, slow, truncate)
    positions = max(plain.num_positions, min(round(original * stretch), MAX_DIMENSION))
    return Rope(plain.theta, positions, factors, scale)


def _original(fields: Fields, inner: Fields, num_positions: int) -> int:
    """The context before stretching: at the top, else beside the factor, else all positions."""
    name = "original_max_position_embeddings"
    for owner in (fields, inner):
        if name in owner:
            positions = owner.whole(name, 1, MAX_DIMENSION)
            inner.skip(name)
            return positions
    return num_positions
