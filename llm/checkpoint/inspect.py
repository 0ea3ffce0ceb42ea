"""What a checkpoint is: `causerie inspect PATH`, for every format, without loading its weights.

    $ causerie inspect checkpoints/causette
    $ causerie inspect path/to/model.gguf --max-num-seqs 4

The file's headers, the template and the tokenizer are read as the server reads them, so what is refused here
is refused there, with the same line. Refuses to know devices: memory is stated for float32, and halves for
the half types.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from llm.chat.template import Message, encode_segments
from llm.checkpoint import find_checkpoint, locate_checkpoint, open_checkpoint, prove_prompts
from llm.checkpoint.record import Checkpoint, expected_shapes
from llm.config import ModelConfig
from llm.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "what is a token?"
FLOAT32 = 4


def inspect(checkpoint: Checkpoint, num_sequences: int = 16) -> str:
    """A report, one fact per line.

    Args:
        num_sequences: replies together, for the memory they need.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    shapes = expected_shapes(config)
    num_parameters = sum(map(math.prod, shapes.values()))
    proved = prove_prompts(checkpoint)
    segments = checkpoint.template.render([Message("user", QUESTION)])
    prompt = "".join(segment.text for segment in segments)
    num_tokens = len(encode_segments(tokenizer, segments)[0])
    facts = {
        "checkpoint": f"{checkpoint.path} ({checkpoint.kind})",
        "name": checkpoint.name,
        "digest": checkpoint.digest,
        "network": f"{checkpoint.architecture}: {_network(config)}",
        "parameters": f"{num_parameters:,} in {len(shapes)} tensors",
        "stored": _stored(checkpoint),
        "context": f"{config.num_positions:,} tokens",
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids",
        "template": f"{checkpoint.template.name}; {num_tokens} tokens: {prompt!r}",
        "reply ends": _ends(checkpoint),
        "sampling": _sampling(checkpoint),
        "memory": _memory(config, num_parameters, num_sequences),
        "samples": f"{proved}, rendered as trained" if proved else "none, so nothing proves the prompt",
    }
    lines = [f"{name:<12}{value}" for name, value in facts.items()]
    lines += [f"{'note':<12}{note}" for note in checkpoint.notes]
    return "\n".join(lines + [f"{'WARNING':<12}{warning}" for warning in checkpoint.warnings])


def _network(config: ModelConfig) -> str:
    """The switches in words, as far as they differ from nothing."""
    rotary = f"rotary positions of base {config.rope_theta:g}" if config.rope_theta else "learned positions"
    words = [
        f"{config.num_layers} layers of width {config.width}",
        f"{config.num_heads} heads of {config.head_dim}",
        f"{config.num_kv_heads} key/value heads" if config.num_kv_heads != config.num_heads else "",
        "q/k norms" if config.qk_norm else "",
        f"{config.activation} {config.ffn_width}",
        f"{'RMSNorm' if config.norm == 'rms' else 'LayerNorm'} {config.norm_eps:g}",
        rotary + (", stretched" if config.rope_factors else ""),
        f"window {config.sliding_window}" if config.sliding_window else "",
        "tied head" if config.tied_head else "",
    ]
    return ", ".join(word for word in words if word)


def _stored(checkpoint: Checkpoint) -> str:
    total = sum(checkpoint.stored.values())
    return ", ".join(f"{name} {number / total:.1%}" for name, number in checkpoint.stored.items())


def _ends(checkpoint: Checkpoint) -> str:
    tokenizer, ends = checkpoint.tokenizer, set(checkpoint.defaults.stop_token_ids)
    if tokenizer.end_of_text is not None:
        ends.add(tokenizer.end_of_text)
    spellings = {token: text for text, token in tokenizer.control.items()}
    named = [f"{spellings.get(token, 'token')} ({token})" for token in sorted(ends)]
    return ", ".join(named + [repr(text) for text in checkpoint.defaults.stop]) or "at max_tokens only"


def _sampling(checkpoint: Checkpoint) -> str:
    policy = checkpoint.defaults
    words = f"temperature {policy.temperature:g}, top_k {policy.top_k}, top_p {policy.top_p:g}"
    words += f", min_p {policy.min_p:g}" if policy.min_p else ""
    words += f", repetition_penalty {policy.repetition_penalty:g}" if policy.repetition_penalty != 1 else ""
    words += f", max_tokens {policy.max_tokens or 'as many as fit'}"
    return words + (f", system {policy.default_system!r}" if policy.default_system else "")


def _memory(config: ModelConfig, num_parameters: int, num_sequences: int) -> str:
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * FLOAT32
    whole = per_token * config.num_positions * num_sequences
    return (
        f"{num_parameters * FLOAT32 / 1e6:,.0f} MB of weights and {per_token:,} bytes per token in float32; "
        f"{num_sequences} sequences of {config.num_positions:,} tokens: {whole / 1e6:,.0f} MB"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Say what a checkpoint is, without serving it.")
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        help="file, folder or name of a pulled one; the default checkpoint when left out",
    )
    parser.add_argument(
        "--n-head", type=int, help="query heads of a state dict, which its shapes do not tell"
    )
    parser.add_argument(
        "--max-num-seqs", type=int, default=16, help="replies together, for the memory they need"
    )
    options = parser.parse_args(argv)
    try:
        path = locate_checkpoint(options.path, ROOT) if options.path else find_checkpoint(ROOT)[0]
        print(inspect(open_checkpoint(path, num_heads=options.n_head), options.max_num_seqs))
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
