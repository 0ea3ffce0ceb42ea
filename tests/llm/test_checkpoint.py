"""Which checkpoint is served when none is named, and the inspection command."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm.checkpoint import find_checkpoint, open_checkpoint, save_folder, save_state_dict
from llm.checkpoint.__main__ import main
from llm.config import COURSE_DEFAULTS
from llm.errors import CheckpointError
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model


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


def test_inspection_prints_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(tmp_path / "tiny", tiny_model(), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "")
    assert main([str(tmp_path / "tiny")]) == 0
    report = capsys.readouterr().out
    count = f"{tiny_model().num_parameters():,} in 20 tensors"
    for fact in (
        "(folder)",
        count,
        "num_heads 2",
        "257 ids",
        "plain",
        "temperature 0.8",
        "nothing proves the prompt",
    ):
        assert fact in report
    assert main([str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}: a folder without config.json is no checkpoint we can read\n"
    )
