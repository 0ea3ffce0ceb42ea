"""The chat in a pipe: replies on stdout, the rest on stderr, and what its exit status says."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.chat.__main__ import main
from clients.chat.screen import Screen
from tests.clients.fake_server import FakeServer, chunk, frame, reply_frames


def pipe(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))


def contents(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


def test_a_pipe_gets_replies_and_nothing_else(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "one", "", "two")
    assert main(["--url", fake.url]) == 0
    assert capsys.readouterr() == ("You said: one\nYou said: two\n", "")
    assert len(contents(fake.requests[1])) == 3


def test_once(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.say("a\tb \x1b[31m:smile: [bold]x[/]\n", "end", finish="length")
    assert (
        main(["--url", fake.url, "--once", "hi", "--system", "Be brief.", "--seed", "7", "--top-k", "0"]) == 0
    )
    out, err = capsys.readouterr()
    assert out == "a\tb ␛[31m:smile: [bold]x[/]\nend\n", "as it is, but for what would steer the terminal"
    assert "token limit" in err
    assert (fake.requests[0]["seed"], fake.requests[0]["top_k"]) == (7, 0)
    assert contents(fake.requests[0]) == [("system", "Be brief."), ("user", "hi")]


def test_once_reads_all_of_standard_input(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Translate:", "", "/quit \\ ")
    assert main(["--url", fake.url, "--once", "-"]) == 0
    assert contents(fake.requests[0]) == [("user", "Translate:\n\n/quit \\ ")], "which is no command"
    assert capsys.readouterr().out == "You said: Translate:\n\n/quit \\ \n"


def test_whatever_is_noted_is_harmless_and_without_codes_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    Screen(is_terminal=False).complain("[b]a[/b]\x9b2J\u202e")
    assert capsys.readouterr() == ("", "[b]a[/b]<U+009B>2J<U+202E>\n")


def test_thoughts_are_not_for_a_pipe(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.send(frame(chunk({"reasoning": "hm"})), *reply_frames(("yes",)))
    assert main(["--url", fake.url, "--once", "hi"]) == 0
    assert capsys.readouterr() == ("yes\n", "")


def test_a_wrong_key_is_said_with_the_way_to_give_one(
    fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fail(401, {"error": {"message": "no key", "code": "invalid_api_key"}})
    assert main(["--url", fake.url, "--once", "hi"]) == 1
    assert capsys.readouterr() == ("", "no key; a key is given with --api-key or $CAUSERIE_API_KEY\n")


def test_dropped_turns_and_ignored_fields_are_said(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {"x-truncated-messages": "4", "x-ignored-params": "seed"}
    fake.say("one", headers=headers)
    fake.say("two", headers=headers)
    pipe(monkeypatch, "a", "b")
    assert main(["--url", fake.url]) == 0
    err = capsys.readouterr().err
    assert err.count("4 oldest messages") == 2
    assert err.count("ignores: seed") == 1


def test_the_conversation_goes_on_after_an_error(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A turn that failed, before or in the middle of its reply, is taken back."""
    fake.fail(400, {"error": {"message": "the prompt is too long", "code": "context_length_exceeded"}})
    fake.send(frame(chunk({"content": "half"})), frame({"error": {"message": "the step failed"}}))
    fake.send(frame(chunk({"content": "cut"})))
    pipe(monkeypatch, "a", "b", "c", "d", "/save /nowhere/at/all", "/save", "/system")
    assert main(["--url", fake.url]) == 1
    out, err = capsys.readouterr()
    assert out == "half\ncut\nYou said: d\n"
    for said in ("prompt is too long", "the step failed", "[DONE]", "/nowhere/at/all", "needs a file name"):
        assert said in err
    assert contents(fake.requests[3]) == [("user", "d")]


def test_an_empty_reply_leaves_no_turn_behind(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.say()
    pipe(monkeypatch, "a", "b")
    assert main(["--url", fake.url]) == 0
    assert "reply is empty" in capsys.readouterr().err
    assert contents(fake.requests[1]) == [("user", "b")]


def test_without_a_terminal_ctrl_c_ends_the_program(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(io.StringIO):
        def readline(self, *args: Any) -> Any:
            if self.tell():
                return ""  # whoever goes on comes to the end
            self.read()
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted("never sent\n"))
    assert main(["--url", fake.url]) == 130
    assert "Ctrl-D" not in capsys.readouterr().err


def test_no_server_is_one_line_that_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main(["--url", url, "--once", "hi"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and url in err and "causerie serve" in err


def test_a_checkpoint_that_cannot_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.pt")
    assert main(["--checkpoint", missing, "--once", "hi"]) == 1
    err = capsys.readouterr().err
    assert "before it was ready" in err and f"causerie serve: error: {missing}" in err


def test_url_and_checkpoint_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--url", "http://h", "--checkpoint", "x"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "hot"])
def test_a_number_that_json_lacks_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--temperature", value])
    assert caught.value.code == 2
    assert "--temperature" in capsys.readouterr().err


@pytest.fixture
def pipes() -> Iterator[tuple[int, int]]:
    """An end nobody reads, and a device that takes nothing."""
    read, write = os.pipe()
    os.close(read)
    full = os.open("/dev/full", os.O_WRONLY)
    yield write, full
    os.close(write)
    os.close(full)


def test_an_output_that_takes_nothing_ends_it_in_a_line_at_most(
    fake: FakeServer, pipes: tuple[int, int]
) -> None:
    """As in `causerie chat --once … | head -c 1`, and on a full disk: no traceback."""
    command = [sys.executable, "-m", "clients.chat", "--url", fake.url, "--once", "hi"]
    ended = [
        subprocess.run(command, stdout=end, stderr=subprocess.PIPE, encoding="utf-8", timeout=60)
        for end in pipes
    ]
    assert [(done.returncode, done.stderr) for done in ended] == [
        (141, ""),
        (1, "cannot go on: No space left on device\n"),
    ]


def test_ends_that_are_closed_end_nothing(fake: FakeServer) -> None:
    command = 'exec "$@" 2>&- <&-'
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "clients.chat", "--url", fake.url, "--once", "hi"],
        stdout=subprocess.PIPE,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"You said: hi\n")


def test_bytes_that_are_no_text_and_an_encoding_that_lacks_some_end_nothing(fake: FakeServer) -> None:
    fake.send(b'data: {"choices": [{"delta": {"content": "\\u20ac \\ud800"}}]}\n\ndata: [DONE]\n\n')
    done = subprocess.run(
        [sys.executable, "-m", "clients.chat", "--url", fake.url],
        input=b"a\xffb\nc\n",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "0"},
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"? ?\nYou said: c\n")
    done = subprocess.run(
        [sys.executable, "-m", "clients.chat", "--url", fake.url],
        input=b"a\xffb\n",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        timeout=60,
    )
    assert (done.returncode, done.stdout.decode()) == (0, "You said: a\ufffdb\n")
    assert contents(fake.requests[1])[1] == ("assistant", "€ \ufffd"), "kept as it came, if it can be sent"
