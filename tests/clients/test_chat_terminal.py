"""The chat on a terminal of its own: what a person types and sees, control codes and all."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.clients.fake_server import FakeServer, chunk, frame
from tests.clients.terminal import Terminal
from tests.clients.test_chat_safe_text import ATTACKS

ENTER, ALT_ENTER, UP, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x1b[A", "\x03", "\x04"
COLOURS = re.compile(r"\x1b\[(?!0m)[\d;]*m")  # \x1b[0m takes styles away


def chat(fake: FakeServer, *arguments: str, env: dict[str, str] | None = None) -> Terminal:
    return Terminal("clients.chat", "--url", fake.url, *arguments, env={"NO_COLOR": "", **(env or {})})


def contents(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


def test_a_conversation(fake: FakeServer) -> None:
    """Type, see the reply stream, stop one, lose one, ask again, bring a line back, leave."""
    with chat(fake, "--temperature", "0") as terminal:
        terminal.expect("fake at")
        terminal.expect("User:")
        terminal.type(f"hello there{ENTER}")
        assert "\x1b[1;36mAssistant: " in terminal.expect("You said: hello there\r\n")
        terminal.expect("User:")

        fake.hold("never ", "ending")
        terminal.type(f"go on{ENTER}")
        terminal.expect("never ending")
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        assert fake.hung_up.wait(10), "the reply was not aborted"
        terminal.expect("User:")

        fake.hold()
        terminal.type(f"nothing{ENTER}")
        terminal.expect("Assistant: ")
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        terminal.expect("User:")

        fake.fail(429, {"error": {"message": "full"}}, headers={"retry-after": "2"})
        terminal.type(f"and{ALT_ENTER}now?{ENTER}")
        terminal.expect("full; it asks to wait 2 s; /retry asks again")
        terminal.expect("User:")
        fake.fail(413, {"error": {"message": "too long"}})
        terminal.type(f"/retry{ENTER}")
        terminal.expect("too long")
        assert "again" not in terminal.expect("User:"), "nor would it be shorter a second time"
        terminal.type(f"/retry{ENTER}")
        terminal.expect("You said: and\r\nnow?")
        terminal.expect("User:")

        terminal.type(f"{UP}{UP}{UP}{ENTER}")  # /retry, once for both, the two lines, into them, out of them
        terminal.expect("You said: and\r\nnow?")
        terminal.expect("User:")
        terminal.type(CTRL_C)
        terminal.expect("Ctrl-D or /quit leaves")
        terminal.expect("User:")
        terminal.type(f"/quit{ENTER}")
        assert terminal.end() == 1, "two replies failed"
    assert "\x1b[6n" not in terminal.seen, "the terminal is asked nothing: its answer would be typed"
    assert contents(fake.requests[-1]) == [
        ("user", "hello there"),
        ("assistant", "You said: hello there"),
        ("user", "go on"),
        ("assistant", "never ending"),
        ("user", "and\nnow?"),
        ("assistant", "You said: and\nnow?"),
        ("user", "and\nnow?"),
    ]
    assert fake.requests[0]["temperature"] == 0 and "seed" not in fake.requests[0]


def test_what_a_model_writes_does_not_steer_the_terminal(fake: FakeServer) -> None:
    """In a reply, in an error, in a header, in a model's name."""
    fake.models = {"data": [{"id": f"m{''.join(ATTACKS.values())}"}]}
    attacks = [attack.replace("\ud800", "") for attack in ATTACKS.values()]
    fake.say(*attacks, "\u200b" * 100_000, "x" * 100_000, "END", headers={"x-ignored-params": "a\x9b2Jb"})
    fake.fail(400, {"error": {"message": "".join(ATTACKS.values()) + "FAILED"}})
    fake.send(
        frame(chunk({"content": "half"})),
        frame(chunk({"reasoning": "\x1b[2Jhm"})),
        frame({"error": "\x1b]0;t\x07"}),
    )
    with chat(fake, env={"TERM": "dumb"}) as terminal:  # where the chat writes no code of its own
        for line in ("a", "b", "c"):
            terminal.expect("User: ")
            terminal.type(f"{line}\n")
        terminal.expect("User: ")
        terminal.type(CTRL_D)
        assert terminal.end() == 1
    assert "half" in terminal.seen and "hm" in terminal.seen
    assert "END\r\n" in terminal.seen and "FAILED" in terminal.seen and "ab)" not in terminal.seen
    assert terminal.seen.count("x") > 100_000
    codes = {code for code in terminal.seen if ord(code) < 32 or 127 <= ord(code) < 160}
    assert codes == {"\r", "\n"}
    assert "\u202e" not in terminal.seen and terminal.seen.count("\u200b") < 20


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_none_are_wanted(fake: FakeServer, name: str, value: str) -> None:
    with chat(fake, env={name: value, "FORCE_COLOR": "1"}) as terminal:
        terminal.expect("User:")
        terminal.type(f"a{ENTER}")
        terminal.expect("Assistant: You said: a")
        terminal.expect("User:")
        terminal.type(f"/nonsense{ENTER}")
        terminal.expect("no command")
        terminal.expect("User:")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert not COLOURS.findall(terminal.seen)
    assert value != "dumb" or "\x1b" not in terminal.seen, "nor any other code"


def test_a_server_that_goes_away_and_comes_back(fake: FakeServer) -> None:
    """Its absence is a line, the conversation is kept, and the same program goes on."""
    with FakeServer() as first:
        port = first.server_address[1]
        with chat(first) as terminal:
            terminal.expect("User:")
            terminal.type(f"one{ENTER}")
            terminal.expect("You said: one")
            terminal.expect("User:")
            first.shutdown()
            first.server_close()
            terminal.type(f"two{ENTER}")
            terminal.expect(f"no server answers at {first.url}; start one with")
            terminal.expect("User:")
            with FakeServer(port) as second:
                terminal.type(f"/retry{ENTER}")
                terminal.expect("You said: two")
                terminal.expect("User:")
                terminal.type(CTRL_D)
                assert terminal.end() == 1
    assert [text for _, text in contents(second.requests[0])] == ["one", "You said: one", "two"]


def test_what_was_typed_during_a_reply_is_the_next_question(fake: FakeServer) -> None:
    """The terminal turns its Enter into a line feed meanwhile."""
    with chat(fake) as terminal:
        terminal.expect("User:")
        go_on = fake.say_in_two("thinking", " done")
        terminal.type(f"a{ENTER}")
        terminal.expect("thinking")
        terminal.type(f"b{ENTER}")
        terminal.expect("b\r\n")  # echoed: it lies in the terminal's buffer
        go_on.set()
        terminal.expect(" done\r\n")
        terminal.expect("You said: b\r\n")
        terminal.expect("User:")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_a_history_that_cannot_be_kept_is_said_at_once(fake: FakeServer) -> None:
    with chat(fake, "--history", "/dev/null") as terminal:
        terminal.expect("--history /dev/null: cannot keep a history: not a file")
        assert terminal.end() == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(fake: FakeServer, number: signal.Signals) -> None:
    with chat(fake) as terminal:
        terminal.expect("User:")
        assert terminal.is_raw
        terminal.process.send_signal(number)
        assert terminal.process.wait(30) == 128 + number
        assert not terminal.is_raw


def test_a_checkpoint_is_served_for_as_long_as_the_chat(tiny_folder: Path) -> None:
    """One command is a chat: the server is there for it, and gone after it, killed terminal or not."""
    with Terminal("clients.chat", "--checkpoint", str(tiny_folder), "--max-tokens", "4") as terminal:
        terminal.expect("starting a server")
        terminal.expect("tiny at http://127.0.0.1:")
        (server,) = psutil.Process(terminal.process.pid).children()
        terminal.expect("User:")
        terminal.type(f"hi{ENTER}")
        terminal.expect("Assistant: ")
        terminal.expect("User:")
        terminal.process.terminate()
        assert terminal.end() == 143
    assert psutil.wait_procs([server], timeout=30)[1] == []
