"""Hugging Face folders: config.json, weights in safetensors, a tokenizer and a chat template, as they are.

config.py says which networks, weights.py and tokenizer.py which files. Opening reads headers and
small files; nothing from the folder is executed, whatever config.json's auto_map says. Symbolic links are
followed, since the hub's cache is made of them. Refuses to know adapters: a LoRA folder is no model.

    >>> checkpoint = open_hf_folder(Path("SmolLM2-135M-Instruct"))
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llm.checkpoint.dialogue import Dialogue, read_dialogue
from llm.checkpoint.hf.config import read_hf_config
from llm.checkpoint.hf.tokenizer import (
    find_template,
    id_of,
    open_tokenizer,
    read_object,
    read_settings,
    spelling,
)
from llm.checkpoint.hf.weights import SINGLE_FILES, find_weights, match, settle_head
from llm.checkpoint.policy import read_end_ids, read_hf_defaults
from llm.checkpoint.record import Checkpoint, files_digest, split_warnings, vocabulary_notes
from llm.errors import CheckpointError
from llm.fields import Fields
from llm.tokenizer import Tokenizer


def open_hf_folder(path: Path) -> Checkpoint:
    """Open a folder as `save_pretrained` writes it and the hub serves it.

    Raises:
        CheckpointError: anything that keeps the folder from being served, in one line.
    """
    where = str(path / "config.json")
    values = read_object(path / "config.json")
    config, notes = read_hf_config(values, where)
    architecture = str(values["model_type"])
    if (weights := find_weights(path)) is None:
        raise CheckpointError(
            f"{path}: no weights: neither {' nor '.join(SINGLE_FILES)}, nor an index of shards"
        )
    config, warnings = settle_head(path, config, architecture, weights)
    stored, read = match(path, config, architecture, weights)
    settings = read_settings(path)
    tokenizer, vocabulary = open_tokenizer(path, config.vocab_size, architecture, settings)
    defaults, policy_notes = read_hf_defaults(path / "generation_config.json")
    end_ids = read_end_ids(Fields(values, where)) | defaults.stop_token_ids
    dialogue = read_folder_dialogue(path, tokenizer, settings, end_ids)
    vocabulary, doubts = split_warnings(vocabulary)
    return Checkpoint(
        path=path,
        name=folder_name(path),
        kind="Hugging Face folder",
        architecture=architecture,
        config=config,
        template=dialogue.template,
        tokenizer=tokenizer,
        defaults=dialogue.over(defaults),
        samples=[],
        notes=notes + vocabulary + vocabulary_notes(tokenizer, config) + dialogue.notes + policy_notes,
        warnings=warnings + doubts + dialogue.warnings,
        digest=files_digest(weights.files),
        stored=stored,
        read=read,
    )


def read_folder_dialogue(
    path: Path, tokenizer: Tokenizer, settings: dict[str, object], end_ids: frozenset[int]
) -> Dialogue:
    """The conversation format of a folder with Hugging Face's tokenizer files.

    Args:
        settings: its tokenizer_config.json.
        end_ids: named elsewhere as ends of a reply.

    Raises:
        CheckpointError: its template cannot be used.
    """
    source, notes = find_template(path, settings)
    eos_token = spelling(settings, "eos_token")
    dialogue = read_dialogue(
        str(path),
        source,
        tokenizer,
        bos_token=spelling(settings, "bos_token"),
        eos_token=eos_token,
        end_ids=end_ids | id_of(tokenizer, eos_token),
    )
    return replace(dialogue, notes=notes + dialogue.notes)


def folder_name(path: Path) -> str:
    """The folder's name; in the hub's cache, where that is a commit, the repository's."""
    folder = path.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rsplit("--", 1)[-1]
    return folder.name
