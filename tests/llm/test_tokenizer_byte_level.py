"""The proof that merges may run on tiktoken, and that it refuses what would not be equal."""

import random

import pytest
from tokenizers import models

from llm.tokenizer import TiktokenTokenizer
from llm.tokenizer.byte_level import ALPHABET, Unproven, tiktoken_ranks, to_bytes

BYTES = {char: value for value, char in ALPHABET.items()}


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    joined = dict.fromkeys(a + b for a, b in merges)
    return BYTES | {token: 256 + n for n, token in enumerate(joined)}


def prove(merges: list[tuple[str, str]], *, ignore_merges: bool = False, **extra: int) -> dict[bytes, int]:
    return tiktoken_ranks(vocabulary(merges) | extra, merges, control=(), ignore_merges=ignore_merges)[0]


def test_the_alphabet_is_a_bijection() -> None:
    assert len(set(ALPHABET.values())) == 256
    assert all(to_bytes(char) == bytes([value]) for value, char in ALPHABET.items())
    assert to_bytes("Ġhé") == b" h\xe9"
    assert [to_bytes(text) for text in (" ", "\n", "漢", "a\xad")] == [None] * 4


def test_simple_merges() -> None:
    ranks = prove([("a", "b"), ("ab", "c")])
    assert (ranks[b"ab"], ranks[b"abc"], len(ranks)) == (256, 257, 258)


def test_every_listed_way_to_a_token() -> None:
    """As Llama 3 and Qwen list them; only one of a token's pairs ever comes up."""
    assert len(prove([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])) == 259


def test_an_unlisted_pair_that_tiktoken_would_join() -> None:
    merges = [("b", "c"), ("a", "bc")]
    with pytest.raises(Unproven, match="does not follow"):
        prove(merges, ignore_merges=True, bcd=300)
    ranks, rest = tiktoken_ranks(vocabulary(merges) | {"bcd": 300}, merges, control=(), ignore_merges=False)
    assert b"bcd" not in ranks
    assert rest == {300: b"bcd"}


def test_a_token_in_three_parts_is_looked_up_only() -> None:
    ranks = prove([("b", "c")], ignore_merges=True, abcd=300)
    assert ranks[b"abcd"] == 300


def test_order() -> None:
    merges = [("a", "b"), ("b", "c")]
    swapped = BYTES | {"ab": 257, "bc": 256}
    with pytest.raises(Unproven, match="order"):
        tiktoken_ranks(swapped, merges, control=(), ignore_merges=False)
    with pytest.raises(Unproven, match="twice"):
        prove([*merges, merges[0]])


def test_control_tokens_are_never_ranks() -> None:
    merges = [("a", "b")]
    vocab = vocabulary(merges) | {"<s>": 300}
    ranks, rest = tiktoken_ranks(vocab, merges, control={300}, ignore_merges=True)
    assert 300 not in {*ranks.values(), *rest}
    with pytest.raises(Unproven, match="control token 'ab'"):
        tiktoken_ranks(vocab, merges, control={256}, ignore_merges=False)


def test_no_bytes_at_all() -> None:
    with pytest.raises(Unproven, match="no token for any byte"):
        tiktoken_ranks({"漢": 0}, [], control=(), ignore_merges=False)


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
def test_whatever_is_proved_is_equal(shuffled: bool, ignore_merges: bool) -> None:
    """Random merge lists over three letters, most of them inconsistent: what passes must agree everywhere."""
    source = random.Random(7)
    passed = 0
    for _ in range(400):
        tokens, merges = ["a", "b", "c"], []
        for _ in range(source.randint(1, 6)):
            pair = (source.choice(tokens), source.choice(tokens))
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
        vocab = vocabulary(merges)
        if shuffled:
            source.shuffle(merges)
        try:
            ranks, rest = tiktoken_ranks(vocab, merges, control=(), ignore_merges=ignore_merges)
        except Unproven:
            continue
        passed += 1
        tokenizer = TiktokenTokenizer(ranks, unreachable=rest)
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
        for length in (*range(1, 9), 40, 300):
            word = "".join(source.choices("abc", k=length))
            assert tokenizer.encode(word) == [token.id for token in model.tokenize(word)], (merges, word)
    assert passed > 20
