"""From a description in tokenizer.json's shape to a tokenizer: on tiktoken when proved, else on the library.

Every format that is not tiktoken's own comes through here, so the choice, the proof and the rules for control
tokens exist once. Notes say which of the two it became and why; one that deserves a warning begins with
"warning: ". Refuses to know where the description came from.

    >>> tokenizer, notes = build_tokenizer(spec, "model/tokenizer.json", Roles(end="<|im_end|>"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from llm.tokenizer import TiktokenTokenizer, Tokenizer
from llm.tokenizer.byte_level import ALPHABET, Unproven, tiktoken_ranks
from llm.tokenizer.description import Description, Roles
from llm.tokenizer.hf import LibraryTokenizer, check_ids
from llm.tokenizer.patterns import SplitPattern, recognise
from llm.tokenizer.source import Source, read_source

_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
MAX_MATCHED = 1024
"""Added tokens that are looked for in text by one regex; for more the library's automaton is better."""


def build_tokenizer(spec: Mapping[str, object], where: str, roles: Roles) -> tuple[Tokenizer, list[str]]:
    """The tokenizer a description stands for, and notes about it.

    Args:
        spec: a parsed tokenizer.json, or one made up from another format.
        where: path, for messages.
        roles: which tokens begin and end a text.

    Raises:
        CheckpointError: a description that is malformed, or that nothing here runs exactly.
    """
    source = read_source(spec, where, roles)
    try:
        tokenizer: TiktokenTokenizer | LibraryTokenizer = _on_tiktoken(source)
        how = f"on tiktoken (checked against its {len(source.merges)} merges)"
        note = f"tokenizer: byte-level BPE, {tokenizer.vocab_size} ids, {how}"
    except Unproven as reason:
        tokenizer = _on_library(source)
        note = f"tokenizer: {source.kind}, {tokenizer.vocab_size} ids, on the tokenizers library: {reason}"
    tokenizer.description = Description(_dump(spec), roles)
    return tokenizer, [note, *_warnings(source)]


def _dump(spec: Mapping[str, object]) -> bytes:
    """The description as compact text: 2 MB of a vocabulary of 50,000, where its lists and strings take 9."""
    text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")  # as json reads it


def _on_tiktoken(source: Source) -> TiktokenTokenizer:
    """Raises Unproven where tiktoken might give other ids than the library."""
    if source.kind != "BPE":
        raise Unproven(f"a {source.kind} model")
    pattern, nfc = _pattern(source.spec), _is_nfc(source.spec.get("normalizer"))
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if source.model.get(name):
            raise Unproven(f"its model has a {name}")
    lacking = [value for value, char in ALPHABET.items() if char not in source.vocab]
    if lacking and (source.model.get("unk_token") is not None or source.model.get("byte_fallback")):
        raise Unproven("it lacks bytes and has a token for what is unknown")
    if stripping := next((t for t in source.added if t.strips and not t.special), None):
        raise Unproven(f"its token {stripping.content[:32]!r} takes whitespace or wants word borders")
    if len(source.added) > MAX_MATCHED and not all(token.special for token in source.added):
        raise Unproven(f"more than {MAX_MATCHED} tokens to look for in text")
    ranks, unreachable = tiktoken_ranks(
        source.vocab,
        source.merges,
        control=frozenset(source.control.values()),
        ignore_merges=source.model.get("ignore_merges") is True,
    )
    check_ids(source.largest_id, len(source.vocab) + len(source.added), source.where)
    return TiktokenTokenizer(
        ranks,
        pattern,
        control=source.control,
        end_of_text=source.end_of_text,
        begin_of_text=source.begin_of_text,
        added=source.added,
        unreachable=unreachable,
        nfc=nfc,
    )


def _on_library(source: Source) -> LibraryTokenizer:
    """The description as it is, but for flags that would put control tokens or chance into user text."""
    special = {token.content: token.special for token in source.added}
    plain = {
        **source.spec,
        "added_tokens": [
            {**_PLAIN, **item, "special": special[item["content"]]} for item in source.added_items
        ],
        "model": {**source.model, "dropout": None} if source.kind == "BPE" else source.model,
        "post_processor": None,
    }
    return LibraryTokenizer(
        plain,
        source.where,
        control=source.control,
        end_of_text=source.end_of_text,
        begin_of_text=source.begin_of_text,
    )


def _pattern(spec: Mapping[str, object]) -> SplitPattern:
    before = spec.get("pre_tokenizer")
    if (pattern := recognise(before)) is None:
        kind = before.get("type") if isinstance(before, Mapping) else None
        raise Unproven(f"its pre-tokenizer ({str(kind)[:32]}) is none of the known byte-level ones")
    return pattern


def _is_nfc(normalizer: object) -> bool:
    """Whether text is brought into Unicode's composed form; nothing else is done on tiktoken."""
    if normalizer is None:
        return False
    kind = normalizer.get("type") if isinstance(normalizer, Mapping) else None
    steps = normalizer.get("normalizers") if isinstance(normalizer, Mapping) else None
    if kind == "NFC" or (kind == "Sequence" and steps == [{"type": "NFC"}]):
        return True
    if kind == "Sequence" and steps == []:
        return False
    raise Unproven(f"its normalizer ({str(kind)[:32]}) is not NFC")


def _warnings(source: Source) -> list[str]:
    notes = list(source.notes)
    if stripping := [t.content[:32] for t in source.added if t.strips and t.special]:
        notes.append(
            f"warning: tokenizer: {stripping[0]!r} was trained to take the whitespace beside it "
            f"({len(stripping)} such tokens); templates here keep it"
        )
    return notes
