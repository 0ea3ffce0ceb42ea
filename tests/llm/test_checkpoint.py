"""Which format a path is, and which checkpoint is served when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm.checkpoint import find_checkpoint, open_checkpoint, save_folder, save_state_dict
from llm.checkpoint.hf.open import open_hf_folder
from llm.checkpoint.record import file_digest, files_digest
from llm.config import COURSE_DEFAULTS
from llm.errors import CheckpointError
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model
from tests.torch_writers import byte_vocabulary


def test_a_persons_own_model_comes_before_the_default(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no model_sft.pt, no model.pt, no causette"):
        find_checkpoint(tmp_path)
    save_folder(folder / "causette", tiny_model(), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "")
    path, reason = find_checkpoint(tmp_path)
    assert path == folder / "causette" and "neither model_sft.pt nor model.pt" in reason
    save_state_dict(folder / "model.pt", tiny_model())
    path, reason = find_checkpoint(tmp_path)
    assert path == folder / "model.pt" and "WARNING" in reason and "not be assistant-shaped" in reason
    save_state_dict(folder / "model_sft.pt", tiny_model())
    path, reason = find_checkpoint(tmp_path)
    assert path == folder / "model_sft.pt" and "WARNING" not in reason


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "absent.pt")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable() and str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def test_a_folder_of_nothing_says_what_was_looked_for(tmp_path: Path) -> None:
    looked_for = (
        "no checkpoint in this folder: looked for config.json and its weights, lit_model.pth, a .gguf"
    )
    assert looked_for in refusal(tmp_path)
    (tmp_path / "README.md").write_text("# weights elsewhere")
    (tmp_path / "model.gguf").mkdir()
    assert looked_for in refusal(tmp_path)


def test_our_own_folder_by_itself_or_by_its_files(tmp_path: Path) -> None:
    save_folder(tmp_path / "tiny", tiny_model(), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "")
    for path in (
        tmp_path / "tiny",
        tmp_path / "tiny" / "config.json",
        tmp_path / "tiny" / "model.safetensors",
    ):
        checkpoint = open_checkpoint(path)
        assert (checkpoint.path, checkpoint.kind) == (tmp_path / "tiny", "folder")
    lone = tmp_path / "model.safetensors"
    lone.write_bytes((tmp_path / "tiny" / "model.safetensors").read_bytes())
    assert "a safetensors file: name the folder that holds it and its config.json" in refusal(lone)


def test_one_torch_file_in_a_folder_is_the_model_and_two_are_a_question(tmp_path: Path) -> None:
    save_state_dict(tmp_path / "a.pt", tiny_model(vocab_size=50304, width=64))
    assert open_checkpoint(tmp_path).kind == "state dict"
    save_state_dict(tmp_path / "b.pt", tiny_model(vocab_size=50304, width=64))
    assert "holds 2 models, name one: a.pt, b.pt" in refusal(tmp_path)


def test_gguf_files_and_their_parts(tmp_path: Path) -> None:
    for part in ("m-00002-of-00003.gguf", "m-00003-of-00003.gguf", "m-00001-of-00003.gguf"):
        (tmp_path / part).write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert refusal(tmp_path).startswith("/m-00001-of-00003.gguf: "), "the first part stands for all"
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert "holds 2 models, name one: m-00001-of-00003.gguf, other.gguf" in refusal(tmp_path)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "a LoRA adapter, not a model" in refusal(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"PK")
    assert "a LoRA adapter, not a model" in refusal(tmp_path)


def test_litgpts_folder_goes_to_litgpt(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "lit_model.pth").write_bytes(b"PK")
    assert "model_config.yaml" in refusal(tmp_path)


def test_a_config_that_names_no_format_is_judged_as_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "format is missing" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "model_type is missing" in refusal(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        open_hf_folder(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"\x00" * 32, b"hello, this is text", b"{}"])
def test_a_file_of_nothing_we_know_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    assert ("not a format we read" if content else "the file is empty") in refusal(tmp_path / "model.bin")


def test_a_folder_that_holds_one_file_gives_it_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-run"
    folder.mkdir()
    byte_vocabulary(folder)
    save_state_dict(folder / "model_sft.pt", tiny_model())
    assert open_checkpoint(folder, num_heads=2).name == "my-run"
    assert open_checkpoint(folder / "model_sft.pt", num_heads=2).name == "model_sft"
    save_state_dict(folder / "model_2.pt", tiny_model())
    with pytest.raises(CheckpointError, match="holds 2 models, name one: model_2.pt, model_sft.pt"):
        open_checkpoint(folder)


def test_a_large_file_is_known_by_samples_and_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.checkpoint.record.WHOLE_DIGEST_BYTES", 1000)
    monkeypatch.setattr("llm.checkpoint.record.DIGEST_SAMPLES", 4)
    monkeypatch.setattr("llm.checkpoint.record.DIGEST_SAMPLE_BYTES", 100)

    def digest(content: bytes) -> str:
        (tmp_path / "file").write_bytes(content)
        return file_digest(tmp_path / "file")

    zeros = digest(bytes(1001))
    changed = [digest(bytes(at) + b"x" + bytes(1000 - at)) for at in (0, 350, 1000)]
    assert len({zeros, *changed, digest(bytes(1002)), digest(bytes(1000))}) == 6
    assert digest(bytes(150) + b"x" + bytes(850)) == zeros, "between the samples"
    other = tmp_path / "other"
    other.write_bytes(b"other")
    both = files_digest([tmp_path / "file", other])
    assert both not in (zeros, files_digest([other, tmp_path / "file"])) and len(both) == len(zeros) == 16
