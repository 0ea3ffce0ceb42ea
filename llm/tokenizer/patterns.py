"""How byte-level BPE cuts text into pieces before it merges: one regex per family, under the name people use.

The regexes are the published ones and mean the same to tiktoken (Rust) and to the tokenizers library
(Oniguruma); a tokenizer.json that holds any other is not guessed at. SmolLM2 cuts every digit out first and
applies GPT-2's regex to what is left; as one regex that is `\\p{N}` alone, and a look-ahead to which a digit
ends the text as the end does. Refuses to know vocabularies and files.

    >>> recognise({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}).name
    'gpt2'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_APART = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = rf"{_LOWER}{_SHORT}|{_UPPER}{_SHORT}|\p{{N}}{{1,3}}{_REST}"
_TEKKEN = rf"{_LOWER}|{_UPPER}|\p{{N}}{_REST}"

_YOUNG_DIGITS = re.compile("[\U00011de0-\U00011de9\U00016ff4-\U00016ff6]")
"""Digits to the library's Digits step (Unicode 17), not yet digits to either regex engine."""


@dataclass(frozen=True, slots=True)
class SplitPattern:
    """One way to cut text into pieces.

    Attributes:
        name: short name, as in config.json's "encoding" and in notes.
        regex: matches the pieces one after another, and every character is in one.
        digits_apart: the reference takes digits out first, then applies GPT-2's regex.
    """

    name: str
    regex: str
    digits_apart: bool = False

    def differs(self, text: str) -> bool:
        """Whether `regex` cuts this text otherwise than the reference: then only `reference` will do."""
        return self.digits_apart and not text.isascii() and _YOUNG_DIGITS.search(text) is not None

    def reference(self) -> pre_tokenizers.PreTokenizer:
        """The same cut by the tokenizers library: no limit on a run's length, ten times slower."""
        if not self.digits_apart:
            return pre_tokenizers.Split(Regex(self.regex), "isolated")
        split = pre_tokenizers.Split(Regex(_GPT2), "isolated")
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])

    def spec(self) -> dict[str, object]:
        """The "pre_tokenizer" of a tokenizer.json that cuts like this."""
        regex = _GPT2 if self.digits_apart else self.regex
        first = {"type": "Digits", "individual_digits": True} if self.digits_apart else None
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [step for step in (first, split, bytes_) if step]}


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        SplitPattern("gpt2", _GPT2),
        SplitPattern("r50k", _GPT2),
        SplitPattern("p50k", _GPT2),
        SplitPattern("cl100k", _CL100K),
        SplitPattern("o200k", _O200K),
        SplitPattern("llama3", _LLAMA3),
        SplitPattern("qwen2", _QWEN2),
        SplitPattern("smollm", _DIGITS_APART, digits_apart=True),
        SplitPattern("tekken", _TEKKEN),
    )
}
"""Every pattern by name. p50k's and r50k's are GPT-2's."""

_BY_REGEX = {p.regex: p for p in reversed(PATTERNS.values()) if not p.digits_apart}


def recognise(spec: object) -> SplitPattern | None:
    """The pattern of a tokenizer.json's "pre_tokenizer", or None when it is not exactly one we know."""
    steps = _steps(spec)
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space") is not False:
        return None
    use_regex, before = steps[-1].get("use_regex", True), steps[:-1]
    if use_regex not in (True, False):
        return None
    digits = bool(before) and before[0].get("type") == "Digits"
    if digits and before.pop(0).get("individual_digits") is not True:
        return None
    if use_regex:
        regex = _GPT2 if not before else None
    else:
        regex = _split_regex(before[0]) if len(before) == 1 else None
    if digits:
        return PATTERNS["smollm"] if regex == _GPT2 else None
    return _BY_REGEX.get(regex) if regex is not None else None


def _steps(spec: object) -> list[Mapping[str, object]]:
    """The steps of a Sequence, or the one step; [] for anything else."""
    if not isinstance(spec, Mapping):
        return []
    steps = spec.get("pretokenizers") if spec.get("type") == "Sequence" else [spec]
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        return []
    return list(steps)


def _split_regex(step: Mapping[str, object]) -> str | None:
    """The regex of a Split that keeps every match as a piece."""
    pattern = step.get("pattern")
    keeps = (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True))
    if step.get("type") != "Split" or not keeps or not isinstance(pattern, Mapping):
        return None
    regex = pattern.get("Regex")
    return regex if isinstance(regex, str) else None
