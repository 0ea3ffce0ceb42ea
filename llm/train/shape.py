"""What a model from scratch looks like: a family's switches, and the sizes of the flags.

Refuses to know weights, data and checkpoints.

    >>> new_config(options, vocab_size=50_257).num_layers
    6
"""

from __future__ import annotations

import argparse
from typing import Any

from llm.config import ModelConfig
from llm.errors import OptionError
from llm.train.adapter import add_lora_flags

LAYERS, HEADS, WIDTH, POSITIONS = 6, 6, 192, 512
SHAPE = ("family", "layers", "heads", "kv_heads", "width", "ffn", "positions")
"""Names of the flags that shape a model from scratch; None where not given."""

_LLAMA: dict[str, Any] = {"norm": "rms", "activation": "swiglu", "rope_theta": 10_000.0}
_QWEN = _LLAMA | {"rope_theta": 1_000_000.0, "norm_eps": 1e-6}
FAMILIES: dict[str, dict[str, Any]] = {
    "course": {},
    "gpt2": {
        "activation": "gelu_tanh",
        "attention_bias": True,
        "attention_out_bias": True,
        "ffn_bias": True,
    },
    "llama": _LLAMA,
    "qwen2": _QWEN | {"attention_bias": True},
    "qwen3": _QWEN | {"qk_norm": True},
}
"""Fields of ModelConfig in which a family differs from the course's GPT."""


def add_shape_flags(parser: argparse.ArgumentParser) -> None:
    """What a model from scratch looks like, or which checkpoint to start from."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--init", help="checkpoint to start from; without it, from scratch in the shape below")
    add(
        "--like", metavar="CHECKPOINT", help="from scratch, in that checkpoint's shape and with its tokenizer"
    )
    add("--family", choices=tuple(FAMILIES), help="whose switches the network has (default course)")
    add("--layers", type=int, help=f"transformer blocks (default {LAYERS})")
    add("--heads", type=int, help=f"query heads (default {HEADS})")
    add("--kv-heads", type=int, help="key/value heads (default: as many as query heads)")
    add("--width", type=int, help=f"residual stream (default {WIDTH})")
    add("--ffn", type=int, help="feed-forward units (default: 4 × width, gated 8/3 × width)")
    add("--positions", type=int, help=f"longest context in tokens (default {POSITIONS})")
    add("--untied", action="store_true", help="a head of its own instead of the token embedding")
    add("--tokenizer", help='.tiktoken file, or "bytes" (default: the default checkpoint\'s)')
    add_lora_flags(parser)


def refuse_shape(options: argparse.Namespace) -> None:
    """Beside --init or --like, which bring the shape.

    Raises:
        OptionError: a shape flag is given, or both.
    """
    source = "like" if options.init is None else "init"
    if options.init is not None and options.like is not None:
        raise OptionError("--like: --init brings shape and weights, leave it out")
    given = [name for name in (*SHAPE, "tokenizer") if getattr(options, name) is not None]
    if given or options.untied:
        name = given[0].replace("_", "-") if given else "untied"
        raise OptionError(f"--{name}: --{source} brings shape and tokenizer, leave it out")


def new_config(options: argparse.Namespace, vocab_size: int) -> ModelConfig:
    """The configuration the flags describe.

    Raises:
        OptionError: a shape no model has; in the words of ModelConfig.
    """
    family = FAMILIES[options.family or "course"]
    heads, width = _given(options.heads, HEADS), _given(options.width, WIDTH)
    gated = family.get("activation") == "swiglu"
    ffn = -(-8 * width // 96) * 32 if gated else 4 * width  # 8/3 × width, up to a multiple of 32
    try:
        return ModelConfig(
            vocab_size=vocab_size,
            num_positions=_given(options.positions, POSITIONS),
            num_layers=_given(options.layers, LAYERS),
            num_heads=heads,
            num_kv_heads=_given(options.kv_heads, heads),
            width=width,
            ffn_width=_given(options.ffn, ffn),
            tied_head=not options.untied,
            **family,
        )
    except ValueError as error:
        raise OptionError(str(error)) from None


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
