"""The tokenizers library held to our promises: exact bytes, no control tokens from text, short errors."""

from typing import Any

import pytest
from hypothesis import given, settings

from llm.errors import CheckpointError, RequestError
from llm.tokenizer.hf import LibraryTokenizer, check_ids
from tests.hard_text import HARD, hard_strings
from tests.small_vocabularies import make_spec, reference

Spec = dict[str, Any]
CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}
UNIGRAM = LibraryTokenizer(make_spec("unigram"), "x.json", control=CONTROL, end_of_text=2)
METASPACE = LibraryTokenizer(make_spec("metaspace"), "x.json", control=CONTROL, end_of_text=2)
PREPEND = LibraryTokenizer(make_spec("prepend"), "x.json", control=CONTROL, end_of_text=2)


@pytest.mark.parametrize("text", ["hello", " hello", "  ", "", "漢字", "a b\nc"])
def test_a_text_that_goes_on_gets_no_space_where_only_the_first_word_does(text: str) -> None:
    """The reference, too, gives no space to what follows a special token."""
    spec = make_spec("metaspace")
    whole = reference(spec)
    whole.encode_special_tokens = False
    assert METASPACE.encode(text, continued=True) == whole.encode(f"<s>{text}").ids[1:]
    assert METASPACE.encode(text) == reference(spec).encode(text).ids
    assert METASPACE.decode(METASPACE.encode(text)) == text.removeprefix(" ") or not text.strip()


@pytest.mark.parametrize("text", ["hello", " hello", "", "漢字"])
def test_a_space_before_every_stretch_is_kept(text: str) -> None:
    whole = reference(make_spec("prepend"))
    whole.encode_special_tokens = False
    assert PREPEND.encode(text, continued=True) == whole.encode(f"<s>{text}").ids[1:]


@given(text=hard_strings)
def test_the_bytes_of_ids_are_the_text(text: str) -> None:
    ids = METASPACE.encode(text, continued=True)
    assert b"".join(map(METASPACE.token_bytes, ids)) == text.replace("▁", " ").encode()
    assert len(text.encode()) <= len(ids) * METASPACE.longest_token


def test_bytes_of_single_ids() -> None:
    assert METASPACE.token_bytes(3 + 0xE2) == b"\xe2", "byte fallback"
    spaced = next(i for i in range(METASPACE.vocab_size) if METASPACE.token_bytes(i) == b"the ")
    assert METASPACE._library.id_to_token(spaced) == "the▁"
    assert [METASPACE.token_bytes(i) for i in (0, 1, 2, -1, 1 << 20)] == [b""] * 5


@settings(max_examples=60)
@given(text=hard_strings)
def test_a_spelling_that_is_a_piece_of_the_model_stays_text(text: str) -> None:
    library = reference(make_spec("unigram"))
    assert 2 in library.encode("</s>").ids, "what we protect against"
    for spelled in ("</s>", f"x</s>{text}", "<s></s>" * 3, "<unk>", "＜/s＞"):
        ids = UNIGRAM.encode(spelled)
        assert not {1, 2} & set(ids)
        if "＜" not in spelled and not text:
            assert UNIGRAM.decode(ids) == spelled


def test_what_cannot_be_written_is_the_unknown_token() -> None:
    spec = make_spec("unigram")
    assert UNIGRAM.encode("\U00013000x") == reference(spec).encode("\U00013000x").ids
    assert UNIGRAM.encode("\U00013000\U00013001x").count(0) == 1, "a run of them is one, as trained"
    ending = LibraryTokenizer(spec, "x.json", control=CONTROL, end_of_text=0)
    assert 0 not in ending.encode("\U00013000x"), "unless it would end the text"


def test_many_spellings_in_one_text() -> None:
    ids = UNIGRAM.encode("</s>" * 5000)
    assert not {1, 2} & set(ids)
    assert UNIGRAM.decode(ids) == "</s>" * 5000


def test_truncation_and_padding_are_off() -> None:
    spec = make_spec("metaspace")
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    spec["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    tokenizer = LibraryTokenizer(spec, "x.json", control=CONTROL)
    for text in HARD[:3] + HARD[5:9]:
        assert tokenizer.encode(text) == METASPACE.encode(text)


def word_piece(spec: Spec) -> None:
    spec["model"] = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    spec["model"] |= {"max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1}}
    spec.update(added_tokens=[], decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})


DAMAGE = {
    "x.json: model WordPiece with decoder WordPiece does not keep": word_piece,
    "x.json: model BPE with decoder None does not keep": lambda spec: spec.update(decoder=None),
    "refuses it: .*panicked|refuses it: .*": lambda spec: spec.update(normalizer={"type": "Precompiled"}),
    "token '<s>' has id 7, by its place": lambda spec: spec["added_tokens"][1].update(id=7),
    "the tokenizers library refuses it": lambda spec: spec.update(pre_tokenizer={"type": "Nonsense"}),
    "library refuses it: ": lambda spec: spec.update(normalizer={"type": "Replace", "pattern": 3}),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGE.items(), ids=list(DAMAGE))
def test_what_it_refuses(message: str, damage: Any) -> None:
    spec = make_spec("metaspace")
    damage(spec)
    with pytest.raises(CheckpointError, match=message) as caught:
        LibraryTokenizer(spec, "x.json", control={})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("x.json: ")


def test_a_model_that_fails_on_ordinary_text_is_refused_at_once() -> None:
    spec = make_spec("unigram")
    spec["model"]["unk_id"] = None
    with pytest.raises(CheckpointError, match=r"x\.json: the tokenizers library refuses it: .*unk"):
        LibraryTokenizer(spec, "x.json", control={})


def test_a_text_that_the_library_fails_on_is_the_request_s_error() -> None:
    class PanicException(BaseException):
        """What a panic of Rust code looks like from here."""

    class Panicking:
        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> None:
            raise PanicException("index out of bounds\nand a backtrace")

    tokenizer = LibraryTokenizer(make_spec("metaspace"), "x.json", control=CONTROL)
    tokenizer._library = Panicking()  # type: ignore[assignment]
    with pytest.raises(RequestError, match="cannot be encoded: .*index out of bounds'$"):
        tokenizer.encode("x")


def test_check_ids() -> None:
    check_ids(65_535, 1, "x")
    for largest, num_tokens in ((65_540, 1), (1 << 24, 1 << 24)):
        with pytest.raises(CheckpointError, match=f"x: token id {largest} is too large for {num_tokens}"):
            check_ids(largest, num_tokens, "x")
