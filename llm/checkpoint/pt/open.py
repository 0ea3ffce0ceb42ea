"""Torch files: bare state dicts, training wrappers around them, nanoGPT's and litgpt's checkpoints.

A bare state dict is `torch.save(model.state_dict(), path)`, as training scripts write it: names.py and
shapes.py make a network of its tensors, heads.py its number of heads, and the course's conversation format is
taken. A file that says more about itself goes to nanogpt.py or litgpt.py. Refuses to know how a file is read,
and networks that are not a GPT.

    >>> save_state_dict("model_sft.pt", model)      # the course's names
"""

from __future__ import annotations

from pathlib import Path

import torch

from llm.chat.template import PlainTemplate, begin_of
from llm.checkpoint.litgpt.open import has_litgpt_names, open_litgpt
from llm.checkpoint.pt.heads import settle_heads
from llm.checkpoint.pt.names import course_name, recognise
from llm.checkpoint.pt.nanogpt import is_nanogpt, open_nanogpt
from llm.checkpoint.pt.shapes import NORM_EPS, read_network
from llm.checkpoint.pt.wrapper import Unwrapped, heads_beside, unwrap, weights_of
from llm.checkpoint.record import (
    Checkpoint,
    architecture_of,
    count_dtypes,
    file_digest,
    split_warnings,
    vocabulary_notes,
)
from llm.checkpoint.torch_file import check_sizes, load_torch_file
from llm.checkpoint.vocabulary import find_tokenizer
from llm.config import COURSE_DEFAULTS
from llm.errors import CheckpointError
from llm.model import Decoder


def open_state_dict(path: Path, num_heads: int | None = None) -> Checkpoint:
    """Open a file written by torch.save.

    Args:
        num_heads: query heads; None takes what lies beside the state dict, else what heads.py finds.

    Raises:
        CheckpointError: anything that keeps the file from being served, in one line.
    """
    unwrapped = unwrap(path, load_torch_file(path))
    if has_litgpt_names(unwrapped.state):
        return open_litgpt(path, num_heads)
    check_sizes(path, (tensor for name, tensor in unwrapped.state.items() if recognise(name)))
    if is_nanogpt(unwrapped.beside):
        return open_nanogpt(path, unwrapped, num_heads)
    return _open_bare(path, unwrapped, num_heads)


def _open_bare(path: Path, unwrapped: Unwrapped, num_heads: int | None) -> Checkpoint:
    """Weights alone, or with settings of which only the number of heads is understood."""
    state, notes, warnings = unwrapped.state, list(unwrapped.notes), list[str]()
    if num_heads is None and len(set((found := heads_beside(unwrapped.beside)).values())) == 1:
        where, num_heads = next(iter(found.items()))
        notes.append(f"heads: {num_heads}, as {where} beside the state dict says")
    network = read_network(path, state, num_heads)
    tokenizer, tokenizer_notes = find_tokenizer(path, network.config.vocab_size)
    tokenizer_notes, tokenizer_warnings = split_warnings(tokenizer_notes)
    if num_heads is None:
        network, warnings = settle_heads(network, tokenizer)
    config = network.config
    return Checkpoint(
        path=path,
        name=path.stem,
        kind="state dict",
        architecture=architecture_of(config),
        config=config,
        template=PlainTemplate(COURSE_DEFAULTS.default_system, begin_of(tokenizer)),
        tokenizer=tokenizer,
        defaults=COURSE_DEFAULTS,
        samples=[],
        notes=notes + network.notes + tokenizer_notes + vocabulary_notes(tokenizer, config),
        warnings=warnings + tokenizer_warnings,
        digest=file_digest(path),
        stored=count_dtypes(state.values()),
        read=weights_of(path, list(network.parts)),
    )


def save_state_dict(path: str | Path, model: Decoder) -> None:
    """Write the model as the course would, a tied head included. The file appears whole or not at all.

    Raises:
        CheckpointError: the model has a switch that no shape tells, so the file would load as another model.
    """
    path = Path(path)
    config = model.config
    if config.activation != "gelu" or config.norm_eps != NORM_EPS or config.rope_theta is not None:
        raise CheckpointError(
            f"{path}: not saved: a bare state dict cannot say activation {config.activation}, norm_eps "
            f"{config.norm_eps:g} and rope_theta {config.rope_theta}; save a folder"
        )
    state = {course_name(name): p.detach().cpu() for name, p in model.named_parameters()}
    state.setdefault("head.weight", state["tok_emb.weight"])
    temporary = path.with_name(f".{path.name}.saving")
    torch.save(state, temporary)
    temporary.replace(path)
