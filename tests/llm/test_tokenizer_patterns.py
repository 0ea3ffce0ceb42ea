"""The split into pieces: tiktoken's regex engine and the reference library's cut every text alike."""

import pytest
import tiktoken
from hypothesis import given, settings

from llm.tokenizer.added import replace_surrogates
from llm.tokenizer.patterns import PATTERNS, SplitPattern, recognise
from tests.hard_text import HARD, WHITE, hard_strings

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
by_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))


def assert_same_cut(pattern: SplitPattern, text: str) -> None:
    """Every piece of the reference is given a token of its own; tiktoken must then use exactly those."""
    pieces = [piece.encode() for piece, _ in pattern.reference().pre_tokenize_str(text)]
    tokens = [*(bytes([value]) for value in range(256)), *dict.fromkeys(p for p in pieces if len(p) > 1)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("x", pat_str=pattern.regex, mergeable_ranks=ranks, special_tokens={})
    assert [tokens[i] for i in encoding.encode_ordinary(text)] == pieces


@by_pattern
def test_hard_text_is_cut_alike(pattern: SplitPattern) -> None:
    for text in map(replace_surrogates, HARD):
        if not pattern.differs(text):
            assert_same_cut(pattern, text)


@by_pattern
@settings(max_examples=40)
@given(text=hard_strings)
def test_any_text_is_cut_alike(pattern: SplitPattern, text: str) -> None:
    if not pattern.differs(text):
        assert_same_cut(pattern, text)


@by_pattern
def test_every_pair_of_white_characters_is_cut_alike(pattern: SplitPattern) -> None:
    for after in ("", "x", "1", "."):
        assert_same_cut(pattern, "".join(f"{a}{b}{after}" for a in WHITE for b in WHITE))


@pytest.mark.parametrize("pattern", [PATTERNS[name] for name in ("smollm", "o200k")], ids=lambda p: p.name)
def test_every_character_is_cut_alike(pattern: SplitPattern) -> None:
    """One of each: were a character a letter to one engine and not to the other, its piece would differ."""
    text = "".join(f"{chr(code)}1a" for code in range(0x80, 0x18D00) if not 0xD800 <= code < 0xE000)
    assert_same_cut(pattern, "".join(char for char in text if not pattern.differs(char)))


def test_young_digits_are_left_to_the_reference() -> None:
    assert PATTERNS["smollm"].differs("x\U00011de3")
    assert not PATTERNS["smollm"].differs("x٣")
    assert not PATTERNS["gpt2"].differs("x\U00011de3")


@by_pattern
def test_a_pattern_written_down_is_recognised(pattern: SplitPattern) -> None:
    found = recognise(pattern.spec())
    assert found is not None and found.regex == pattern.regex


def test_the_usual_ways_to_write_them() -> None:
    assert recognise(BYTE_LEVEL) == PATTERNS["gpt2"]
    assert recognise({k: v for k, v in BYTE_LEVEL.items() if k != "use_regex"}) == PATTERNS["gpt2"]
    assert recognise({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}) == PATTERNS["smollm"]


@pytest.mark.parametrize(
    "spec",
    [
        None,
        "ByteLevel",
        {"type": "Whitespace"},
        {**BYTE_LEVEL, "add_prefix_space": True},
        {**BYTE_LEVEL, "use_regex": 1.5},
        {**BYTE_LEVEL, "use_regex": False},
        {"type": "Sequence"},
        {"type": "Sequence", "pretokenizers": []},
        {"type": "Sequence", "pretokenizers": [7]},
        {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, DIGITS]},
        {"type": "Sequence", "pretokenizers": [{**DIGITS, "individual_digits": False}, BYTE_LEVEL]},
        {"type": "Sequence", "pretokenizers": [DIGITS, DIGITS, BYTE_LEVEL]},
        {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {**BYTE_LEVEL, "use_regex": False}]},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
                {**BYTE_LEVEL, "use_regex": False},
            ],
        },
    ],
)
def test_what_is_not_exactly_known_is_not_recognised(spec: object) -> None:
    assert recognise(spec) is None
