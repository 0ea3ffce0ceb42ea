"""What docs/adapt.md says of training is what the two commands know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm.train import pretrain, sft
from llm.train.shape import FAMILIES

SECTION = (
    (Path(__file__).parent.parent / "docs/adapt.md").read_text().split("\n## Train\n")[1].split("\n## ")[0]
)


def test_every_flag_is_one_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (pretrain.main, sft.main):
        with pytest.raises(SystemExit):
            main(["--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"--[a-z][a-z-]+", SECTION))
    assert len(named) > 20 and named <= known, named - known


def test_every_family_is_named() -> None:
    assert f"--family {'|'.join(name for name in FAMILIES if name != 'course')}" in SECTION
