"""The inspection command: every fact of a checkpoint on a line, and refusals with exit status 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm.checkpoint import open_checkpoint, save_folder
from llm.checkpoint.inspect import main
from llm.config import COURSE_DEFAULTS
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model

LLAMA = {"norm": "rms", "activation": "swiglu", "rope_theta": 10000.0, "num_heads": 4, "num_kv_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "tiny", tiny_model(**LLAMA), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "")
    return tmp_path / "tiny"


def test_inspection_prints_what_was_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--max-num-seqs", "3"]) == 0
    report = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "note" not in line
    )
    per_token = 2 * 2 * 2 * 8 * 4
    assert report["checkpoint"] == f"{folder} (folder)"
    assert report["parameters"].startswith(f"{tiny_model(**LLAMA).num_parameters():,} in ")
    for word in (
        "2 layers of width 32",
        "4 heads of 8",
        "2 key/value heads",
        "swiglu 64",
        "RMSNorm",
        "base 10000",
    ):
        assert word in report["network"]
    assert report["stored"] == "float16 100.0%"
    assert report["context"] == "64 tokens"
    assert report["tokenizer"].endswith("257 ids")
    assert "User: what is a token?" in report["template"]
    assert report["reply"].split(maxsplit=1)[1].startswith("token (256), ")
    assert "temperature 0.8" in report["sampling"] and "briefly" in report["sampling"]
    assert f"{per_token} bytes per token" in report["memory"]
    assert f"3 sequences of 64 tokens: {per_token * 64 * 3 / 1e6:,.0f} MB" in report["memory"]
    assert "nothing proves the prompt" in report["samples"]


def test_a_name_is_looked_up_among_the_pulled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "checkpoints").mkdir()
    folder.rename(folder.parent / "checkpoints" / "pulled-one")
    monkeypatch.setattr("llm.checkpoint.inspect.ROOT", folder.parent)
    assert main(["pulled-one"]) == 0
    assert "pulled-one (folder)" in capsys.readouterr().out
    assert main(["pulled-two"]) == 1
    assert "causerie pull NAME" in capsys.readouterr().err


def test_memory_is_what_the_cache_takes(folder: Path) -> None:
    import torch

    from llm.placement import Place, kv_bytes_per_token

    assert (
        kv_bytes_per_token(open_checkpoint(folder).config, Place(torch.device("cpu"), torch.float32))
        == 2 * 2 * 2 * 8 * 4
    )


def test_what_cannot_be_served_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: ") and error.count("\n") == 1


def test_a_path_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a" * 300]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "aaa" in error and error.count("\n") == 1
