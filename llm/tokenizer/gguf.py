"""The tokenizer inside a GGUF file, rebuilt from its metadata in the shape of a tokenizer.json.

"gpt2" is byte-level BPE, whose split is only a name (`tokenizer.ggml.pre`); "llama" is SentencePiece's BPE,
whose merges are not listed but follow from the scores: the best-scored token that two neighbours form is
formed first. A split name that is not known is refused: any other split would serve a model that answers
worse and says nothing. Refuses to know the file.

    >>> fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    >>> tokenizer, notes = tokenizer_from_gguf(fields, str(path))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm.errors import CheckpointError
from llm.tokenizer import Tokenizer
from llm.tokenizer.build import build_tokenizer
from llm.tokenizer.description import Roles
from llm.tokenizer.hf import MAX_TOKENS, SPACE
from llm.tokenizer.patterns import PATTERNS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MAX_PIECE = 512
"""Characters of a SentencePiece token; all its splits are tried."""
_KEY = "tokenizer.ggml."
_SPLITS = {
    "gpt2": ("gpt-2", "gpt2", "phi-2"),
    "llama3": ("llama3", "llama-v3", "llama-bpe", "smaug-bpe"),
    "qwen2": ("qwen2", "deepseek-r1-qwen"),
    "smollm": ("smollm", "starcoder", "refact", "codeshell"),
    "o200k": ("gpt-4o",),
    "tekken": ("tekken",),
}
_PRE = {pre: name for name, names in _SPLITS.items() for pre in names}
_LOOKS_UP = (*_SPLITS["llama3"], *_SPLITS["tekken"])
_GUESSED = (None, "", "default")


def tokenizer_from_gguf(fields: Mapping[str, object], where: str) -> tuple[Tokenizer, list[str]]:
    """The tokenizer that a GGUF file's metadata describes, and notes about it.

    Args:
        fields: every key of the file's metadata and its value.
        where: the file's path, for messages.

    Raises:
        CheckpointError: a kind or a split we do not know, or metadata that does not fit together.
    """
    model = fields.get(f"{_KEY}model")
    if model not in ("gpt2", "llama"):
        raise CheckpointError(f"{where}: {_KEY}model is {repr(model)[:32]}, supported are 'gpt2' and 'llama'")
    tokens, types, skipped = _tokens(fields, where)
    notes = [f"tokenizer: {skipped} tokens are spelled like an earlier one and never used"] if skipped else []
    if model == "gpt2":
        spec, guessed = _byte_level(fields, tokens, types, where)
        notes += guessed
    else:
        spec = _sentence_piece(fields, tokens, types, where)
    tokenizer, more = build_tokenizer(spec, where, _roles(fields, tokens, where))
    return tokenizer, more + notes


def _tokens(fields: Mapping[str, object], where: str) -> tuple[dict[str, int], list[int], int]:
    """Token → id without unused ones and repetitions, the type of every id, and how many repetitions."""
    listed = fields.get(f"{_KEY}tokens")
    if not isinstance(listed, list) or not 0 < len(listed) < MAX_TOKENS:
        raise CheckpointError(f"{where}: {_KEY}tokens must be a list of 1 to {MAX_TOKENS - 1} tokens")
    if (wrong := next((n for n, token in enumerate(listed) if not isinstance(token, str)), None)) is not None:
        raise CheckpointError(f"{where}: {_KEY}tokens {wrong} is not a string")
    types = fields.get(f"{_KEY}token_type") or [NORMAL] * len(listed)
    if not isinstance(types, list) or len(types) != len(listed) or not all(t in range(7) for t in types):
        raise CheckpointError(f"{where}: {_KEY}token_type must be {len(listed)} numbers from 0 to 6")
    tokens: dict[str, int] = {}
    used = [n for n, kind in enumerate(types) if kind != UNUSED and listed[n]]
    for token_id in used:
        tokens.setdefault(listed[token_id], token_id)
    return tokens, types, len(used) - len(tokens)


def _roles(fields: Mapping[str, object], tokens: Mapping[str, int], where: str) -> Roles:
    spellings = {token_id: token for token, token_id in tokens.items()}

    def spelling(name: str) -> str | None:
        token_id = fields.get(f"{_KEY}{name}_token_id")
        if token_id is None:
            return None
        if type(token_id) is not int or token_id not in spellings:
            raise CheckpointError(
                f"{where}: {_KEY}{name}_token_id is {repr(token_id)[:32]}, which is no token"
            )
        return spellings[token_id]

    add_begin = fields.get(f"{_KEY}add_bos_token")
    if not isinstance(add_begin, bool):  # what llama.cpp does when a file does not say
        add_begin = fields[f"{_KEY}model"] == "llama" or _PRE.get(str(fields.get(f"{_KEY}pre"))) == "llama3"
    begin = spelling("bos")
    turn = spelling("eot")
    return Roles(
        begin=begin,
        end=spelling("eos"),
        add_begin=add_begin and begin is not None,
        control=frozenset({turn} if turn is not None else ()),
    )


def _added(tokens: Mapping[str, int], types: Sequence[int], matched: Sequence[str]) -> list[dict[str, Any]]:
    """Control and unknown tokens as special ones, `matched` as ones found in any text; by id."""
    wanted = set(matched)
    return [
        {"content": token, "id": token_id, "special": token not in wanted, "normalized": False}
        for token, token_id in tokens.items()
        if token in wanted or types[token_id] in (CONTROL, UNKNOWN)
    ]


def _byte_level(
    fields: Mapping[str, object], tokens: dict[str, int], types: Sequence[int], where: str
) -> tuple[dict[str, object], list[str]]:
    pre, notes = fields.get(f"{_KEY}pre"), []
    if pre in _GUESSED:
        notes.append(
            f"warning: tokenizer: {_KEY}pre does not say how text is split, GPT-2's way is assumed; "
            "another one would make the model answer worse"
        )
        pre = "gpt-2"
    if not isinstance(pre, str) or pre not in _PRE:
        raise CheckpointError(
            f"{where}: {_KEY}pre is {repr(pre)[:48]}, a split of text that is not known; "
            f"known: {', '.join(_PRE)}"
        )
    spec: dict[str, object] = {
        "added_tokens": _added(tokens, types, [t for t, i in tokens.items() if types[i] == USER_DEFINED]),
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PATTERNS[_PRE[pre]].spec(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": pre in _LOOKS_UP,
            "vocab": tokens,
            "merges": fields.get(f"{_KEY}merges"),
        },
    }
    return spec, notes


def _sentence_piece(
    fields: Mapping[str, object], tokens: dict[str, int], types: Sequence[int], where: str
) -> dict[str, object]:
    matched = [t for t, i in tokens.items() if types[i] == USER_DEFINED and SPACE not in t]
    pieces = {
        t: i
        for t, i in tokens.items()
        if types[i] in (0, NORMAL) or (SPACE in t and types[i] == USER_DEFINED)
    }
    prefix = fields.get(f"{_KEY}add_space_prefix") is not False
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps: list[object] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = next((token for token, i in tokens.items() if types[i] == UNKNOWN), None)
    return {
        "added_tokens": _added(tokens, types, matched),
        "normalizer": {"type": "Sequence", "normalizers": [*steps, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": tokens,
            "merges": _merges_by_score(pieces, _scores(fields, len(types), where), where),
        },
    }


def _scores(fields: Mapping[str, object], num_tokens: int, where: str) -> list[float]:
    scores = fields.get(f"{_KEY}scores")
    if not isinstance(scores, list) or len(scores) != num_tokens:
        raise CheckpointError(f"{where}: {_KEY}scores must be {num_tokens} numbers")
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise CheckpointError(f"{where}: {_KEY}scores holds something that is not a finite number")
    return scores


def _merges_by_score(pieces: Mapping[str, int], scores: Sequence[float], where: str) -> list[list[str]]:
    """Every way to form a piece of two others, best score first; of one piece, by its parts' ids."""
    ranked: list[tuple[float, int, int, int, list[str]]] = []
    for piece, token_id in pieces.items():
        if len(piece) > MAX_PIECE:
            raise CheckpointError(
                f"{where}: token {token_id} has {len(piece)} characters, at most {MAX_PIECE}"
            )
        for at in range(1, len(piece)):
            left, right = pieces.get(piece[:at]), pieces.get(piece[at:])
            if left is not None and right is not None:
                ranked.append((-scores[token_id], token_id, left, right, [piece[:at], piece[at:]]))
    return [pair for *_, pair in sorted(ranked)]
