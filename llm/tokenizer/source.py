"""A tokenizer.json taken apart and checked: vocabulary, merges, added tokens, and the tokens with a role.

Whatever the file says, what leaves here has ids that are whole, distinct and below 16M, and merges of tokens
that exist. Control are the tokens marked special and those with a role, except one single character ("!" as
padding): that stays text, since no text could do without it. Refuses to know how text is encoded.

    >>> source = read_source(spec, "model/tokenizer.json", Roles(end="</s>")); source.control
    {'<s>': 1, '</s>': 2}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.errors import CheckpointError
from llm.tokenizer.added import AddedToken
from llm.tokenizer.byte_level import Merge
from llm.tokenizer.description import Roles
from llm.tokenizer.hf import MAX_TOKENS

MAX_LENGTH = 1 << 16
"""Characters of a token: merging a much longer one takes gigabytes."""
_USUAL_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>")


@dataclass(frozen=True, slots=True)
class Source:
    """A checked description. `vocab` and `merges` are empty unless `kind` is "BPE"."""

    spec: Mapping[str, object]
    where: str
    model: Mapping[str, object]
    kind: str
    vocab: dict[str, int]
    merges: list[Merge]
    added: list[AddedToken]
    added_items: list[dict[str, Any]]
    control: dict[str, int]
    begin_of_text: int | None
    end_of_text: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def largest_id(self) -> int:
        return max([*self.vocab.values(), *(token.id for token in self.added)])


def read_source(spec: Mapping[str, object], where: str, roles: Roles) -> Source:
    """Check a description.

    Raises:
        CheckpointError: a field of the wrong type, an id out of bounds or given twice, a merge of no tokens.
    """
    model = spec.get("model")
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{where}: model must be an object, got {repr(model)[:64]}")
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    vocab = _vocab(model, where) if kind == "BPE" else {}
    merges = _merges(model, vocab, where) if kind == "BPE" else []
    items = _added_items(spec, where)
    named = {roles.begin, roles.end, *roles.control} - {None}
    added = [_added(item, named) for item in items]
    _check_distinct(vocab, added, where)
    known = {**_other_vocab(model), **vocab, **{token.content: token.id for token in added}}
    _check_spelling(known, where)
    special = {t.content for t in added if t.special} | {name for name in named if name in known}
    control = {name: known[name] for name in sorted(special, key=known.__getitem__) if len(name) > 1}
    notes = [
        f"tokenizer: the special token {name!r} is one character, so it stays text"
        for name in sorted(special)
        if len(name) == 1
    ]
    begin, end = _marks(spec, roles, known, notes)
    return Source(
        spec=spec,
        where=where,
        model=model,
        kind=str(kind)[:32],
        vocab=vocab,
        merges=merges,
        added=added,
        added_items=items,
        control=control,
        begin_of_text=begin,
        end_of_text=end,
        notes=notes,
    )


def _marks(
    spec: Mapping[str, object], roles: Roles, known: Mapping[str, int], notes: list[str]
) -> tuple[int | None, int | None]:
    """Ids of begin and end of text; a name that is no token is noted."""
    end = next((name for name in ([roles.end] if roles.end else _USUAL_ENDS) if name in known), None)
    if end is None:
        notes.append(
            f"warning: tokenizer: no end of text: {(roles.end or _USUAL_ENDS[0])[:64]!r} is no token"
        )
    begin = _begin(spec) if roles.add_begin is None else roles.begin if roles.add_begin else None
    if begin is not None and begin not in known:
        notes.append(f"warning: tokenizer: no begin of text: {begin[:64]!r} is no token")
        begin = None
    return known[begin] if begin is not None else None, known[end] if end is not None else None


def _check_spelling(tokens: Collection[str], where: str) -> None:
    """Refuse tokens that are not Unicode text, or absurdly long."""
    for token in tokens:
        if len(token) > MAX_LENGTH:
            raise CheckpointError(
                f"{where}: token {token[:32]!r}… has {len(token)} characters, the limit is {MAX_LENGTH}"
            )
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{where}: a token holds a lone surrogate, which no text does") from None


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKENS


def _vocab(model: Mapping[str, object], where: str) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{where}: model: vocab must be an object of tokens and ids")
    for token, token_id in vocab.items():
        if not isinstance(token, str) or not _is_id(token_id):
            raise CheckpointError(
                f"{where}: model: vocab: the id of {repr(token)[:64]} must be a whole number from 0 to "
                f"{MAX_TOKENS - 1}, got {repr(token_id)[:32]}"
            )
    return vocab


def _merges(model: Mapping[str, object], vocab: Mapping[str, int], where: str) -> list[Merge]:
    """Pairs from "a b" strings (older files) or ["a", "b"] lists."""
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise CheckpointError(f"{where}: model: merges must be a list, got {type(listed).__name__}")
    merges: list[Merge] = []
    for number, item in enumerate(listed):
        pair = item.split(" ") if isinstance(item, str) else item
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            raise CheckpointError(f"{where}: model: merge {number} is not a pair of tokens")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(
                f"{where}: model: merge {number} ({left[:32]!r} {right[:32]!r}) has a token not in vocab"
            )
        merges.append((left, right))
    return merges


def _other_vocab(model: Mapping[str, object]) -> dict[str, int]:
    """Pieces of a Unigram model, a list of [piece, score]: ids are places."""
    pieces = model.get("vocab")
    if not isinstance(pieces, list):
        return {}
    named = (piece[0] if isinstance(piece, list) and piece else None for piece in pieces)
    return {piece: place for place, piece in enumerate(named) if isinstance(piece, str)}


def _added_items(spec: Mapping[str, object], where: str) -> list[dict[str, Any]]:
    """The added tokens as the file has them, the empty ones left out."""
    items = spec.get("added_tokens") or []
    if not isinstance(items, list):
        raise CheckpointError(f"{where}: added_tokens must be a list, got {type(items).__name__}")
    for number, item in enumerate(items):
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("content"), str)
            or not _is_id(item.get("id"))
        ):
            raise CheckpointError(
                f"{where}: added_tokens {number} must have a content and an id from 0 to {MAX_TOKENS - 1}"
            )
    return [item for item in items if item["content"]]


def _added(item: Mapping[str, Any], named: set[str | None]) -> AddedToken:
    special = item.get("special") is True or item["content"] in named
    return AddedToken(
        content=item["content"],
        id=item["id"],
        special=special,
        normalized=item.get("normalized") is True,
        strips=any(item.get(name) is True for name in ("single_word", "lstrip", "rstrip")),
    )


def _check_distinct(vocab: Mapping[str, int], added: list[AddedToken], where: str) -> None:
    """No id for two tokens, no token with two ids."""
    tokens = {token_id: token for token, token_id in vocab.items()}
    if len(tokens) < len(vocab):
        twice = next(token for token, token_id in vocab.items() if tokens[token_id] != token)
        raise CheckpointError(f"{where}: model: vocab: the id of {twice[:64]!r} is given twice")
    seen = set()
    for token in added:
        holder = tokens.setdefault(token.id, token.content)
        if holder != token.content or vocab.get(token.content, token.id) != token.id or token.content in seen:
            raise CheckpointError(
                f"{where}: added_tokens: {token.content[:64]!r} has id {token.id}, that of {holder[:64]!r}, "
                "or is there twice"
            )
        seen.add(token.content)


def _begin(spec: Mapping[str, object]) -> str | None:
    """The special token with which the post-processor begins a single text."""
    todo = [spec.get("post_processor")]
    while todo:
        step = todo.pop()
        if not isinstance(step, Mapping):
            continue
        if step.get("type") == "Sequence" and isinstance(inner := step.get("processors"), list):
            todo += reversed(inner)
        single = step.get("single")
        if step.get("type") != "TemplateProcessing" or not isinstance(single, list) or not single:
            continue
        piece = single[0].get("SpecialToken") if isinstance(single[0], Mapping) else None
        name = piece.get("id") if isinstance(piece, Mapping) else None
        return name if isinstance(name, str) else None
    return None
