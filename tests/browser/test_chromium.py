"""Where a Chromium comes from, and what is said when there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, NoChromium, find_chromium

SH = "#!/bin/sh\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All the programs there are; root's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def write(program: Path, text: str) -> None:
    program.write_text(SH + text)
    program.chmod(0o700)


def test_the_one_on_the_path_is_taken(programs: Path) -> None:
    write(programs / "google-chrome", "exit 0\n")
    assert find_chromium() == str(programs / "google-chrome")


def test_without_one_and_without_a_way_to_it_the_reason_is_said(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoChromium, match="no Chromium on the PATH"):
        find_chromium()
    write(programs / "apt-get", "exit 0\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoChromium, match="only root on Debian can install one"):
        find_chromium()


def test_root_on_debian_installs_it(programs: Path) -> None:
    write(programs / "apt-get", f'[ "$1" = update ] || echo "{SH}" > {programs}/chromium\n')
    with pytest.raises(NoChromium, match="it is not on the PATH"):
        find_chromium()  # installed, but nobody may run it
    (programs / "chromium").chmod(0o700)
    assert find_chromium() == str(programs / "chromium")


def test_a_refusal_of_the_installer_is_the_reason(programs: Path) -> None:
    write(programs / "apt-get", "echo 'E: Temporary failure resolving' >&2; exit 100\n")
    with pytest.raises(NoChromium, match="apt-get update --quiet: E: Temporary failure resolving"):
        find_chromium()


def test_one_that_ends_at_once_says_why(tmp_path: Path) -> None:
    write(tmp_path / "chromium", "echo 'No usable sandbox!' >&2; exit 1\n")
    with (
        pytest.raises(NoChromium, match="ended at once: No usable sandbox!"),
        Chromium(str(tmp_path / "chromium")),
    ):
        pass
