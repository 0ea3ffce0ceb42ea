"""nanoGPT's `ckpt.pt`: weights, and the `model_args` they were built with.

    {"model": …, "optimizer": …, "model_args": {"n_layer", "n_head", "n_embd", "block_size", "bias",
     "vocab_size"}, "iter_num": …, "best_val_loss": …, "config": {"dataset": …}}

The network is read off the tensors; model_args adds the number of heads and must agree with the rest. GELU is
exact, as in nanoGPT since June 2023. It trains base models, so a conversation gets plain lines and a warning.
Refuses to know how a file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm.checkpoint.dialogue import read_dialogue
from llm.checkpoint.pt.shapes import read_network
from llm.checkpoint.pt.wrapper import Unwrapped, weights_of
from llm.checkpoint.record import (
    Checkpoint,
    count_dtypes,
    file_digest,
    some,
    split_warnings,
    vocabulary_notes,
)
from llm.checkpoint.vocabulary import find_tokenizer
from llm.config import MAX_DIMENSION, GenerationDefaults, ModelConfig
from llm.errors import CheckpointError
from llm.fields import Fields
from llm.tokenizer import Tokenizer

TEMPERATURE, TOP_K = 0.8, 200
"""Of nanoGPT's own sampling script."""


def is_nanogpt(beside: Mapping[str, object]) -> bool:
    """Whether what lies beside the state dict is nanoGPT's."""
    arguments = beside.get("model_args")
    return isinstance(arguments, Mapping) and "n_head" in arguments and "block_size" in arguments


def open_nanogpt(path: Path, unwrapped: Unwrapped, num_heads: int | None = None) -> Checkpoint:
    """Open a checkpoint of nanoGPT's training script.

    Args:
        num_heads: what the operator believes.

    Raises:
        CheckpointError: model_args contradicts the tensors or the operator, or what read_network raises.
    """
    arguments = unwrapped.beside["model_args"]
    assert isinstance(arguments, Mapping)
    fields = Fields({str(name): value for name, value in arguments.items()}, f"{path}: model_args")
    heads = fields.whole("n_head", 1, MAX_DIMENSION)
    if num_heads is not None and num_heads != heads:
        fields.refuse(f"n_head is {heads}, {num_heads} was asked for")
    network = read_network(path, unwrapped.state, heads, "gelu")
    config = network.config
    _check_arguments(fields, config)
    tokenizer, notes = _find_tokenizer(path, config.vocab_size, unwrapped.beside.get("config"))
    notes, warnings = split_warnings(notes)
    dialogue = read_dialogue(str(path), None, tokenizer)
    return Checkpoint(
        path=path,
        name=path.stem,
        kind="nanoGPT checkpoint",
        architecture="GPT",
        config=config,
        template=dialogue.template,
        tokenizer=tokenizer,
        defaults=dialogue.over(GenerationDefaults(temperature=TEMPERATURE, top_k=TOP_K)),
        samples=[],
        notes=[
            f"heads: {heads} of {config.head_dim}, from model_args",
            f"sampling: temperature {TEMPERATURE}, top_k {TOP_K}, as nanoGPT's own script",
            *network.notes,
            *notes,
            *vocabulary_notes(tokenizer, config),
            *dialogue.notes,
        ],
        warnings=warnings + dialogue.warnings,
        digest=file_digest(path),
        stored=count_dtypes(unwrapped.state.values()),
        read=weights_of(path, list(network.parts)),
    )


def _check_arguments(fields: Fields, config: ModelConfig) -> None:
    """The tensors are right; arguments that say otherwise belong to another file."""
    found = {
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "block_size": config.num_positions,
        "vocab_size": config.vocab_size,
    }
    for name, number in found.items():
        if name in fields and (said := fields.whole(name, 1, MAX_DIMENSION)) != number:
            fields.refuse(f"{name} is {said}, the tensors have {number}")
    biases = {config.norm_bias, config.attention_bias, config.attention_out_bias, config.ffn_bias}
    if "bias" in fields and {said_bias := fields.boolean("bias")} != biases:
        fields.refuse(f"bias is {said_bias}, the tensors say otherwise")


def _find_tokenizer(path: Path, vocab_size: int, config: object) -> tuple[Tokenizer, list[str]]:
    """As for any torch file; when that finds none, with the place where nanoGPT keeps its characters."""
    dataset = config.get("dataset") if isinstance(config, Mapping) else None
    try:
        return find_tokenizer(path, vocab_size)
    except CheckpointError as error:
        if not isinstance(dataset, str) or "meta.pkl" not in str(error):
            raise
        raise CheckpointError(f"{error}; this one was trained on {some([dataset])}") from None
