"""GGUF files of the llama, qwen2 and qwen3 architectures, as llama.cpp and the tools around it write them.

Opening reads the header and checks it whole; the weights stay in the file until they are asked for. Refuses
to know the container (file.py), what the metadata mean (config.py), how weights are stored
(tensors.py) and vocabularies (tokenizer/gguf.py).

    >>> open_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf")).config.num_layers
    30
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm.checkpoint.dialogue import Dialogue, read_dialogue
from llm.checkpoint.gguf.config import read_architecture, read_config
from llm.checkpoint.gguf.file import part_name, read_gguf
from llm.checkpoint.gguf.tensors import (
    check_shapes,
    find_parameters,
    read_parameters,
    read_rope_factors,
    stored_types,
)
from llm.checkpoint.policy import read_hf_defaults
from llm.checkpoint.record import Checkpoint, files_digest, some, split_warnings, vocabulary_notes
from llm.errors import CheckpointError
from llm.tokenizer import Tokenizer
from llm.tokenizer.gguf import tokenizer_from_gguf

_TEMPLATE = "tokenizer.chat_template"
_END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_END_SPELLINGS = "<|im_end|> <|eot_id|> <|eom_id|> <|end_of_text|> <|endoftext|> <|end|> </s>".split()
"""Control tokens that end a turn or a text in every vocabulary that has them; files often name only one."""


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file, or the model that a file is one part of.

    Raises:
        CheckpointError: anything that keeps it from being served, in one line.
    """
    file = read_gguf(path)
    architecture = read_architecture(path, file.fields)
    parameters, notes = find_parameters(file)
    tokens = parameters.get("tokens.weight", {}).get(None)
    vocab_size = 1 if tokens is None else tokens.shape[0]  # missing ones are named below
    config, warnings = read_config(path, file.fields, parameters.keys(), vocab_size, read_rope_factors(file))
    check_shapes(file, parameters, config)
    tokenizer, vocabulary = tokenizer_from_gguf(file.fields, str(path))
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, "
            f"token_embd.weight only {config.vocab_size} rows"
        )
    vocabulary, doubts = split_warnings(vocabulary)
    dialogue = _dialogue(path, file.fields, tokenizer)
    defaults, policy = read_hf_defaults(path.with_name("generation_config.json"))
    if config.tied_head:
        notes.append("head: no output.weight in the file, so the token embedding is used (tied)")
    return Checkpoint(
        path=path,
        name=part_name(path),
        kind="GGUF file",
        architecture=architecture,
        config=config,
        template=dialogue.template,
        tokenizer=tokenizer,
        defaults=dialogue.over(defaults),
        samples=[],
        notes=notes + vocabulary + vocabulary_notes(tokenizer, config) + dialogue.notes + policy,
        warnings=warnings + doubts + dialogue.warnings,
        stored=stored_types(parameters),
        digest=files_digest(file.paths),
        read=lambda: read_parameters(
            parameters, {"q": config.num_heads, "k": config.num_kv_heads} if architecture == "llama" else {}
        ),
    )


def _dialogue(path: Path, fields: Mapping[str, object], tokenizer: Tokenizer) -> Dialogue:
    """The default template, or the only one there is, and every id that ends a reply."""
    others = sorted(key for key in fields if key.startswith(f"{_TEMPLATE}."))
    key = next((key for key in (_TEMPLATE, f"{_TEMPLATE}.default", *others) if key in fields), _TEMPLATE)
    source = fields.get(key)
    if source is not None and not isinstance(source, str):
        raise CheckpointError(f"{path}: {some([key])} must be a string, got {repr(source)[:64]}")
    ends = [fields.get(name) for name in _END_KEYS]
    ends += [tokenizer.control.get(spelling) for spelling in _END_SPELLINGS]
    dialogue = read_dialogue(
        str(path),
        source,
        tokenizer,
        bos_token=_spelling(fields, "bos"),
        eos_token=_spelling(fields, "eos"),
        end_ids=[i for i in ends if type(i) is int],
    )
    if unused := [name for name in others if name != key]:
        dialogue.notes.append(f"template: {key} is used, not {some(unused)}")
    return dialogue


def _spelling(fields: Mapping[str, object], name: str) -> str:
    """The text of the token that the file names as its beginning or end; "" when it names none."""
    tokens, token_id = fields.get("tokenizer.ggml.tokens"), fields.get(f"tokenizer.ggml.{name}_token_id")
    if not isinstance(tokens, list) or type(token_id) is not int or not 0 <= token_id < len(tokens):
        return ""
    return str(tokens[token_id])
