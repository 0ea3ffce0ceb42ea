"""Keys to lines, in this process: prompt-toolkit reads a pipe and draws nothing."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from clients.chat.keyboard import Keyboard, NoHistory
from clients.chat.lines import Lines

ENTER, LINE_FEED, ALT_ENTER, UP, CTRL_R, TAB = "\r", "\n", "\x1b\r", "\x1b[A", "\x12", "\t"


class Typist(DummyOutput):
    """A person who begins to type once the prompt is there."""

    def __init__(self, keys: PipeInput, *lines: bytes) -> None:
        self._keys, self._lines = keys, list(lines)
        self.is_asked = False

    def flush(self) -> None:
        if self.is_asked and self._lines:
            self.is_asked = False
            self._keys.send_bytes(self._lines.pop(0))


def read(*lines: str | bytes, history_file: str | None = None) -> list[str | None | type[BaseException]]:
    """What each burst of keys comes to at a prompt of its own."""
    with create_pipe_input() as keys:
        typist = Typist(keys, *(line.encode() if isinstance(line, str) else line for line in lines))
        keyboard = Keyboard(["/stats", "/system"], history_file, keys=keys, output=typist)
        results: list[str | None | type[BaseException]] = []
        for _ in lines:
            typist.is_asked = True
            try:
                results.append(keyboard.read())
            except (KeyboardInterrupt, EOFError) as error:
                results.append(type(error))
        return results


@pytest.mark.parametrize(
    ("bursts", "lines"),
    [
        ([f"one{ENTER}", f"two{LINE_FEED}"], ["one", "two"]),
        ([f"a{ALT_ENTER}b\x1b{LINE_FEED}c{ENTER}"], ["a\nb\nc"]),
        ([f"a\\{ENTER}b{ENTER}"], ["a\nb"]),
        ([f"a\\b{ENTER}"], ["a\\b"]),
        ([f"\x1b[200~pasted\r\nlines\n\x1b[201~{ENTER}"], ["pasted\nlines\n"]),
        ([f"one{ENTER}", f"{UP}!{ENTER}"], ["one", "one!"]),
        ([f"a{ALT_ENTER}b{ENTER}", f"{UP}{ENTER}"], ["a\nb", "a\nb"]),
        ([f"first{ENTER}", f"other{ENTER}", f"{CTRL_R}fir{ENTER}{ENTER}"], ["first", "other", "first"]),
        ([f"/sta{TAB}{ENTER}"], ["/stats"]),
        ([f"say /sta{TAB}{ENTER}"], ["say /sta"]),
        (["half\x03", f"whole{ENTER}", "\x04"], [KeyboardInterrupt, "whole", EOFError]),
    ],
    ids=repr,
)
def test_keys_are_lines(bursts: list[str], lines: list[object]) -> None:
    assert read(*bursts) == lines


def test_nothing_is_written_unless_asked_and_then_for_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(f"secret{ENTER}") == ["secret"]
    assert list(tmp_path.iterdir()) == []

    two = f"a{ALT_ENTER}b{ENTER}"
    assert read(f"one{ENTER}", two, history_file="~/history") == ["one", "a\nb"]
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600
    assert read(f"{UP}{ENTER}", history_file="~/history") == ["a\nb"]


def test_bytes_that_are_no_text_end_nothing(tmp_path: Path) -> None:
    file = tmp_path / "history"
    (line,) = read(b"a\xffb\r", history_file=str(file))
    assert isinstance(line, str) and line[0] == "a" and line[-1] == "b"
    assert "+a\ufffdb\n" in file.read_text()


def test_a_history_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.touch(0o644)
    with pytest.raises(NoHistory, match=f"{path}: others may read it .mode 644.: chmod 600 it"):
        read(history_file=str(path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, why in (("pipe", "not a file"), ("", "directory"), ("no/such/folder", "No such file")):
        with pytest.raises(NoHistory, match=why):
            read(history_file=str(tmp_path / name))


def test_without_an_editor_a_line_may_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\\\nb\nc\\\n"))
    assert Lines(is_terminal=True).read() == "a\nb"
    assert Lines(is_terminal=False).read() == "c\\", "a pipe's lines are taken as they are"
    with pytest.raises(EOFError):
        Lines(is_terminal=True).read()
    assert capsys.readouterr().out == "User:       User: \n", "and the shell's prompt begins a line"
