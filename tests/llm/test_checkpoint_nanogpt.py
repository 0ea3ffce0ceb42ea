"""nanoGPT's ckpt.pt and meta.pkl: the same logits as the bare weights, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.chat.template import Message
from llm.checkpoint import Checkpoint, load_model, open_checkpoint, save_folder, save_state_dict
from llm.checkpoint.characters import read_characters
from llm.config import COURSE_DEFAULTS
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.tokenizer import ByteTokenizer
from llm.tokenizer.chars import CharTokenizer
from tests.fakes import tiny_model
from tests.torch_writers import byte_vocabulary, nanogpt_checkpoint, write_meta

NO_BIAS = {"norm_bias": False}
ALL_BIAS = {"attention_bias": True, "attention_out_bias": True, "ffn_bias": True}
SHAKESPEARE = "\n !$&',-.3:;?" + "".join(map(chr, range(65, 91))) + "".join(map(chr, range(97, 123)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return byte_vocabulary(tmp_path) / "ckpt.pt"


def logits(checkpoint: Checkpoint) -> Tensor:
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    return model.logits(model(torch.tensor([[1, 2, 3, 60, 0]]), torch.arange(5), NoCache()))


def refusal(path: Path, num_heads: int | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, num_heads=num_heads)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("switches", [NO_BIAS, ALL_BIAS])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_same_weights_in_three_formats_give_the_same_logits(
    path: Path, switches: dict[str, bool], compiled: bool
) -> None:
    model = tiny_model(**switches)
    torch.save(nanogpt_checkpoint(model, compiled=compiled), path)
    save_state_dict(path.with_name("bare.pt"), model)
    save_folder(path.parent / "ours", model, ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "", torch.float32)
    nanogpt = open_checkpoint(path)
    assert nanogpt.config == model.config and nanogpt.kind == "nanoGPT checkpoint"
    expected = logits(open_checkpoint(path.parent / "ours"))
    assert torch.equal(logits(nanogpt), expected)
    assert torch.equal(logits(open_checkpoint(path.with_name("bare.pt"), num_heads=2)), expected)


def test_a_base_model_gets_plain_lines_and_a_warning(path: Path) -> None:
    torch.save(nanogpt_checkpoint(tiny_model(**NO_BIAS)), path)
    checkpoint = open_checkpoint(path)
    (warning,) = checkpoint.warnings
    assert warning.startswith("no chat template: conversations are written as plain")
    prompt = checkpoint.template.render([Message("user", "hi")])
    assert "".join(segment.text for segment in prompt) == "User: hi\nAssistant:"
    assert "\nUser:" in checkpoint.defaults.stop and checkpoint.defaults.stop_token_ids == {256}
    assert (checkpoint.defaults.temperature, checkpoint.defaults.top_k) == (0.8, 200)
    assert "heads: 2 of 16, from model_args" in checkpoint.notes
    assert not any("shapes do not tell" in note for note in checkpoint.notes)


def test_the_optimizer_is_neither_believed_nor_counted(path: Path) -> None:
    """The writer's optimizer holds a tensor that claims four terabytes of one number."""
    model = tiny_model(**NO_BIAS)
    torch.save(nanogpt_checkpoint(model), path)
    assert sum(open_checkpoint(path).stored.values()) == model.num_parameters() + 257 * 32  # the head twice


def test_masks_of_the_first_versions_are_left_out(path: Path) -> None:
    saved = nanogpt_checkpoint(tiny_model(**ALL_BIAS))
    saved["model"]["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(64, 64).tril().view(1, 1, 64, 64)
    torch.save(saved, path)
    assert open_checkpoint(path).config == tiny_model(**ALL_BIAS).config


def test_a_padded_vocabulary_is_noted(tmp_path: Path) -> None:
    """50304 rows of GPT-2's 50257 ids, as nanoGPT pads it, with the vocabulary we ship."""
    torch.save(
        nanogpt_checkpoint(tiny_model(vocab_size=50304, width=16, ffn_width=16, **NO_BIAS)),
        tmp_path / "ckpt.pt",
    )
    notes = open_checkpoint(tmp_path / "ckpt.pt").notes
    assert "vocabulary: 50304 rows, 50257 known to the tokenizer, the other 47 are never drawn" in notes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n_layer": 12}, "model_args: n_layer is 12, the tensors have 2"),
        ({"n_embd": 768}, "model_args: n_embd is 768, the tensors have 32"),
        ({"block_size": 1024}, "model_args: block_size is 1024, the tensors have 64"),
        ({"vocab_size": 50304}, "model_args: vocab_size is 50304, the tensors have 257"),
        ({"bias": True}, "model_args: bias is True, the tensors say otherwise"),
        ({"n_head": 3}, "width 32 is not a multiple of 3 heads"),
        ({"n_head": 0}, "model_args: n_head must be a whole number from 1"),
        ({"n_head": 1 << 60}, "model_args: n_head must be a whole number from 1"),
        ({"n_head": "4"}, "model_args: n_head must be a whole number from 1"),
        ({"n_layer": [1]}, "model_args: n_layer must be a whole number from 1"),
        ({"bias": "no"}, "model_args: bias must be true or false"),
    ],
)
def test_arguments_that_contradict_the_tensors_are_refused(
    path: Path, arguments: dict[str, Any], said: str
) -> None:
    torch.save(nanogpt_checkpoint(tiny_model(**NO_BIAS), **arguments), path)
    assert said in refusal(path)


def test_an_absent_or_empty_argument_is_no_contradiction(path: Path) -> None:
    saved = nanogpt_checkpoint(tiny_model(**NO_BIAS), vocab_size=None)
    del saved["model_args"]["bias"], saved["config"]
    torch.save(saved, path)
    assert open_checkpoint(path, num_heads=2).config == tiny_model(**NO_BIAS).config
    assert "model_args: n_head is 2, 4 was asked for" in refusal(path, 4)


@pytest.fixture
def characters(tmp_path: Path) -> Path:
    """A character-level ckpt.pt with nothing beside it."""
    torch.save(nanogpt_checkpoint(tiny_model(vocab_size=65, **NO_BIAS)), tmp_path / "ckpt.pt")
    return tmp_path


def test_a_character_level_model_reads_its_characters(characters: Path) -> None:
    assert len(SHAKESPEARE) == 65
    write_meta(characters / "meta.pkl", SHAKESPEARE)
    checkpoint = open_checkpoint(characters / "ckpt.pt")
    assert isinstance(checkpoint.tokenizer, CharTokenizer) and checkpoint.tokenizer.vocab_size == 65
    ids = checkpoint.tokenizer.encode("To be")
    assert ids == [SHAKESPEARE.index(c) for c in "To be"] and checkpoint.tokenizer.decode(ids) == "To be"
    assert not checkpoint.defaults.stop_token_ids
    logits(checkpoint)


def test_a_character_level_model_without_characters_says_what_to_do(characters: Path) -> None:
    said = refusal(characters / "ckpt.pt")
    assert "the embedding has 65 rows, fewer than GPT-2's 50257 ids" in said
    assert "meta.pkl" in said and said.endswith("this one was trained on shakespeare_char")
    write_meta(characters / "meta.pkl", SHAKESPEARE[:64])
    assert "the embedding has 65 rows" in refusal(characters / "ckpt.pt")


def test_another_models_characters_are_not_taken(path: Path) -> None:
    (path.parent / "tokenizer.tiktoken").unlink()
    write_meta(path.with_name("meta.pkl"), SHAKESPEARE)
    torch.save(nanogpt_checkpoint(tiny_model(vocab_size=50257, width=16, ffn_width=16, **NO_BIAS)), path)
    notes = open_checkpoint(path).notes
    assert any("meta.pkl ignored, its 65 characters are not 50257 rows" in note for note in notes)


class Runs:
    """Unpickling this calls something."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_a_plain_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    text = "\n é漢🙂" + "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    meta = {
        "vocab_size": len(text),
        "itos": dict(enumerate(text)),
        "stoi": {c: i for i, c in enumerate(text)},
    }
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol=protocol))
    assert read_characters(tmp_path / "meta.pkl") == list(text)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_does_not(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "pwned"
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": Runs(target), "stoi": {}}, protocol=protocol))
    with pytest.raises(CheckpointError, match="meta.pkl: its pickle holds"):
        read_characters(tmp_path / "meta.pkl")
    assert not target.exists()


def meta(**changes: Any) -> bytes:
    values = {"vocab_size": 2, "itos": {0: "a", 1: "b"}, "stoi": {"a": 0, "b": 1}}
    return pickle.dumps(values | changes)


def deep(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a readable pickle"),
        (b"hello", "its pickle holds OBJ"),
        (meta()[:-20], "not a readable pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "its pickle holds GLOBAL 'os system'"),
        (b"\x80\x04Pid\n.", "its pickle holds PERSID"),
        (b"\x80\x04}r\xff\xff\xff\xff.", "its pickle says LONG_BINPUT 4294967295, at most 9"),
        (b"}p999999999999\n.", "its pickle says PUT 999999999999"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.", "not a readable pickle"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "its pickle says FRAME"),
        (b"}" + b"".join(b"I%d\nI1\ns" % (n * ((1 << 61) - 1)) for n in range(30_000)) + b".", "says INT "),
        (pickle.dumps({1 << 61: 1}), "its pickle holds LONG1"),
        (b"\x80\x04h\x07.", "not a readable pickle"),
        (b"\x80\x04}]]s.", "not a readable pickle"),
        (deep(200_000), "expected a dict of vocab_size"),
        (b"\x80\x04.", "not a readable pickle"),
        (b"I" + b"9" * 10_000 + b"\n.", "not a readable pickle"),
        (pickle.dumps([1]), "expected a dict of vocab_size"),
        (pickle.dumps({1: 2}), "expected a dict of vocab_size"),
        (pickle.dumps({"itos": {0: "a"}}), "stoi is missing"),
        (meta(itos=["a", "b"]), "itos and stoi must be dicts"),
        (meta(itos={}, stoi={}), "itos and stoi must be dicts, and not empty"),
        (meta(itos={0: "a", 2: "b"}), "itos must map each of 0 to 1 to one character"),
        (meta(itos={0: "a", 1: "bc"}), "itos must map each of 0 to 1 to one character"),
        (meta(itos={0: "a", 1: 7}), "itos must map each of 0 to 1 to one character"),
        (meta(itos={0: "a", 1: []}), "itos must map each of 0 to 1 to one character"),
        (meta(stoi={"a": 1, "b": 0}), "stoi is not the inverse of itos"),
        (meta(itos={0: "a", 1: "a"}), "stoi is not the inverse of itos"),
        (meta(vocab_size=3), "vocab_size is not 2"),
        (b"x" * ((1 << 20) + 1), "larger than the limit of 1048576 bytes"),
    ],
)
def test_a_damaged_or_hostile_meta_is_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_characters(tmp_path / "meta.pkl")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'meta.pkl'}: ") and said in message and "\n" not in message


def test_a_surrogate_is_no_character(characters: Path) -> None:
    write_meta(characters / "meta.pkl", SHAKESPEARE[:64] + "\ud800")
    assert "meta.pkl: itos: token 64 must be one character" in refusal(characters / "ckpt.pt")
