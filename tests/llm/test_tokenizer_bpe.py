"""tiktoken from ranks: equal to the reference's merges, also on a megabyte; `.tiktoken` files."""

import base64
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, models, pre_tokenizers

from llm.errors import CheckpointError
from llm.tokenizer import END_OF_TEXT, TiktokenTokenizer, load_tiktoken
from llm.tokenizer.added import AddedToken, replace_surrogates
from llm.tokenizer.bpe import MAX_WHITE_RUN
from llm.tokenizer.byte_level import ALPHABET
from tests.hard_text import HARD, LONG, hard_strings

ROOT = Path(__file__).parents[2]
GPT2 = load_tiktoken(ROOT / "checkpoints/causette/tokenizer.tiktoken")
RANKS = {bytes([value]): value for value in range(256)}


@cache
def reference() -> Tokenizer:
    """GPT-2 on the reference library; a token's merge is the pair it ends in when only older ones exist."""
    tokens = [GPT2.token_bytes(rank) for rank in range(50256)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    spelled = ["".join(ALPHABET[value] for value in token) for token in tokens]
    merges = []
    for token in tokens[256:]:
        left = last_pair(ranks, token)
        merges.append(tuple("".join(ALPHABET[v] for v in part) for part in (token[:left], token[left:])))
    vocab = {token: rank for rank, token in enumerate(spelled)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def last_pair(ranks: dict[bytes, int], token: bytes) -> int:
    """Where the token's two parts meet."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, 1 << 30) for a, b in zip(parts, parts[1:], strict=False)]
        at = min(range(len(joined)), key=joined.__getitem__)
        assert joined[at] < ranks[token]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return len(parts[0])


def test_gpt2_on_hard_text() -> None:
    for text in map(replace_surrogates, HARD):
        assert GPT2.encode(text) == reference().encode(text).ids


@given(text=hard_strings)
@settings(max_examples=200)
def test_gpt2_on_any_text(text: str) -> None:
    assert GPT2.encode(text) == reference().encode(text).ids
    assert GPT2.decode(GPT2.encode(text)) == text


@pytest.mark.parametrize("what", LONG)
def test_gpt2_on_a_megabyte(what: str) -> None:
    assert GPT2.encode(LONG[what]) == reference().encode(LONG[what]).ids


def test_a_long_run_of_white_characters_is_cut_by_the_reference() -> None:
    """At the border between the two ways, both say the same."""
    for length in (MAX_WHITE_RUN - 1, MAX_WHITE_RUN):
        text = "x" + " " * length + "1\n"
        assert GPT2._is_hard(text) is (length == MAX_WHITE_RUN)
        assert GPT2._encode_pieces(text) == GPT2._tiktoken.encode_ordinary(text)
    spread = ("\n" * (MAX_WHITE_RUN - 1) + "x") * 10
    assert not GPT2._is_hard(spread)


@given(text=hard_strings)
def test_both_ways_to_cut_give_the_same_ids(text: str) -> None:
    assert GPT2._encode_pieces(text) == GPT2._tiktoken.encode_ordinary(text)


def test_decoding_replaces_broken_characters() -> None:
    family = GPT2.encode("👩‍👩‍👧")
    assert GPT2.decode(family[:1]) == "\ufffd"
    assert GPT2.decode(family[:-1]).endswith("\ufffd")
    assert b"".join(map(GPT2.token_bytes, family)).decode() == "👩‍👩‍👧"


def test_lone_surrogates() -> None:
    assert GPT2.decode(GPT2.encode("a\ud800b \ud83d\ude00")) == "a\ufffdb 😀"


def test_ids_may_have_gaps_and_control_tokens_may_come_first() -> None:
    tokenizer = TiktokenTokenizer(
        {token: rank + 3 for token, rank in RANKS.items()} | {b"hi": 300, b"hii": 290},
        "llama3",
        control={"<s>": 0, "</s>": 2},
        end_of_text=2,
        begin_of_text=0,
        added=[AddedToken("<s>", 0, special=True), AddedToken("<tool>", 301)],
        unreachable={310: b"zz"},
    )
    assert tokenizer.vocab_size == 311
    assert tokenizer.encode("hi<tool>hiizz</s>")[:4] == [300, 301, 290, ord("z") + 3]
    assert not {0, 2} & set(tokenizer.encode("<s></s>"))
    assert [tokenizer.token_bytes(i) for i in (0, 1, 300, 301, 305, 310, -1, 999)] == [
        b"", b"", b"hi", b"<tool>", b"", b"zz", b"", b""
    ]  # fmt: skip
    assert tokenizer.longest_token == len("<tool>")


def test_the_composed_form_counts_for_its_longer_spelling() -> None:
    tokenizer = TiktokenTokenizer(RANKS, control={}, nfc=True)
    text = "\u1112\u1161\u11ab" * 9  # three letters of three bytes are one syllable of three bytes
    assert tokenizer.decode(tokenizer.encode(text)) == "한" * 9
    assert len(text.encode()) <= len(tokenizer.encode(text)) * tokenizer.longest_token


def write_ranks(path: Path, ids: list[int]) -> Path:
    tokens = [*RANKS, *(b"%dx" % n for n in range(len(ids) - 256))]
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in zip(tokens, ids, strict=True))
    path.write_bytes(b"".join(lines))
    return path


def test_published_vocabularies_keep_their_end_of_text(tmp_path: Path) -> None:
    p50k = write_ranks(tmp_path / "p50k", [rank for rank in range(50281) if rank != 50256])
    assert load_tiktoken(p50k, "p50k").control == {END_OF_TEXT: 50256}
    small = write_ranks(tmp_path / "small", list(range(300)))
    assert load_tiktoken(small, "p50k").end_of_text == 300, "somebody's own vocabulary"
    gap = write_ranks(tmp_path / "gap", [*range(299), 300])
    with pytest.raises(CheckpointError, match="each of 0..n-1 once"):
        load_tiktoken(gap, "p50k")
