"""One id per character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.tokenizer.chars import CharTokenizer

CHARS = "\n !abcéĉ漢😀"
TOKENIZER = CharTokenizer(CHARS)


@given(text=st.text(CHARS))
def test_text_of_the_vocabulary_is_kept(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert len(ids) == len(text)
    assert len(text.encode()) <= len(ids) * TOKENIZER.longest_token


@given(text=st.text())
def test_other_characters_are_left_out(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == "".join(char for char in text if char in CHARS)


def test_lone_surrogates_and_markers() -> None:
    assert TOKENIZER.encode("\ud800a<|>") == [3]
    assert TOKENIZER.end_of_text is None and TOKENIZER.begin_of_text is None and not TOKENIZER.control


def test_bytes() -> None:
    assert TOKENIZER.vocab_size == len(CHARS)
    assert [TOKENIZER.token_bytes(i) for i in (0, len(CHARS) - 1, -1, 99)] == [b"\n", "😀".encode(), b"", b""]


@pytest.mark.parametrize("chars", [[], ["a", "a"], ["a", "bc"], ["a", ""], ["a", 3], ["\ud800"]])
def test_what_is_no_list_of_characters(chars: list[str]) -> None:
    with pytest.raises(ValueError, match="token"):
        CharTokenizer(chars)
