"""The tokenizer in a GGUF file's metadata: the same ids as the tokenizer.json it was made from."""

from typing import Any

import pytest

from llm.errors import CheckpointError
from llm.tokenizer import TiktokenTokenizer
from llm.tokenizer.added import replace_surrogates
from llm.tokenizer.gguf import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tokenizer_from_gguf
from llm.tokenizer.hf import LibraryTokenizer
from tests.hard_text import HARD, LONG
from tests.small_vocabularies import make_spec, reference

KEY = "tokenizer.ggml."
PRE = {"gpt2": "gpt-2", "smollm": "smollm", "llama3": "llama-bpe", "qwen": "qwen2"}
Fields = dict[str, Any]


def byte_level(family: str) -> Fields:
    """The metadata that a converter writes for a tokenizer.json of byte-level BPE."""
    spec = make_spec(family)
    names = {i: token for token, i in spec["model"]["vocab"].items()}
    types = dict.fromkeys(names, NORMAL)
    for item in spec["added_tokens"]:
        names[item["id"]] = item["content"]
        types[item["id"]] = CONTROL if item["special"] else USER_DEFINED
    return {
        "general.architecture": "llama",
        f"{KEY}model": "gpt2",
        f"{KEY}pre": PRE[family],
        f"{KEY}tokens": [names[i] for i in range(len(names))],
        f"{KEY}token_type": [types[i] for i in range(len(names))],
        f"{KEY}merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        f"{KEY}eos_token_id": next(item["id"] for item in spec["added_tokens"] if item["special"]),
    }


def sentence_piece(prefix: bool = True) -> Fields:
    """Scores as SentencePiece's BPE trainer gives them: minus the token's place."""
    vocab = make_spec("prepend")["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - 259)]
    return {
        f"{KEY}model": "llama",
        f"{KEY}tokens": tokens,
        f"{KEY}scores": [0.0 if kind != NORMAL else -float(i) for i, kind in enumerate(types)],
        f"{KEY}token_type": types,
        f"{KEY}bos_token_id": 1,
        f"{KEY}eos_token_id": 2,
        f"{KEY}add_space_prefix": prefix,
    }


@pytest.mark.parametrize("family", PRE)
def test_byte_level(family: str) -> None:
    tokenizer, notes = tokenizer_from_gguf(byte_level(family), "x.gguf")
    assert isinstance(tokenizer, TiktokenTokenizer), notes
    whole = reference(make_spec(family))
    for text in map(replace_surrogates, HARD):
        if family != "qwen" or "e\u0301" not in text:  # its token "é" is looked for after composing, by json
            assert tokenizer.encode(text) == whole.encode(text, add_special_tokens=False).ids
    word = " antidisestablishmentarianism"  # looked up as a whole by llama-bpe
    assert tokenizer.encode(word) == whole.encode(word, add_special_tokens=False).ids
    special = {item["content"]: item["id"] for item in make_spec(family)["added_tokens"] if item["special"]}
    assert tokenizer.control == special


def test_roles() -> None:
    fields = byte_level("llama3") | {f"{KEY}bos_token_id": 1202, f"{KEY}eot_token_id": 1205}
    tokenizer, _ = tokenizer_from_gguf(fields, "x.gguf")
    assert tokenizer.begin_of_text == 1202, "llama-bpe begins with it when the file does not say"
    quiet, _ = tokenizer_from_gguf(fields | {f"{KEY}add_bos_token": False}, "x.gguf")
    assert quiet.begin_of_text is None
    smollm, _ = tokenizer_from_gguf(byte_level("smollm") | {f"{KEY}bos_token_id": 1}, "x.gguf")
    assert (smollm.begin_of_text, smollm.end_of_text) == (None, 0)
    fields[f"{KEY}token_type"][1205] = NORMAL
    turn, _ = tokenizer_from_gguf(fields, "x.gguf")
    assert turn.control["<|eot_id|>"] == 1205, "a token with a role is control"


def test_unused_and_repeated_tokens_are_padding() -> None:
    fields = byte_level("gpt2")
    fields[f"{KEY}tokens"] += ["[PAD1201]", "the", "Ġthe"]
    fields[f"{KEY}token_type"] += [UNUSED, UNUSED, NORMAL]
    tokenizer, notes = tokenizer_from_gguf(fields, "x.gguf")
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert tokenizer.encode(" the") == reference(make_spec("gpt2")).encode(" the").ids
    assert [tokenizer.token_bytes(i) for i in (1201, 1202, 1203)] == [b""] * 3
    assert notes[-1] == "tokenizer: 1 tokens are spelled like an earlier one and never used"


def test_a_split_that_is_not_named_is_assumed_with_a_warning() -> None:
    fields = byte_level("gpt2")
    for pre in (None, "default"):
        tokenizer, notes = tokenizer_from_gguf(fields | {f"{KEY}pre": pre}, "x.gguf")
        assert tokenizer.encode("the 12") == reference(make_spec("gpt2")).encode("the 12").ids
        assert notes[-1].startswith("warning: tokenizer: tokenizer.ggml.pre does not say")


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(prefix: bool) -> None:
    tokenizer, notes = tokenizer_from_gguf(sentence_piece(prefix), "x.gguf")
    assert isinstance(tokenizer, LibraryTokenizer), notes
    spec = make_spec("prepend")
    if not prefix:
        del spec["normalizer"]["normalizers"][0]
        del spec["decoder"]["decoders"][-1]
    whole = reference(spec)
    for text in map(replace_surrogates, HARD):
        ids = tokenizer.encode(text)
        assert ids == whole.encode(text, add_special_tokens=False).ids, text[:60]
        assert tokenizer.decode(ids) == text.replace("▁", " ")
    assert tokenizer.encode(LONG["letters"]) == whole.encode(LONG["letters"], add_special_tokens=False).ids
    assert tokenizer.control == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (tokenizer.begin_of_text, tokenizer.end_of_text) == (1, 2)
    assert tokenizer.token_bytes(3 + 0xE2) == b"\xe2"


def test_user_defined_tokens_of_sentence_piece() -> None:
    fields = sentence_piece()
    fields[f"{KEY}tokens"] += ["<tool>", "▁" * 23]  # more than a word of the corpus has
    fields[f"{KEY}token_type"] += [USER_DEFINED] * 2
    fields[f"{KEY}scores"] += [0.0, 0.0]
    tokenizer, _ = tokenizer_from_gguf(fields, "x.gguf")
    ids = tokenizer.encode("a <tool>")
    assert ids[-1] == 1400 and tokenizer.token_bytes(1400) == b"<tool>"
    assert tokenizer.token_bytes(1401) == b" " * 23
    assert tokenizer.decode(tokenizer.encode("a" + " " * 25)) == "a" + " " * 25


def change(**values: Any) -> Any:
    return lambda fields: fields.update({f"{KEY}{name}": value for name, value in values.items()})


DAMAGE: list[tuple[str, Any]] = [
    ("tokenizer.ggml.model is 'bert', supported are", change(model="bert")),
    ("tokenizer.ggml.model is None", change(model=None)),
    ("tokenizer.ggml.model is \\[\\]", change(model=[])),
    ("tokenizer.ggml.pre is 'klingon', a split of text that is not known", change(pre="klingon")),
    ("tokenizer.ggml.pre is \\[1\\]", change(pre=[1])),
    ("tokens must be a list of 1 to", change(tokens=[])),
    ("tokens must be a list of 1 to", change(tokens={"a": 1})),
    ("tokens 1 is not a string", change(tokens=["a", 7])),
    ("token_type must be 1201 numbers", change(token_type=[1])),
    ("token_type must be 1201 numbers", change(token_type=["x"] * 1201)),
    ("token_type must be 1201 numbers", change(token_type=[9] * 1201)),
    ("merges must be a list", change(merges=None)),
    ("merge 0 is not a pair", change(merges=["abc"])),
    ("merge 0 is not a pair", change(merges=[7])),
    ("has a token not in vocab", change(merges=["qq zz"])),
    ("eos_token_id is 9999, which is no token", change(eos_token_id=9999)),
    ("eos_token_id is -1, which is no token", change(eos_token_id=-1)),
    ("eos_token_id is 'x', which is no token", change(eos_token_id="x")),
]
DAMAGED_SCORES: list[tuple[str, Any]] = [
    ("scores must be 1400 numbers", change(scores=None)),
    ("scores must be 1400 numbers", change(scores=[1.0])),
    ("not a finite number", change(scores=[float("nan")] * 1400)),
    ("not a finite number", change(scores=["1"] * 1400)),
    ("token 1399 has 600 characters", lambda f: f[f"{KEY}tokens"].__setitem__(1399, "x" * 600)),
]


@pytest.mark.parametrize(
    ("fields", "message", "damage"),
    [*((byte_level, *case) for case in DAMAGE), *((sentence_piece, *case) for case in DAMAGED_SCORES)],
    ids=range(len(DAMAGE) + len(DAMAGED_SCORES)),
)
def test_damaged_metadata_is_refused_in_one_line(fields: Any, message: str, damage: Any) -> None:
    values = fields("gpt2") if fields is byte_level else fields()
    damage(values)
    with pytest.raises(CheckpointError, match=message) as caught:
        tokenizer_from_gguf(values, "x.gguf")
    assert str(caught.value).startswith("x.gguf: ")
    assert "\n" not in str(caught.value)
