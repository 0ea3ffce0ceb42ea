"""Hugging Face's tokenizer files: what they say is taken, and whatever is wrong with them is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm.errors import CheckpointError
from llm.tokenizer import TiktokenTokenizer, Tokenizer
from llm.tokenizer.json import load_tokenizer_json, load_vocab_merges
from tests.hard_text import HARD
from tests.small_vocabularies import FAMILIES, make_spec, reference, write_spec

Spec = dict[str, Any]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads(family: str, tmp_path: Path) -> None:
    path = write_spec(tmp_path / "tokenizer.json", make_spec(family))
    tokenizer, notes = load_tokenizer_json(path, config=None)
    assert (
        tokenizer.encode("Hello, world! 12")
        == reference(make_spec(family)).encode("Hello, world! 12", add_special_tokens=False).ids
    )
    assert notes[0].startswith("tokenizer: ")


@pytest.mark.parametrize(
    ("config", "begin", "end"),
    [
        (None, 1202, None),
        ({}, 1202, None),
        ({"eos_token": "<|eot_id|>", "bos_token": None}, 1202, 1205),
        ({"eos_token": {"content": "<|eot_id|>", "lstrip": False}}, 1202, 1205),
        ({"add_bos_token": False}, None, None),
        ({"add_bos_token": True, "bos_token": {"content": "<|eot_id|>"}}, 1205, None),
        ({"add_bos_token": True}, None, None),
        ({"add_bos_token": "yes", "eos_token": ""}, 1202, None),
    ],
)
def test_roles(tmp_path: Path, config: Spec | None, begin: int | None, end: int | None) -> None:
    path = write_spec(tmp_path / "tokenizer.json", make_spec("llama3"))
    tokenizer, _ = load_tokenizer_json(path, config=config)
    assert (tokenizer.begin_of_text, tokenizer.end_of_text) == (begin, end or 1203)


def test_an_end_token_that_is_not_marked_special_is_control(tmp_path: Path) -> None:
    path = write_spec(tmp_path / "tokenizer.json", make_spec("qwen"))
    tokenizer, _ = load_tokenizer_json(path, config={"eos_token": "</think>"})
    assert tokenizer.end_of_text == tokenizer.control["</think>"]
    assert tokenizer.end_of_text not in tokenizer.encode("x</think>")
    assert "<think>" not in tokenizer.control


def test_older_files(tmp_path: Path) -> None:
    """Merges as strings, no type of model."""
    spec = make_spec("gpt2")
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    del spec["model"]["type"]
    tokenizer, _ = load_tokenizer_json(write_spec(tmp_path / "tokenizer.json", spec))
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert tokenizer.encode("the theory") == reference(make_spec("gpt2")).encode("the theory").ids


def vocab(spec: Spec) -> Spec:
    found: Spec = spec["model"]["vocab"]
    return found


DAMAGE: dict[str, Any] = {
    "model must be an object, got None": lambda s: s.pop("model"),
    "model must be an object, got 7": lambda s: s.update(model=7),
    "vocab must be an object": lambda s: s["model"].update(vocab=[1]),
    "vocab: the id of '!' must be a whole number from 0 to 16777215, got -1": lambda s: vocab(s).update(
        {"!": -1}
    ),
    "the id of '!' must be .* got True": lambda s: vocab(s).update({"!": True}),
    "the id of '!' must be .* got 16777216": lambda s: vocab(s).update({"!": 1 << 24}),
    "the id of '!' must be .* got 1e\\+300": lambda s: vocab(s).update({"!": 1e300}),
    "the id of '!' is given twice": lambda s: vocab(s).update({"!": 1}),
    "has 70000 characters, the limit is 65536": lambda s: vocab(s).update({"x" * 70000: 1300}),
    "a token holds a lone surrogate": lambda s: vocab(s).update({"\ud800": 1300}),
    "merges must be a list, got dict": lambda s: s["model"].update(merges={}),
    "merge 0 is not a pair": lambda s: s["model"]["merges"].insert(0, "abc"),
    "merge 1 is not a pair": lambda s: s["model"]["merges"].insert(1, ["a", 3]),
    "merge 0 \\('qq' 'zz'\\) has a token not in vocab": lambda s: s["model"]["merges"].insert(
        0, ["qq", "zz"]
    ),
    "added_tokens must be a list, got str": lambda s: s.update(added_tokens="x"),
    "added_tokens 1 must have a content and an id": lambda s: s["added_tokens"].append({"content": "<a>"}),
    "added_tokens 1 must": lambda s: s["added_tokens"].append({"content": "<a>", "id": -3}),
    "added_tokens 1 must have": lambda s: s["added_tokens"].append([]),
    "'<a>' has id 5, that of '&', or is there twice": lambda s: s["added_tokens"].append(
        {"content": "<a>", "id": 5}
    ),
    "or is there twice": lambda s: s["added_tokens"].append(s["added_tokens"][0]),
    "refuses it": lambda s: s.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
    "Unigram|refuses it": lambda s: s.update(model={"type": "Unigram", "vocab": [["a", "b"]]}),
    "refuses it: ": lambda s: s.update(model={"type": "Telepathy"}),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGE.items(), ids=range(len(DAMAGE)))
def test_a_damaged_file_is_refused_in_one_line(message: str, damage: Any, tmp_path: Path) -> None:
    spec = make_spec("gpt2")
    damage(spec)
    path = write_spec(tmp_path / "tokenizer.json", spec)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"model": ', "not valid JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"model": {"vocab": {"a": 1, "a": 2}}}', "key 'a' is given twice"),
        (b'{"model": {"vocab": {"a": ' + b"9" * 5000 + b"}}}", "not valid JSON"),
    ],
    ids=range(8),
)
def test_what_is_no_json(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer_json(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_no_file_a_folder_and_a_large_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such file"):
        load_tokenizer_json(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer_json(tmp_path)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(CheckpointError, match="larger than the limit of 67108864 bytes"):
        load_tokenizer_json(large)


def test_roles_of_the_wrong_type(tmp_path: Path) -> None:
    path = write_spec(tmp_path / "tokenizer.json", make_spec("gpt2"))
    for wrong in (7, ["x"], {"content": 7}):
        with pytest.raises(CheckpointError, match="tokenizer_config: eos_token must be a string"):
            load_tokenizer_json(path, config={"eos_token": wrong})


def write_gpt2(folder: Path, spec: Spec) -> tuple[Path, Path]:
    (folder / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in spec["model"]["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder / "vocab.json", folder / "merges.txt"


def same_ids(tokenizer: Tokenizer, spec: Spec) -> bool:
    texts = [text for text in HARD if text.isprintable() and "<" not in text]
    return all(tokenizer.encode(text) == reference(spec).encode(text).ids for text in texts)


def test_vocab_and_merges_of_gpt2(tmp_path: Path) -> None:
    spec = make_spec("gpt2")
    spec["model"]["vocab"]["<|endoftext|>"] = 1200
    tokenizer, notes = load_vocab_merges(*write_gpt2(tmp_path, spec))
    assert isinstance(tokenizer, TiktokenTokenizer), notes
    assert tokenizer.control == {"<|endoftext|>": 1200} and tokenizer.end_of_text == 1200
    assert same_ids(tokenizer, spec)
    config: Spec = {"added_tokens_decoder": {"1201": {"content": "<|im_end|>", "special": True}}}
    tokenizer, _ = load_vocab_merges(*write_gpt2(tmp_path, spec), config=config | {"eos_token": "<|im_end|>"})
    assert tokenizer.end_of_text == tokenizer.control["<|im_end|>"] == 1201


def test_vocab_and_merges_of_others(tmp_path: Path) -> None:
    files = write_gpt2(tmp_path, make_spec("qwen"))
    qwen, _ = load_vocab_merges(*files, config={"tokenizer_class": "Qwen2Tokenizer"})
    spec = make_spec("qwen") | {"added_tokens": []}
    assert qwen.encode("12 e\u0301\n\n x") == reference(spec).encode("12 e\u0301\n\n x").ids
    prefixed, notes = load_vocab_merges(*files, config={"add_prefix_space": True})
    assert prefixed.encode("a") == prefixed.encode(" a"), notes


def test_damaged_vocab_and_merges(tmp_path: Path) -> None:
    vocab_json, merges_txt = write_gpt2(tmp_path, make_spec("gpt2"))
    for config in ({"added_tokens_decoder": {"x": {"content": "y"}}}, {"added_tokens_decoder": {"1": "y"}}):
        with pytest.raises(CheckpointError, match="added_tokens_decoder '.' is not an id and a token"):
            load_vocab_merges(vocab_json, merges_txt, config=config)
    merges_txt.write_bytes(b"\xff\xff")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        load_vocab_merges(vocab_json, merges_txt)
    merges_txt.write_text("a b c\n")
    with pytest.raises(CheckpointError, match="merge 0 is not a pair"):
        load_vocab_merges(vocab_json, merges_txt)
