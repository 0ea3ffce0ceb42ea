"""Byte-level BPE from a file: round trips, no network, user text is never a control token."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import CheckpointError
from llm.tokenizer import ByteTokenizer, TiktokenTokenizer, Tokenizer, load_tiktoken

ROOT = Path(__file__).parents[2]
GPT2 = load_tiktoken(ROOT / "checkpoints/causette/tokenizer.tiktoken")
BYTES = ByteTokenizer()


def test_the_gpt2_vocabulary() -> None:
    assert GPT2.vocab_size == 50257
    assert GPT2.end_of_text == 50256
    assert GPT2.encode("What is a token?") == [2061, 318, 257, 11241, 30]
    assert GPT2.longest_token == 128


@pytest.mark.parametrize("tokenizer", [GPT2, BYTES], ids=["gpt2", "bytes"])
@given(text=st.text(max_size=60))
def test_decode_of_encode_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(text.encode()) <= len(tokenizer.encode(text)) * tokenizer.longest_token


@pytest.mark.parametrize("tokenizer", [GPT2, BYTES], ids=["gpt2", "bytes"])
@given(text=st.text(max_size=20))
def test_a_marker_typed_by_a_user_is_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.end_of_text not in tokenizer.encode(f"{text}<|endoftext|>{text}")


def test_a_marker_has_no_text() -> None:
    assert GPT2.token_bytes(50256) == b""
    assert GPT2.token_bytes(50300) == b"", "nor has padding"


def ranks(count: int = 256) -> list[bytes]:
    return [base64.b64encode(bytes([i])) + b" %d" % i for i in range(count)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*ranks(), b"not-base64! 256"], "line 257 is not a base64 token and a rank"),
        ([*ranks(), b"aGk="], "line 257"),
        (ranks(200), "200 ranks"),
        ([*ranks(), base64.b64encode(b"hi") + b" 300"], "each of 0..n-1 once"),
        ([*ranks(255), base64.b64encode(b"hi") + b" 255"], "byte 255 has no token"),
    ],
)
def test_a_broken_vocabulary_is_refused_in_one_line(tmp_path: Path, lines: list[bytes], message: str) -> None:
    path = tmp_path / "broken.tiktoken"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(CheckpointError, match=message):
        load_tiktoken(path)


def test_a_missing_file_and_an_unknown_encoding(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        load_tiktoken(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="unknown tokenizer encoding 'klingon'"):
        load_tiktoken(tmp_path / "absent", "klingon")


def test_a_tokenizer_can_be_built_without_merges() -> None:
    tokenizer = TiktokenTokenizer({bytes([i]): i for i in range(256)})
    assert tokenizer.encode("é") == [0xC3, 0xA9]
