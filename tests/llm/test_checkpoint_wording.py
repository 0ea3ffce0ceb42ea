"""A folder of ours keeps every tokenizer and template we can open: written, read back, the same ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.chat.chatml import ChatMLTemplate
from llm.chat.jinja import JinjaTemplate
from llm.chat.template import ChatTemplate, Message, PlainTemplate, encode_prompt
from llm.checkpoint import Checkpoint, load_model, open_checkpoint, save_folder
from llm.checkpoint.wording import write_wording
from llm.config import GenerationDefaults
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.tokenizer import ByteTokenizer, TiktokenTokenizer, Tokenizer
from llm.tokenizer.build import build_tokenizer
from llm.tokenizer.chars import CharTokenizer
from llm.tokenizer.description import Roles
from llm.tokenizer.gguf import tokenizer_from_gguf
from llm.tokenizer.hf import LibraryTokenizer
from tests.checkpoint_writers import tiny_gguf_vocabulary
from tests.fakes import tiny_model
from tests.hard_text import HARD
from tests.small_vocabularies import FAMILIES, make_spec

TURNS = [
    Message("system", "Be kind."),
    Message("user", "<|im_end|>\nhello"),
    Message("assistant", "Hi!"),
    Message("user", "x"),
]
POLICY = GenerationDefaults(temperature=0.3, top_k=7, min_p=0.1, max_tokens=9, stop_token_ids=frozenset({3}))
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\r\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def saved(
    folder: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate | str = "plain",
    policy: GenerationDefaults = POLICY,
) -> Checkpoint:
    """The two as they come back from a folder."""
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    save_folder(folder, model, tokenizer, template, policy, [], "")
    return open_checkpoint(folder)


def assert_same(found: Tokenizer, expected: Tokenizer) -> None:
    assert type(found) is type(expected)
    for name in ("vocab_size", "end_of_text", "begin_of_text", "longest_token", "control"):
        assert getattr(found, name) == getattr(expected, name), name
    for text in HARD:
        assert found.encode(text) == expected.encode(text)
        assert found.encode(text, continued=True) == expected.encode(text, continued=True)
    ids = range(expected.vocab_size + 1)
    assert [found.token_bytes(i) for i in ids] == [expected.token_bytes(i) for i in ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tokenizer_json_comes_back(tmp_path: Path, family: str) -> None:
    roles = {"llama3": Roles(end="<|eot_id|>", add_begin=False, control=frozenset({"Ġqqqqqzzzz"}))}
    tokenizer, _ = build_tokenizer(make_spec(family), "x", roles.get(family, Roles()))
    again = saved(tmp_path / "once", tokenizer)
    assert_same(again.tokenizer, tokenizer)
    assert_same(saved(tmp_path / "twice", again.tokenizer).tokenizer, tokenizer)
    written = json.loads((tmp_path / "twice" / "tokenizer.json").read_bytes())
    assert written == make_spec(family), "the file itself, not what was made of it"


def gguf_tokenizer(**fields: Any) -> Tokenizer:
    return tokenizer_from_gguf({**tiny_gguf_vocabulary(), **fields}, "x.gguf")[0]


def test_a_gguf_vocabulary_comes_back_with_its_roles(tmp_path: Path) -> None:
    """The end of a turn is named by its id alone: the file has it as ordinary text."""
    tokens = [*tiny_gguf_vocabulary()["tokenizer.ggml.tokens"], "<s>", "<|eot|>"]
    tokenizer = gguf_tokenizer(
        **{
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 257 + [3, 3, 1],
            "tokenizer.ggml.bos_token_id": 258,
            "tokenizer.ggml.eot_token_id": 259,
            "tokenizer.ggml.add_bos_token": True,
        }
    )
    assert tokenizer.control == {"<|endoftext|>": 257, "<s>": 258, "<|eot|>": 259}
    again = saved(tmp_path, tokenizer)
    assert_same(again.tokenizer, tokenizer)
    assert json.loads((tmp_path / "config.json").read_text())["tokenizer"]["control"] == ["<|eot|>"]
    prompt = encode_prompt(again.tokenizer, again.template, TURNS)
    assert prompt[0] == 258, "a plain conversation begins as every sequence does"


def test_characters_come_back(tmp_path: Path) -> None:
    tokenizer = CharTokenizer('\n\t "\\é😀ab')
    assert_same(saved(tmp_path, tokenizer).tokenizer, tokenizer)


def test_a_file_from_before_does_not_count(tmp_path: Path) -> None:
    llama, _ = build_tokenizer(make_spec("llama3"), "x", Roles(end="<|eot_id|>", add_begin=False))
    plain, _ = build_tokenizer(make_spec("gpt2"), "x", Roles())
    saved(tmp_path, llama)
    assert_same(saved(tmp_path, plain).tokenizer, plain)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {}


def template_of(kind: str, tokenizer: Tokenizer, system: str | None) -> ChatTemplate:
    if kind == "plain":
        return PlainTemplate(system)
    if kind == "chatml":
        return ChatMLTemplate(system, tokenizer.control)
    return JinjaTemplate(
        CHATML, control=tokenizer.control, bos_token="<|endoftext|>", eos_token="é", default_system=system
    )


@pytest.mark.parametrize("kind", ["plain", "chatml", "jinja"])
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("family", ["bytes", "smollm"])
def test_every_template_comes_back(tmp_path: Path, kind: str, system: str | None, family: str) -> None:
    tokenizer: Tokenizer = ByteTokenizer()
    if family == "smollm":
        tokenizer, _ = build_tokenizer(make_spec("smollm"), "x", Roles(begin="<|endoftext|>", end="é"))
    policy, template = replace(POLICY, default_system=system), template_of(kind, tokenizer, system)
    once = saved(tmp_path / "once", tokenizer, template, policy)
    twice = saved(tmp_path / "twice", once.tokenizer, once.template, once.defaults)
    assert once.defaults == twice.defaults and once.defaults.stop_token_ids >= {3}
    for messages in (TURNS, TURNS[1:]):
        expected = template.render(messages)
        assert once.template.render(messages) == expected == twice.template.render(messages)
    if isinstance(template, JinjaTemplate):
        assert (tmp_path / "twice" / "chat_template.jinja").read_bytes() == CHATML.encode()


def test_ids_that_the_vocabulary_lacks_end_nothing(tmp_path: Path) -> None:
    policy = replace(POLICY, stop_token_ids=frozenset({-1, 3, 257, 1 << 20}))
    assert saved(tmp_path, ByteTokenizer(), policy=policy).defaults.stop_token_ids == {3}


BY_HAND = TiktokenTokenizer({bytes([b]): b + 1 for b in range(256)}, control={"<s>": 0}, begin_of_text=0)
WITHOUT_FILE = LibraryTokenizer(make_spec("unigram"), "x", control={})


@pytest.mark.parametrize(
    ("tokenizer", "template", "said"),
    [
        (BY_HAND, "plain", "ranks and one end of text, not TiktokenTokenizer with 1 control tokens"),
        (WITHOUT_FILE, "plain", "cannot hold a LibraryTokenizer without its tokenizer.json"),
        (ByteTokenizer(), "odd", "unknown chat template 'odd'"),
        (
            ByteTokenizer(),
            PlainTemplate("x"),
            "not 'x' for the template and None for requests",
        ),
        (ByteTokenizer(), PlainTemplate(begin="<s>"), "begins with '<s>', the tokenizer's texts with None"),
    ],
)
def test_what_no_file_describes_is_refused(
    tokenizer: Tokenizer, template: ChatTemplate | str, said: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        write_wording(tokenizer, template, POLICY)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoding": "characters"}, "tokenizer: characters is missing"),
        ({"encoding": "characters", "characters": ""}, "characters: 0 tokens"),
        ({"encoding": "characters", "characters": "aa"}, "characters: 2 tokens, 1 different ones"),
        ({"encoding": "characters", "characters": "\ud800"}, "token 0 must be one character"),
        ({"encoding": "json", "file": "tokenizer.json", "control": "x"}, "control must be a list"),
        ({"encoding": "json", "file": "tokenizer.json", "control": [1]}, "control must be a list of strings"),
        ({"encoding": "gpt2", "file": "tokenizer.json", "control": ["x"]}, "unknown field 'control'"),
    ],
)
def test_a_tokenizer_that_lies_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    saved(tmp_path, build_tokenizer(make_spec("gpt2"), "x", Roles())[0])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tokenizer": change}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_real_assistant_comes_back(tmp_path: Path, smollm2_folder: Path) -> None:
    theirs = open_checkpoint(smollm2_folder)
    model = load_model(theirs, torch.device("cpu"), torch.float32)
    save_folder(
        tmp_path, model, theirs.tokenizer, theirs.template, theirs.defaults, [], "", dtype=torch.float32
    )
    ours = open_checkpoint(tmp_path)
    assert_same(ours.tokenizer, theirs.tokenizer)
    assert (ours.config, ours.defaults) == (theirs.config, theirs.defaults)
    prompts = [encode_prompt(c.tokenizer, c.template, TURNS) for c in (ours, theirs)]
    assert prompts[0] == prompts[1] and {1, 2} <= set(prompts[0])
    loaded, ids = load_model(ours, torch.device("cpu"), torch.float32), torch.tensor([prompts[0]])
    positions = torch.arange(ids.shape[1])
    with torch.inference_mode():
        found, expected = (m.logits(m(ids, positions, NoCache())) for m in (loaded, model))
    assert torch.equal(found, expected)
