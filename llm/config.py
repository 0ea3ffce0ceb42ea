"""The frozen configurations of the model side, composed and never mutated.

ModelConfig says what the network is, EngineConfig how it is run, SamplingParams how one reply is drawn.
Nothing here reads a file, an argument or the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only transformer. Every switch is a field; there is no subclass per family.

    Attributes:
        vocab_size: rows of the token embedding (V).
        num_positions: learned positions, the longest sequence the network can see.
        num_layers: transformer blocks (L).
        num_heads: query heads (H).
        num_kv_heads: key/value heads (K); equal to num_heads without grouped-query attention.
        width: residual stream (C).
        ffn_width: hidden units of the feed-forward layer.
        activation: "gelu" is exact (erf), as the course trains; "gelu_tanh" is GPT-2's approximation.
        attention_bias: q, k and v projections carry a bias.
        attention_out_bias: the projection after attention carries a bias.
        ffn_bias: both feed-forward projections carry a bias.
        norm_bias: LayerNorms carry a bias.
        norm_eps: added to the variance in LayerNorm.
        tied_head: the head is the token embedding, transposed.
    """

    vocab_size: int
    num_positions: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    width: int
    ffn_width: int
    activation: Activation = "gelu"
    attention_bias: bool = False
    attention_out_bias: bool = False
    ffn_bias: bool = False
    norm_bias: bool = True
    norm_eps: float = 1e-5
    tied_head: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "num_positions",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "width",
            "ffn_width",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_DIMENSION:
                raise ValueError(f"{name} must be a whole number from 1 to {MAX_DIMENSION}, got {value!r}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.activation not in ("gelu", "gelu_tanh"):
            raise ValueError(f"activation must be gelu or gelu_tanh, got {self.activation!r}")

    @property
    def head_dim(self) -> int:
        """Numbers per head (D)."""
        return self.width // self.num_heads


MAX_DIMENSION = 1 << 24
"""No dimension of a model we load is larger: a lying config is refused before it allocates."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine runs one model on one device. Counts are tokens, sequences or blocks.

    Attributes:
        max_model_len: longest prompt + reply, in tokens; at most the model's positions.
        max_num_seqs: sequences that decode together.
        max_num_batched_tokens: tokens computed in one step; a longer prompt is prefilled in chunks.
        block_size: tokens in one KV block.
        num_blocks: KV blocks in the pool, or None for max_num_seqs sequences of max_model_len.
    """

    max_model_len: int
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    block_size: int = 16
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_model_len < 2:
            raise ValueError(
                f"max_model_len must be at least 2 (one token in, one out), got {self.max_model_len}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below "
                f"max_num_seqs {self.max_num_seqs}: a step could not move every sequence by one token"
            )
        if self.num_blocks is not None and self.num_blocks < self.blocks_per_sequence:
            raise ValueError(
                f"num_blocks {self.num_blocks} is below {self.blocks_per_sequence}, the blocks of "
                f"{self.block_size} tokens that one sequence of max_model_len {self.max_model_len} needs"
            )

    @property
    def blocks_per_sequence(self) -> int:
        """KV blocks of the longest sequence."""
        return -(-self.max_model_len // self.block_size)

    @property
    def total_blocks(self) -> int:
        """KV blocks the pool holds."""
        return (
            self.num_blocks if self.num_blocks is not None else self.max_num_seqs * self.blocks_per_sequence
        )


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is drawn. Every value is explicit: defaults are merged by whoever builds this.

    Attributes:
        max_tokens: new tokens at most, at least 1.
        temperature: 0 is greedy, whatever the other fields say.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches p, the token that
            crosses p included (the field's meaning of nucleus sampling); 1 keeps all.
        seed: with `choice` and the token's position it fixes every draw.
        choice: index among the n choices of one request.
        stop: strings that end the reply, matched on text and not part of it.
        stop_token_ids: ids that end the reply and are not part of its text.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    choice: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        assert self.max_tokens >= 1, self.max_tokens
        assert self.temperature >= 0.0, self.temperature
        assert self.top_k >= 0, self.top_k
        assert 0.0 < self.top_p <= 1.0, self.top_p
        assert "" not in self.stop


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """A checkpoint's own sampling policy: what a request gets for the fields it does not send.

    Attributes:
        temperature, top_k, top_p: as in SamplingParams.
        max_tokens: new tokens when the request does not say, or None for all the room left.
        stop: the template's stop strings; a request's own are added to them.
        default_system: system line of a conversation that brings none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    default_system: str | None = None


COURSE_DEFAULTS = GenerationDefaults(
    temperature=0.8,
    top_k=50,
    top_p=0.9,
    max_tokens=160,
    stop=("\nUser:", "\nSystem:", "\n"),
    default_system="You answer questions briefly.",
)
"""The policy of the course's chat loop, for a bare state dict that carries none of its own."""
