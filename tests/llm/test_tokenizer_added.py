"""Added tokens in text: leftmost, longest, never inside a control token's spelling."""

import pytest
from hypothesis import given

from llm.tokenizer.added import AddedToken, AddedTokens, replace_surrogates, to_nfc
from tests.hard_text import hard_strings

TOKENS = [
    AddedToken("<think>", 1),
    AddedToken("<thinking>", 2),
    AddedToken("<|im_start|>", 3, special=True),
    AddedToken("<|im", 4),
    AddedToken("start", 5),
    AddedToken("é", 6, normalized=True),
]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("plain", ["plain"]),
        ("<think>", [1]),
        ("a<thinking><think>b", ["a", 2, 1, "b"]),
        ("<|im_start|>", ["<|im_start|>"]),
        ("<|imp start", [4, "p ", 5]),
        ("<thin<think>k>", ["<thin", 1, "k>"]),
        ("caf\u0065\u0301!", ["caf", 6, "!"]),
    ],
)
def test_split(text: str, parts: list[str | int]) -> None:
    assert list(AddedTokens(TOKENS, nfc=True).split(text)) == parts


@given(text=hard_strings)
def test_nothing_is_lost(text: str) -> None:
    spelling = {token.id: token.content for token in TOKENS}
    parts = AddedTokens(TOKENS).split(text)
    assert "".join(spelling[p] if isinstance(p, int) else p for p in parts) == text


def test_special_tokens_alone_cut_nothing() -> None:
    assert list(AddedTokens([TOKENS[2]]).split("a<|im_start|>b")) == ["a<|im_start|>b"]


def test_surrogates_and_composed_form() -> None:
    assert replace_surrogates("\ud83d\ude00\ud83d é") == "😀\ufffd é"
    assert to_nfc("e\u0301 \u1100\u1161 plain") == "é 가 plain"
