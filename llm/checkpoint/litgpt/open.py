"""litgpt's checkpoints: `lit_model.pth` with `model_config.yaml` and a Hugging Face tokenizer beside it.

Names are litgpt's own and exact. `attn.qkv` holds all queries, then keys, then values; `attn.attn`, the name
in releases before 0.5.5 and in lit-gpt, holds them by group: the queries that share a key, that key, that
value. A prompt_style.yaml names a class of litgpt's and is not followed. Refuses to know how the network is
configured.

    >>> checkpoint = open_litgpt(Path("checkpoints/meta-llama/Llama-3.2-1B-Instruct"))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llm.checkpoint.hf.open import read_folder_dialogue
from llm.checkpoint.hf.tokenizer import open_tokenizer, read_settings
from llm.checkpoint.litgpt.config import read_litgpt_config
from llm.checkpoint.policy import read_hf_defaults
from llm.checkpoint.pt.wrapper import unwrap
from llm.checkpoint.record import (
    FLOATS,
    Checkpoint,
    count_dtypes,
    expected_shapes,
    file_digest,
    some,
    split_warnings,
    vocabulary_notes,
)
from llm.checkpoint.torch_file import State, check_sizes, load_torch_file, read_in_turn
from llm.config import ModelConfig
from llm.errors import CheckpointError

WEIGHTS, CONFIG = "lit_model.pth", "model_config.yaml"
_TOP = {"transformer.wte": "tokens", "transformer.ln_f": "norm", "lm_head": "head"}
_IN_BLOCK = {
    "norm_1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.attn": "attention.qkv",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "attn.proj": "attention.out",
    "norm_2": "ffn_norm",
    "mlp.fc": "ffn.up",
    "mlp.fc_1": "ffn.gate",
    "mlp.fc_2": "ffn.up",
    "mlp.proj": "ffn.down",
}
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|_forward_module\.|module\.|model\.)+")
_BLOCK = re.compile(r"transformer\.h\.(0|[1-9]\d{0,4})\.(.+)")


def has_litgpt_names(names: Iterable[str]) -> bool:
    """Whether these are litgpt's: its norms' names, and no learned positions."""
    bare = {_WRAPPERS.sub("", name) for name in names}
    return "transformer.h.0.norm_1.weight" in bare and "transformer.wpe.weight" not in bare


def open_litgpt(path: Path, num_heads: int | None = None) -> Checkpoint:
    """Open a checkpoint of litgpt's.

    Args:
        path: litgpt's folder, or the file of weights in it.
        num_heads: what the operator believes.

    Raises:
        CheckpointError: anything that keeps it from being served, in one line.
    """
    folder, file = (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{path}: litgpt's weights, but no {CONFIG} beside them says what they make")
    name, config = read_litgpt_config(folder / CONFIG)
    if num_heads is not None and num_heads != config.num_heads:
        raise CheckpointError(f"{folder / CONFIG}: n_head is {config.num_heads}, {num_heads} was asked for")
    unwrapped = unwrap(file, load_torch_file(file))
    config, sources = match(file, unwrapped.state, config)
    settings = read_settings(folder)
    tokenizer, found = open_tokenizer(folder, config.vocab_size, name, settings)
    defaults, policy_notes = read_hf_defaults(folder / "generation_config.json")
    dialogue = read_folder_dialogue(folder, tokenizer, settings, defaults.stop_token_ids)
    style = ["template: prompt_style.yaml ignored"] if (folder / "prompt_style.yaml").exists() else []
    tokenizer_notes, warnings = split_warnings(found)
    return Checkpoint(
        path=path,
        name=folder.resolve().name,
        kind="litgpt checkpoint",
        architecture=name,
        config=config,
        template=dialogue.template,
        tokenizer=tokenizer,
        defaults=dialogue.over(defaults),
        samples=[],
        notes=unwrapped.notes
        + _layout(sources)
        + tokenizer_notes
        + vocabulary_notes(tokenizer, config)
        + style
        + dialogue.notes
        + policy_notes,
        warnings=warnings + dialogue.warnings,
        digest=file_digest(file),
        stored=count_dtypes(unwrapped.state[source] for source in sources.values()),
        read=lambda: read_in_turn(
            file, sources, lambda loaded: arrange(unwrap(file, loaded).state, config, sources)
        ),
    )


def _layout(sources: dict[str, str]) -> list[str]:
    by_group = any(".attn.attn." in source for source in sources.values())
    return ["layout: attn.attn holds q, k and v by group, put in order"] if by_group else []


def match(path: Path, state: State, config: ModelConfig) -> tuple[ModelConfig, dict[str, str]]:
    """Compare names, shapes and types with the configuration.

    Returns:
        The configuration, its head tied when the file has none of its own, and our names → the file's.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or type.
    """
    sources: dict[str, str] = {}
    for name in state:
        ours = _ours(name, config)
        if ours is None:
            raise CheckpointError(f"{path}: {some([name])} has no place in the network {CONFIG} describes")
        if ours in sources:
            raise CheckpointError(f"{path}: {some([sources[ours], name])} are both {ours}")
        sources[ours] = name
    if config.num_layers > len(state):
        raise CheckpointError(
            f"{path}: {CONFIG} says {config.num_layers} layers, {len(state)} tensors are here"
        )
    head, tokens = sources.get("head.weight"), sources.get("tokens.weight")
    tied = head is None or (tokens is not None and _equal(state[head], state[tokens]))
    config = replace(config, tied_head=tied)
    if tied:
        sources.pop("head.weight", None)
    _check(path, {ours: state[name] for ours, name in sources.items()}, config)
    return config, sources


def _equal(head: Tensor, tokens: Tensor) -> bool:
    return head.shape == tokens.shape and head.dtype == tokens.dtype and torch.equal(head, tokens)


def _ours(name: str, config: ModelConfig) -> str | None:
    """Our name of a litgpt parameter; fc_1 is a gate, and so only where there is one."""
    stem, _, kind = _WRAPPERS.sub("", name).rpartition(".")
    if (
        kind not in ("weight", "bias")
        or (stem.endswith("mlp.fc") == (config.activation == "swiglu"))
        and ("mlp.fc" in stem)
    ):
        return None
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    block = _BLOCK.fullmatch(stem)
    ours = _IN_BLOCK.get(block[2]) if block else None
    return f"blocks.{block[1]}.{ours}.{kind}" if block and ours else None


def _check(path: Path, tensors: dict[str, Tensor], config: ModelConfig) -> None:
    check_sizes(path, tensors.values())
    shapes = expected_shapes(config)
    if missing := [name for name in shapes if name not in tensors]:
        raise CheckpointError(f"{path}: missing, {len(missing)} in all: {some(missing)} (our names)")
    if extra := [name for name in tensors if name not in shapes]:
        raise CheckpointError(f"{path}: {some(extra)} (our names) not in the network {CONFIG} describes")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{path}: {name} has shape {list(tensor.shape)}, {CONFIG} says {list(shapes[name])}"
            )
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {name} has type {tensor.dtype}, readable are {some(FLOATS)}")


def arrange(state: State, config: ModelConfig, sources: dict[str, str]) -> Callable[[str], Tensor]:
    """For a state dict that was matched before: our name → the parameter."""

    def tensor_of(ours: str) -> Tensor:
        tensor = state[sources[ours]]
        return ungroup(tensor, config) if ".attn.attn." in sources[ours] else tensor

    return tensor_of


def ungroup(qkv: Tensor, config: ModelConfig) -> Tensor:
    """Rows by group (its queries, its key, its value) → all queries, all keys, all values. Same shape."""
    groups = qkv.view(config.num_kv_heads, -1, config.head_dim, *qkv.shape[1:])  # (K, H/K + 2, D, ...)
    queries, keys, values = groups[:, :-2], groups[:, -2], groups[:, -1]
    return torch.cat([queries.flatten(0, 2), keys.flatten(0, 1), values.flatten(0, 1)])
