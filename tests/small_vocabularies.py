"""Small tokenizer.json files of every family, trained on the spot by the reference library."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llm.tokenizer.patterns import PATTERNS
from tests.hard_text import HARD

ROOT = Path(__file__).parent.parent
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLACEHOLDER = [f"<name_{n}>" for n in range(14)]
Spec = dict[str, Any]

_CORPUS = [
    *(text.encode(errors="replace").decode() for text in HARD),
    *(ROOT / "README.md").read_text().splitlines(keepends=True),
    *(ROOT / "tests/hard_text.py").read_text().splitlines(keepends=True),
]


def _byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern].regex), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _trained(tokenizer: Tokenizer, trainer: Any) -> Spec:
    tokenizer.train_from_iterator(_CORPUS, trainer)
    spec: Spec = json.loads(tokenizer.to_str())
    return spec


@cache
def _text_of(family: str) -> str:
    return json.dumps(_MAKERS[family]())


def make_spec(family: str) -> Spec:
    """A fresh tokenizer.json of that family, as an object to damage at will."""
    spec: Spec = json.loads(_text_of(family))
    return spec


def write_spec(path: Path, spec: Spec) -> Path:
    path.write_text(json.dumps(spec))
    return path


def reference(spec: Spec) -> Tokenizer:
    """The library's own reading, with control tokens in text left as text."""
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.encode_special_tokens = True
    return tokenizer


def gpt2() -> Spec:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spec = _trained(tokenizer, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet))
    spec["added_tokens"] = [_special("<|endoftext|>", len(spec["model"]["vocab"]))]
    return spec


def smollm() -> Spec:
    """Control tokens first, digits apart, and bytes that the corpus lacks have no token."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=[*CHATML, *PLACEHOLDER])
    tokenizer.train_from_iterator(_CORPUS[3:11] + _CORPUS[40:], trainer)
    spec: Spec = json.loads(tokenizer.to_str())
    return spec


def llama3() -> Spec:
    """Whole pieces looked up first, two tokens that no merge makes, begin of text by the post-processor."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = _byte_level("llama3")
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spec = _trained(tokenizer, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet))
    vocab = spec["model"]["vocab"]
    for token in ("Ġantidisestablishmentarianism", "Ġqqqqqzzzz"):
        vocab[token] = len(vocab)
    first = len(vocab)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
    spec["added_tokens"] = [_special(name, first + n) for n, name in enumerate(names)]
    begin = {"SpecialToken": {"id": names[0], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, text],
        "special_tokens": {names[0]: {"id": names[0], "ids": [first], "tokens": [names[0]]}},
    }
    return spec


def qwen() -> Spec:
    """Composed form first, and added tokens that are no control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _byte_level("qwen2")
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spec = _trained(tokenizer, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet))
    first = len(spec["model"]["vocab"])
    spec["added_tokens"] = [_special(name, first + n) for n, name in enumerate(CHATML)]
    for n, name in enumerate(["<think>", "</think>", "<|im", "é́"], start=first + 3):
        spec["added_tokens"].append({**_special(name, n), "special": False, "normalized": name == "é́"})
    return spec


def _sentence_piece_bpe() -> Spec:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1400, limit_alphabet=300, special_tokens=["<unk>", "<s>", "</s>", *fallback]
    )
    spec = _trained(tokenizer, trainer)
    spec["added_tokens"] = spec["added_tokens"][:3]
    return spec


def metaspace_first() -> Spec:
    """Llama-2 as it is converted today: a space before the first word of a text only."""
    spec = _sentence_piece_bpe()
    steps: list[Spec] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    spec["decoder"] = {"type": "Sequence", "decoders": steps}
    return spec


def prepend() -> Spec:
    """Llama-2 as it was converted first: a space before every stretch of text."""
    spec = metaspace_first()
    spec["pre_tokenizer"] = None
    steps: list[Spec] = [{"type": "Prepend", "prepend": "▁"}]
    steps += [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    spec["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return spec


def unigram() -> Spec:
    """Control tokens are pieces of the model, with the best score of all."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special: list[str | AddedToken] = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>")
    return _trained(tokenizer, trainer)


def _special(content: str, token_id: int) -> Spec:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}


_MAKERS = {
    "gpt2": gpt2,
    "smollm": smollm,
    "llama3": llama3,
    "qwen": qwen,
    "metaspace": metaspace_first,
    "prepend": prepend,
    "unigram": unigram,
}
ON_TIKTOKEN = ("gpt2", "smollm", "llama3", "qwen")
ON_LIBRARY = ("metaspace", "prepend", "unigram")
FAMILIES = ON_TIKTOKEN + ON_LIBRARY
