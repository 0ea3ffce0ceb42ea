"""The frozen configurations of the model side, composed and never mutated.

ModelConfig says what the network is, EngineConfig how it is run, SamplingParams how one reply is drawn.
Nothing here reads a file, an argument or the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Activation = Literal["gelu", "gelu_tanh", "swiglu"]
Norm = Literal["layer", "rms"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only transformer. Every switch is a field; there is no subclass per family.

    Attributes:
        vocab_size: rows of the token embedding (V).
        num_positions: the longest sequence the network can see, in tokens.
        num_layers: transformer blocks (L).
        num_heads: query heads (H).
        num_kv_heads: key/value heads (K); equal to num_heads without grouped-query attention.
        width: residual stream (C).
        ffn_width: hidden units of the feed-forward layer.
        activation: "gelu" is exact (erf), as the course trains; "gelu_tanh" is GPT-2's approximation;
            "swiglu" is silu(gate(x)) · up(x), with a third projection (Shazeer 2020).
        attention_bias: q, k and v projections carry a bias.
        attention_out_bias: the projection after attention carries a bias.
        ffn_bias: every feed-forward projection carries a bias.
        norm_bias: LayerNorms carry a bias; an RMSNorm never does.
        norm_eps: added to the variance (LayerNorm) or to the mean square (RMSNorm).
        tied_head: the head is the token embedding, transposed.
        norm: "layer" or "rms".
        head_size: numbers per head, or None for width / num_heads; read `head_dim`.
        qk_norm: queries and keys pass an RMSNorm over the head, as in Qwen3.
        rope_theta: base of the rotary frequencies; None means learned positions.
        rope_factors: divides each of the head_dim / 2 rotary frequencies; empty for none (rope.py).
        rope_attention_scale: multiplies the rotary cosines and sines, as YaRN does.
        sliding_window: a token sees itself and this many - 1 before it; None for all.
        num_full_layers: the first layers, which see everything all the same.
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
    norm: Norm = "layer"
    head_size: int | None = None
    qk_norm: bool = False
    rope_theta: float | None = None
    rope_factors: tuple[float, ...] = ()
    rope_attention_scale: float = 1.0
    sliding_window: int | None = None
    num_full_layers: int = 0

    def __post_init__(self) -> None:
        for name in _DIMENSIONS:
            value = getattr(self, name)
            if value is None and name in ("head_size", "sliding_window"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_DIMENSION:
                raise ValueError(f"{name} must be a whole number from 1 to {MAX_DIMENSION}, got {value!r}")
        for name, known in (("activation", get_args(Activation)), ("norm", get_args(Norm))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.head_size is None and self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if not 0 <= self.num_full_layers <= self.num_layers:
            raise ValueError(f"num_full_layers must be 0 to {self.num_layers}, got {self.num_full_layers!r}")
        self._check_rope()

    def _check_rope(self) -> None:
        if self.rope_theta is None:
            if self.rope_factors or self.rope_attention_scale != 1.0:
                raise ValueError("rope_factors and rope_attention_scale need rope_theta")
            return
        numbers = {"rope_theta": self.rope_theta, "rope_attention_scale": self.rope_attention_scale}
        numbers |= {f"rope_factors[{i}]": factor for i, factor in enumerate(self.rope_factors)}
        for name, number in numbers.items():
            if not 1e-6 <= number <= 1e12:
                raise ValueError(f"{name} must be a number from 1e-6 to 1e12, got {number!r}")
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head size, got {self.head_dim}")
        if len(self.rope_factors) not in (0, self.head_dim // 2):
            raise ValueError(
                f"rope_factors must be {self.head_dim // 2} numbers, got {len(self.rope_factors)}"
            )

    @property
    def head_dim(self) -> int:
        """Numbers per head (D)."""
        return self.width // self.num_heads if self.head_size is None else self.head_size

    def window(self, layer: int) -> int | None:
        """Tokens that a token of this layer sees, itself included; None for all."""
        return None if layer < self.num_full_layers else self.sliding_window


_DIMENSIONS = (
    "vocab_size",
    "num_positions",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "width",
    "ffn_width",
    "head_size",
    "sliding_window",
)
MAX_DIMENSION = 1 << 24
"""No dimension of a model we load is larger: a lying config is refused before it allocates."""


BLOCK_SIZE = 16
"""Tokens in a KV block of the torch runner."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine runs one model on one device. Counts are tokens, sequences or blocks.

    Attributes:
        max_model_len: longest prompt + reply, in tokens; at most the model's positions.
        max_num_seqs: sequences that decode together.
        max_num_batched_tokens: tokens computed in one step; a longer prompt is prefilled in chunks.
        max_step_ms: what a step beside decoders should last at most, in milliseconds: of a prompt it computes
            as much as fits; 0 for no bound.
        block_size: tokens in one KV block.
        num_blocks: KV blocks in the pool, or None for max_num_seqs sequences of max_model_len.
        enable_prefix_caching: what a sequence has computed serves later ones that begin with the same tokens.
        num_speculative_tokens: guesses that may be computed beside a decoding sequence's token; 0 for none.
    """

    max_model_len: int
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    max_step_ms: int = 100
    block_size: int = BLOCK_SIZE
    num_blocks: int | None = None
    enable_prefix_caching: bool = True
    num_speculative_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_speculative_tokens < 0:
            raise ValueError(f"num_speculative_tokens must be at least 0, got {self.num_speculative_tokens}")
        if self.max_step_ms < 0:
            raise ValueError(f"max_step_ms must be at least 0, got {self.max_step_ms}")
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
class AdapterRoom:
    """What a model keeps room for, of LoRA adapters.

    Attributes:
        num_adapters: at a time, those included that are on their way out.
        max_rank: r of any of their matrices.
    """

    num_adapters: int
    max_rank: int


NO_ADAPTERS = AdapterRoom(0, 0)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is drawn. Every value is explicit: defaults are merged by whoever builds this.

    Attributes:
        max_tokens: new tokens at most, at least 1.
        temperature: 0 is greedy, whatever the other fields say.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches p, the token that
            crosses p included (the field's meaning of nucleus sampling); 1 keeps all.
        min_p: drop tokens less probable than this share of the most probable one's; 0 keeps all.
        repetition_penalty: divides the positive logits of tokens already seen, multiplies the negative; 1 is
            none.
        frequency_penalty: taken from a token's logit for each time the reply has it.
        presence_penalty: taken once from the logit of every token the reply has.
        logit_bias: (id, amount) added to that id's logit; each id once, below the vocabulary's size.
        seed: with `choice` and the token's position it fixes every draw.
        choice: index among the n choices of one request.
        stop: strings that end the reply, matched on text and not part of it.
        stop_token_ids: ids that end the reply and are not part of its text.
        min_tokens: new tokens before anything but max_tokens may end the reply.
        logprobs: alternatives whose log probabilities are wanted beside each token's own; None for none at
            all.
        prompt_logprobs: the same for the tokens of the prompt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    choice: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        assert self.max_tokens >= 1, self.max_tokens
        assert 0 <= self.min_tokens <= self.max_tokens, (self.min_tokens, self.max_tokens)
        assert self.temperature >= 0.0, self.temperature
        assert self.top_k >= 0, self.top_k
        assert 0.0 < self.top_p <= 1.0, self.top_p
        assert 0.0 <= self.min_p <= 1.0, self.min_p
        assert self.repetition_penalty > 0.0, self.repetition_penalty
        assert "" not in self.stop

    @property
    def has_penalties(self) -> bool:
        """Whether a token's scores depend on which others there are already."""
        return bool(self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """A checkpoint's own sampling policy: what a request gets for the fields it does not send.

    Attributes:
        temperature, top_k, top_p, min_p, repetition_penalty: as in SamplingParams.
        max_tokens: new tokens when the request does not say, or None for all the room left.
        stop: the template's stop strings; a request's own are added to them.
        default_system: system line of a conversation that brings none.
        stop_token_ids: every id the checkpoint names as an end of turn or of text.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)


COURSE_DEFAULTS = GenerationDefaults(
    temperature=0.8,
    top_k=50,
    top_p=0.9,
    max_tokens=160,
    stop=("\nUser:", "\nSystem:", "\n"),
    default_system="You answer questions briefly.",
)
"""The policy of the course's chat loop, for a bare state dict that carries none of its own."""
