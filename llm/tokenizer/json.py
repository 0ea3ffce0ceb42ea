"""Hugging Face's tokenizer files: tokenizer.json, or GPT-2's older vocab.json with merges.txt.

Roles of tokens come from tokenizer_config.json, which the caller has parsed. Files are bounded and checked
before anything else reads them. Refuses to know checkpoints, chat templates and the hub.

    >>> tokenizer, notes = load_tokenizer_json("model/tokenizer.json", config=None)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.errors import CheckpointError
from llm.fields import parse_object, read_bytes
from llm.tokenizer import END_OF_TEXT, Tokenizer
from llm.tokenizer.build import build_tokenizer
from llm.tokenizer.description import Roles
from llm.tokenizer.patterns import PATTERNS

MAX_BYTES = 64 << 20
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer_json(
    path: str | Path,
    *,
    config: Mapping[str, object] | None = None,
    control: Collection[str] = (),
) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a tokenizer.json, and notes about it.

    Args:
        path: the file.
        config: tokenizer_config.json beside it, parsed, or None.
        control: tokens that only a template may use, beside those that either file marks.

    Raises:
        CheckpointError: in one line, anything that keeps it from being used.
    """
    path = Path(path)
    roles = replace(roles_from_config(config or {}, str(path)), control=frozenset(control))
    return build_tokenizer(_read_object(path), str(path), roles)


def load_vocab_merges(
    vocab: str | Path, merges: str | Path, *, config: Mapping[str, object] | None = None
) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a vocab.json and a merges.txt: GPT-2's split, or Qwen2's where config says so.

    Args:
        vocab: token → id, in GPT-2's byte alphabet.
        merges: one pair of tokens a line, a "#version" line first.
        config: tokenizer_config.json beside them, parsed, or None.

    Raises:
        CheckpointError: in one line, anything that keeps them from being used.
    """
    config, where = config or {}, str(vocab)
    ids, pairs = _read_object(Path(vocab)), _read_merges(Path(merges))
    qwen = str(config.get("tokenizer_class")).startswith("Qwen2")
    before = PATTERNS["qwen2" if qwen else "gpt2"].spec()
    if config.get("add_prefix_space") is True:
        before = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    spec = {
        "added_tokens": _added_by_config(config, ids, where),
        "normalizer": {"type": "NFC"} if qwen else None,
        "pre_tokenizer": before,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": pairs},
    }
    return build_tokenizer(spec, where, roles_from_config(config, where))


def roles_from_config(config: Mapping[str, object], where: str) -> Roles:
    """Roles as tokenizer_config.json names them.

    Raises:
        CheckpointError: a token that is neither a string nor an object with a content.
    """
    add_begin = config.get("add_bos_token")
    return Roles(
        begin=_spelling(config, "bos_token", where),
        end=_spelling(config, "eos_token", where),
        add_begin=add_begin if isinstance(add_begin, bool) else None,
    )


def roles_to_config(roles: Roles) -> dict[str, object]:
    """The fields of tokenizer_config.json from which `roles_from_config` reads all but `control`."""
    fields = {"bos_token": roles.begin, "eos_token": roles.end, "add_bos_token": roles.add_begin}
    return {name: value for name, value in fields.items() if value is not None}


def _spelling(config: Mapping[str, object], name: str, where: str) -> str | None:
    value = config.get(name)
    content = value.get("content") if isinstance(value, Mapping) else value
    if content is not None and not isinstance(content, str):
        raise CheckpointError(f"{where}: tokenizer_config: {name} must be a string, got {repr(value)[:64]}")
    return content or None


def _added_by_config(
    config: Mapping[str, object], vocab: Mapping[str, object], where: str
) -> list[dict[str, Any]]:
    """The added tokens of a folder without tokenizer.json: listed ones, and those with a role."""
    listed = config.get("added_tokens_decoder")
    added: dict[str, dict[str, Any]] = {}
    for key, item in listed.items() if isinstance(listed, Mapping) else ():
        content = item.get("content") if isinstance(item, Mapping) else None
        if not isinstance(content, str) or not str(key).isdecimal():
            name = f"added_tokens_decoder {str(key)[:32]!r}"
            raise CheckpointError(f"{where}: tokenizer_config: {name} is not an id and a token")
        added[content] = {**item, "id": int(str(key)[:9])}
    roles = {_spelling(config, name, where) for name in _ROLES}
    for name in sorted(filter(None, roles | {END_OF_TEXT})):
        if name in vocab and name not in added:
            added[name] = {"content": name, "id": vocab[name], "special": True, "normalized": False}
    return list(added.values())


def _read_object(path: Path) -> dict[str, object]:
    return parse_object(read_bytes(path, MAX_BYTES), str(path))


def _read_merges(path: Path) -> list[str]:
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # not splitlines: U+0085 is a character
    return [line for n, line in enumerate(lines) if line and not (n == 0 and line.startswith("#version"))]
