"""Our folder format: what is saved comes back, and a folder that lies is refused in one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.chat.template import Message
from llm.checkpoint import load_model, open_checkpoint, save_folder
from llm.config import COURSE_DEFAULTS, GenerationDefaults
from llm.errors import CheckpointError
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.tokenizer import ByteTokenizer, TiktokenTokenizer, load_tiktoken
from llm.tokenizer.byte_level import ALPHABET
from tests.fakes import tiny_model

CPU = torch.device("cpu")
SHIPPED = Path(__file__).parents[2] / "checkpoints" / "causette" / "tokenizer.tiktoken"


def logits(model: Decoder) -> Tensor:
    ids = torch.tensor([[1, 2, 3, 250, 0]])
    return model.logits(model(ids, torch.arange(5), NoCache()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "tiny", tiny_model(), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "# Tiny\n")
    return tmp_path / "tiny"


def edit(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    """Change one JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refusal(path: Path) -> str:
    """The one line with which a checkpoint is refused, at the latest when its weights are read."""
    with pytest.raises(CheckpointError) as caught:
        load_model(open_checkpoint(path), CPU, torch.float32)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_gives_identical_logits(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = (
        tiny_model(tied_head=tied, ffn_bias=True, activation="gelu_tanh", num_kv_heads=1).to(dtype).float()
    )
    save_folder(tmp_path / "a", model, ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "card", dtype=dtype)
    checkpoint = open_checkpoint(tmp_path / "a")
    loaded = load_model(checkpoint, CPU, torch.float32)
    assert checkpoint.config == model.config
    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_everything_but_the_weights_comes_back(folder: Path) -> None:
    checkpoint = open_checkpoint(f"{folder}/")
    assert (checkpoint.name, checkpoint.kind, checkpoint.template.name) == ("tiny", "folder", "plain")
    assert checkpoint.defaults == COURSE_DEFAULTS
    assert checkpoint.template.default_system == COURSE_DEFAULTS.default_system
    assert isinstance(checkpoint.tokenizer, ByteTokenizer)
    assert len(checkpoint.digest) == 16 and checkpoint.notes == []
    assert (folder / "README.md").read_text() == "# Tiny\n"


def test_the_vocabulary_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    tokenizer = load_tiktoken(SHIPPED)
    save_folder(tmp_path, tiny_model(vocab_size=50304), tokenizer, "plain", GenerationDefaults(), [], "")
    assert (tmp_path / "tokenizer.tiktoken").read_bytes() == SHIPPED.read_bytes()
    assert "47 are never drawn" in open_checkpoint(tmp_path).notes[0]


def test_saving_again_replaces_and_leaves_nothing_behind(folder: Path) -> None:
    before, files = open_checkpoint(folder).digest, sorted(p.name for p in folder.iterdir())
    save_folder(folder, tiny_model(seed=1), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "# Again\n")
    assert open_checkpoint(folder).digest != before
    assert sorted(p.name for p in folder.iterdir()) == files
    modes = {p.stat().st_mode for p in folder.iterdir()}
    assert len(modes) == 1, "weights readable by whoever reads the rest (safetensors writes 0600)"


def test_a_diverged_model_is_not_saved(folder: Path) -> None:
    model, before = tiny_model(), open_checkpoint(folder).digest
    with torch.no_grad():
        model.tokens.weight[0, 0] = 1e6  # finite in float32, infinite in float16
    with pytest.raises(
        CheckpointError, match="tokens.weight holds weights that are not finite in torch.float16"
    ):
        save_folder(folder, model, ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "")
    assert open_checkpoint(folder).digest == before


def test_an_absent_policy_is_openais_and_an_unknown_field_is_reported(folder: Path) -> None:
    edit(folder / "generation_config.json", lambda v: v.update(do_sample=True, pad_token_id=None, top_p=None))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.defaults.top_p == 1.0
    assert checkpoint.notes == ["sampling: ignored in generation_config.json: do_sample"]
    (folder / "generation_config.json").unlink()
    assert open_checkpoint(folder).defaults == GenerationDefaults()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(quantization=4), "quantization must be an object"),
        (lambda v: v["model"].update(rope=True), "model: unknown field 'rope'"),
        (lambda v: v["model"].pop("num_heads"), "model: num_heads is missing"),
        (lambda v: v["model"].update(width="32"), "width must be a whole number"),
        (lambda v: v["model"].update(width=True), "width must be a whole number"),
        (lambda v: v["model"].update(width=33), "width 33 is not a multiple of num_heads 2"),
        (
            lambda v: v["model"].update(vocab_size=1 << 40),
            "vocab_size must be a whole number from 1 to 16777216",
        ),
        (lambda v: v["model"].update(norm_eps=0), "norm_eps must be a number from"),
        (lambda v: v["model"].update(tied_head=1), "tied_head must be true or false"),
        (lambda v: v["model"].update(activation="relu"), "activation must be gelu or gelu_tanh"),
        (lambda v: v["model"].update(num_layers=1 << 24), "num_layers is 16777216, the file has only"),
        (lambda v: v["model"].update(num_positions=1 << 24), "positions.weight has shape [64, 32]"),
        (lambda v: v["model"].update(vocab_size=100), "the tokenizer has 257 ids, vocab_size is only 100"),
        (lambda v: v.update(model=[]), "model must be an object"),
        (lambda v: v.update(version=2), "version 2 is newer"),
        (lambda v: v.update(format="other"), "format must be 'causerie'"),
        (lambda v: v.update(template="other"), "unknown chat template 'other', known: plain, chatml, jinja"),
        (lambda v: v.update(template="jinja"), "chat_template.jinja: no such file"),
        (lambda v: v.update(tokenizer={"encoding": "json", "file": "t"}), "file 't' is not there"),
        (lambda v: v.pop("template"), "template is missing"),
        (lambda v: v.update(tokenizer={"encoding": "gpt2"}), "tokenizer: file is missing"),
        (lambda v: v.update(tokenizer={"encoding": "bytes", "file": "x"}), "tokenizer: unknown field 'file'"),
        (lambda v: v.update(tokenizer={"encoding": "gpt2", "file": "t"}), "file 't' is not there"),
        (lambda v: v.update(tokenizer={"encoding": "gpt2", "file": "../t"}), "inside the folder"),
        (lambda v: v.update(tokenizer={"encoding": "gpt2", "file": "/etc/passwd"}), "inside the folder"),
        (lambda v: v.update(tokenizer={"encoding": "gpt2", "file": ".."}), "inside the folder"),
        (lambda v: (v.clear(), v.update(model_type="gpt2")), "config.json: n_embd is missing"),
    ],
)
def test_a_config_that_lies_is_refused(folder: Path, change: Callable[[dict], object], said: str) -> None:  # type: ignore[type-arg]
    edit(folder / "config.json", change)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"format": NaN}', "NaN is not a number"),
        ('{"format": "causerie", "format": "x"}', "key 'format' is given twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "larger than the limit"),
        ("\udc80", "not valid JSON"),
    ],
)
def test_a_config_that_is_no_json_is_refused(folder: Path, text: str, said: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 3}, "temperature must be a number from 0 to 2"),
        ({"top_p": 0}, "top_p must be a number"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number"),
        ({"stop_strings": [""]}, "stop_strings must be"),
        ({"stop_strings": "x"}, "stop_strings must be a list"),
        ({"default_system": "x" * 5000}, "the limit is 4096"),
    ],
)
def test_a_policy_out_of_range_is_refused(folder: Path, change: dict[str, object], said: str) -> None:
    edit(folder / "generation_config.json", lambda v: v.update(change))
    assert said in refusal(folder)


def test_a_symlink_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "t.tiktoken").symlink_to(SHIPPED)
    edit(folder / "config.json", lambda v: v.update(tokenizer={"encoding": "gpt2", "file": "t.tiktoken"}))
    assert "inside the folder" in refusal(folder)


def test_a_folder_without_its_parts_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: no such file" in refusal(folder)
    (folder / "config.json").unlink()
    assert "no checkpoint in this folder: looked for config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("norm.weight"), "missing norm.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda t: t.update({"a\nb": torch.zeros(1)}), r"unexpected 'a\nb'"),
        (
            lambda t: t.update({"norm.weight": torch.zeros(31)}),
            "norm.weight has shape [31], config.json says [32]",
        ),
        (lambda t: t.update({"norm.weight": torch.zeros(32, dtype=torch.int32)}), "norm.weight has type I32"),
        (lambda t: t.update({"norm.weight": torch.full((32,), torch.nan)}), "norm.weight holds NaN"),
        (lambda t: t.update({"norm.bias": torch.full((32,), torch.inf)}), "norm.bias holds NaN or infinite"),
    ],
)
def test_weights_that_differ_from_the_config_are_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert said in refusal(folder)


def header(shape: list[int], end: int, dtype: str = "F32") -> bytes:
    text = json.dumps({"norm.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 1 << 60) + b"{}",
        header([32], 1 << 40) + b"\x00" * 128,
        header([1 << 40, 1 << 40], 128) + b"\x00" * 128,
        header([32], 64) + b"\x00" * 64,
        header([32], 128, "F99") + b"\x00" * 128,
        struct.pack("<Q", 6) + b"[" * 6,
    ],
)
def test_a_lying_safetensors_header_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "not a readable safetensors file" in refusal(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])
    assert "not a readable safetensors file" in refusal(folder)


def test_a_file_swapped_after_opening_is_refused(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    save_file({"norm.weight": torch.zeros(32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="changed since the checkpoint was opened"):
        load_model(checkpoint, CPU, torch.float32)


def test_every_config_field_is_in_the_file(folder: Path) -> None:
    written = json.loads((folder / "config.json").read_text())["model"]
    assert written == json.loads(json.dumps(asdict(tiny_model().config)))


def test_heads_cannot_contradict_the_config(folder: Path) -> None:
    assert open_checkpoint(folder, num_heads=2).config.num_heads == 2
    with pytest.raises(CheckpointError, match="num_heads is 2, 4 was asked for"):
        open_checkpoint(folder, num_heads=4)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_chatml_is_a_template_too(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v.update(template="chatml"))
    edit(folder / "generation_config.json", lambda v: v.update(stop_strings=[]))
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.template.name, checkpoint.defaults.stop) == ("chatml", ("<|im_end|>",))
    assert checkpoint.template.default_system == COURSE_DEFAULTS.default_system


def test_a_template_of_its_own(folder: Path) -> None:
    edit(folder / "config.json", lambda v: v.update(template="jinja"))
    edit(folder / "generation_config.json", lambda v: v.update(stop_strings=[]))
    (folder / "chat_template.jinja").write_text(CHATML)
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.template.name, checkpoint.defaults.stop) == ("jinja", ("<|im_end|>",))
    assert "briefly" in checkpoint.template.render([Message("user", "hello")])[0].text
    (folder / "chat_template.jinja").write_text("{% for %}")
    assert "chat template" in refusal(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "not UTF-8" in refusal(folder)


def test_a_tokenizer_json_of_its_own(folder: Path) -> None:
    vocab = {char: byte for byte, char in ALPHABET.items()}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "pre_tokenizer": split,
                "decoder": split,
                "model": {"type": "BPE", "vocab": vocab, "merges": []},
            }
        )
    )
    spec = {"encoding": "json", "file": "tokenizer.json"}
    edit(folder / "config.json", lambda v: v.update(tokenizer=spec))
    assert open_checkpoint(folder).tokenizer.encode("ab") == [97, 98]
    (folder / "tokenizer.json").write_text("{")
    assert "not valid JSON" in refusal(folder)


def test_a_vocabulary_that_a_folder_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    ranks = {bytes([value]): value + 2 for value in range(256)}
    tokenizer = TiktokenTokenizer(ranks, control={"<|im_start|>": 0, "<|im_end|>": 1})
    with pytest.raises(CheckpointError, match="not TiktokenTokenizer with 2 control tokens"):
        save_folder(tmp_path / "x", tiny_model(), tokenizer, "plain", COURSE_DEFAULTS, [], "")
    assert not (tmp_path / "x").exists()
