"""One description, two engines: the same ids as the reference library, control tokens never from text."""

from typing import Any

import pytest
from hypothesis import given, settings

from llm.errors import CheckpointError
from llm.tokenizer import TiktokenTokenizer, Tokenizer
from llm.tokenizer.added import replace_surrogates
from llm.tokenizer.build import build_tokenizer
from llm.tokenizer.description import Roles
from llm.tokenizer.hf import LibraryTokenizer
from tests.hard_text import HARD, LONG, hard_strings
from tests.small_vocabularies import FAMILIES, ON_LIBRARY, ON_TIKTOKEN, make_spec, reference

Spec = dict[str, Any]
LOSSLESS = ("gpt2", "llama3")
BUILT = {family: build_tokenizer(make_spec(family), "x.json", Roles()) for family in FAMILIES}
REFERENCE = {family: reference(make_spec(family)) for family in FAMILIES}
by_family = pytest.mark.parametrize("family", FAMILIES)


def expected(family: str, text: str) -> list[int]:
    ids: list[int] = REFERENCE[family].encode(text, add_special_tokens=False).ids
    return ids


def spells_control(tokenizer: Tokenizer, text: str) -> bool:
    return any(spelling in text for spelling in tokenizer.control)


@by_family
def test_hard_text_has_the_ids_of_the_reference(family: str) -> None:
    tokenizer = BUILT[family][0]
    for text in map(replace_surrogates, HARD):
        if family != "unigram" or not spells_control(tokenizer, text):
            assert tokenizer.encode(text) == expected(family, text), text[:60]


@by_family
@settings(max_examples=60)
@given(text=hard_strings)
def test_any_text_has_the_ids_of_the_reference(family: str, text: str) -> None:
    tokenizer = BUILT[family][0]
    if family != "unigram" or not spells_control(tokenizer, text):
        assert tokenizer.encode(text) == expected(family, text)


@pytest.mark.parametrize(
    ("family", "what"),
    [
        ("smollm", "letters"),
        ("smollm", "spaces and a word"),
        ("qwen", "emoji"),
        ("llama3", "line breaks and spaces"),
        ("metaspace", "letters"),
        ("unigram", "no spaces"),
    ],
)
def test_a_megabyte_has_the_ids_of_the_reference(family: str, what: str) -> None:
    assert BUILT[family][0].encode(LONG[what]) == expected(family, LONG[what])


@by_family
@given(text=hard_strings)
@settings(max_examples=60)
def test_text_never_becomes_a_control_token(family: str, text: str) -> None:
    tokenizer = BUILT[family][0]
    unknown = tokenizer.control.get("<unk>")
    for spelling, token_id in tokenizer.control.items():
        for spelled in (spelling, f"{text}{spelling}{text}", spelling * 3):
            ids = tokenizer.encode(spelled)
            assert token_id == unknown or not set(ids) & (set(tokenizer.control.values()) - {unknown})
        assert tokenizer.decode(tokenizer.encode(f"a{spelling}b")) == f"a{spelling}b"
        assert tokenizer.token_bytes(token_id) == b""


@pytest.mark.parametrize("family", LOSSLESS)
@given(text=hard_strings)
def test_decode_of_encode_is_the_text(family: str, text: str) -> None:
    tokenizer = BUILT[family][0]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(text.encode()) <= len(ids) * tokenizer.longest_token


@by_family
def test_lone_surrogates_become_replacement_characters(family: str) -> None:
    tokenizer = BUILT[family][0]
    assert tokenizer.encode("x\ud800 \ud83d\ude00y") == expected(family, "x\ufffd 😀y")


@by_family
def test_decoding_is_the_reference_s(family: str) -> None:
    tokenizer = BUILT[family][0]
    for text in map(replace_surrogates, HARD):
        if not spells_control(tokenizer, text):
            ids = expected(family, text)
            assert tokenizer.decode(ids) == REFERENCE[family].decode(ids)


@pytest.mark.parametrize("family", ON_TIKTOKEN)
def test_byte_level_runs_on_tiktoken(family: str) -> None:
    tokenizer, notes = BUILT[family]
    assert isinstance(tokenizer, TiktokenTokenizer)
    merges = len(make_spec(family)["model"]["merges"])
    assert notes == [
        f"tokenizer: byte-level BPE, {tokenizer.vocab_size} ids, on tiktoken "
        f"(checked against its {merges} merges)"
    ]


@pytest.mark.parametrize("family", ON_LIBRARY)
def test_the_rest_runs_on_the_library(family: str) -> None:
    tokenizer, notes = BUILT[family]
    assert isinstance(tokenizer, LibraryTokenizer)
    assert "on the tokenizers library: " in notes[0]


def test_bytes_without_a_token_are_left_out_as_in_the_reference() -> None:
    tokenizer = BUILT["smollm"][0]
    assert tokenizer.decode(tokenizer.encode("=\x04=")) == "=="
    assert tokenizer.encode("=\x04=") == expected("smollm", "=\x04=")


def test_added_tokens_that_are_not_special_are_found_in_text() -> None:
    tokenizer = BUILT["qwen"][0]
    ids = make_spec("qwen")["added_tokens"]
    think = next(item["id"] for item in ids if item["content"] == "<think>")
    assert think in tokenizer.encode("so<think>x")
    assert tokenizer.token_bytes(think) == b"<think>"
    assert "<think>" not in tokenizer.control


def test_whole_pieces_are_looked_up_first_where_the_model_says_so() -> None:
    tokenizer, vocab = BUILT["llama3"][0], make_spec("llama3")["model"]["vocab"]
    for word in (" antidisestablishmentarianism", " qqqqqzzzz"):
        assert tokenizer.encode(word) == [vocab[word.replace(" ", "Ġ")]]
        assert tokenizer.encode(f"{word}s") == expected("llama3", f"{word}s") != tokenizer.encode(word)


def test_dropout_is_for_training() -> None:
    for family in ("gpt2", "metaspace"):
        spec = make_spec(family)
        spec["model"]["dropout"] = 0.9
        tokenizer, _ = build_tokenizer(spec, "x", Roles())
        assert tokenizer.encode(HARD[8]) == expected(family, HARD[8])


def test_roles() -> None:
    llama = BUILT["llama3"][0]
    assert llama.begin_of_text == llama.control["<|begin_of_text|>"]
    assert llama.end_of_text == llama.control["<|end_of_text|>"]
    told, _ = build_tokenizer(make_spec("llama3"), "x", Roles(end="<|eot_id|>", add_begin=False))
    assert (told.begin_of_text, told.end_of_text) == (None, llama.control["<|eot_id|>"])
    asked, _ = build_tokenizer(make_spec("metaspace"), "x", Roles(begin="<s>", add_begin=True))
    assert asked.begin_of_text == asked.control["<s>"]
    _, notes = build_tokenizer(make_spec("gpt2"), "x", Roles(begin="<b>", end="<e>", add_begin=True))
    assert [note[:40] for note in notes[1:]] == [
        "warning: tokenizer: no end of text: '<e>",
        "warning: tokenizer: no begin of text: '<",
    ]


def tie_break(spec: Spec) -> None:
    """Two merges change places."""
    merges = spec["model"]["merges"]
    merges[0], merges[300] = merges[300], merges[0]


def unlisted(spec: Spec) -> None:
    """A token that tiktoken would join and no merge makes."""
    spec["model"]["vocab"]["eĠt"] = spec["model"]["vocab"].pop("Ġqqqqqzzzz", 1300)


def control_by_merges(spec: Spec) -> None:
    item = {**spec["added_tokens"][0], "id": spec["model"]["vocab"]["Ġthe"], "content": "Ġthe"}
    spec["added_tokens"].append(item)


REASONS = [
    ("gpt2", tie_break, "not in the order of its ids"),
    ("gpt2", lambda s: s["model"]["merges"].append(s["model"]["merges"][0]), "a merge is listed twice"),
    ("llama3", unlisted, "does not follow from its merges"),
    ("gpt2", control_by_merges, "make the control token 'Ġthe' of ordinary text"),
    ("gpt2", lambda s: s.update(normalizer={"type": "NFKC"}), "its normalizer (NFKC) is not NFC"),
    ("gpt2", lambda s: s["pre_tokenizer"].update(add_prefix_space=True), "its pre-tokenizer (ByteLevel)"),
    ("gpt2", lambda s: s["added_tokens"].append(ADDED), "takes whitespace or wants word borders"),
    ("smollm", lambda s: s["model"].update(unk_token="<|endoftext|>"), "it lacks bytes"),
]
ADDED = {"id": 1201, "content": "<think>", "special": False, "normalized": False, "lstrip": True}
ADDED |= {"rstrip": True, "single_word": False}


@pytest.mark.parametrize(("family", "change", "reason"), REASONS, ids=[r[2][:30] for r in REASONS])
def test_what_is_not_proved_goes_to_the_library(family: str, change: Any, reason: str) -> None:
    spec = make_spec(family)
    change(spec)
    tokenizer, notes = build_tokenizer(spec, "x", Roles())
    assert isinstance(tokenizer, LibraryTokenizer)
    assert reason in notes[0], notes
    text = "the cat and \x04the theory, so <think> 12e te"
    barred = set(tokenizer.control.values())
    reference_ids = reference(spec).encode(text, add_special_tokens=False).ids
    assert barred & set(reference_ids) or tokenizer.encode(text) == reference_ids
    assert not barred & set(tokenizer.encode(text))


def test_without_lookups_a_token_that_no_merge_makes_is_no_obstacle() -> None:
    spec = make_spec("gpt2")
    unlisted(spec)
    tokenizer, _ = build_tokenizer(spec, "x", Roles())
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert tokenizer.token_bytes(1300) == b"e t", "an id the model may still draw"
    assert tokenizer.encode("e the t") == reference(spec).encode("e the t").ids


def test_merges_out_of_order_that_never_happen_are_no_obstacle() -> None:
    spec = make_spec("gpt2")
    model = spec["model"]
    left, right = next(pair for pair in model["merges"] if len(pair[0]) == 2 and pair[0][0] + pair[0][1])
    other = [left[0], left[1] + right]
    model["vocab"].setdefault(other[1], 1300)
    model["merges"] = [pair for pair in model["merges"] if pair != other] + [other]
    tokenizer, _ = build_tokenizer(spec, "x", Roles())
    assert isinstance(tokenizer, TiktokenTokenizer)
    for text in map(replace_surrogates, HARD):
        assert tokenizer.encode(text) == reference(spec).encode(text).ids


def test_one_character_stays_text_even_when_called_special() -> None:
    spec = make_spec("gpt2")
    spec["added_tokens"].append(
        {**spec["added_tokens"][0], "id": spec["model"]["vocab"]["!"], "content": "!"}
    )
    tokenizer, notes = build_tokenizer(spec, "x", Roles())
    assert "!" not in tokenizer.control
    assert tokenizer.decode(tokenizer.encode("so! so!!")) == "so! so!!"
    assert "'!' is one character, so it stays text" in notes[1]


def test_a_special_token_that_takes_whitespace_is_worth_a_warning() -> None:
    spec = make_spec("gpt2")
    spec["added_tokens"][0]["rstrip"] = True
    _, notes = build_tokenizer(spec, "x", Roles())
    assert notes[1].startswith("warning: tokenizer: '<|endoftext|>' was trained to take the whitespace")


def test_more_ids_than_a_table_should_hold() -> None:
    spec = make_spec("gpt2")
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": (1 << 24) - 1, "content": "<far>"})
    with pytest.raises(CheckpointError, match="token id 16777215 is too large for 1202 tokens"):
        build_tokenizer(spec, "x", Roles())
