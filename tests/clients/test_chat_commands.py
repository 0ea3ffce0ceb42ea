"""Every command, typed into a pipe: what it says, what is sent after it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from clients.chat.__main__ import main
from clients.chat.commands import COMMANDS, LEAVE
from tests.clients.fake_server import FakeServer, chunk, frame

DOCS = (Path(__file__).parents[2] / "docs/chat.md").read_text(encoding="utf-8")


class Typed:
    """Type lines, get what was written."""

    def __init__(
        self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._fake, self._monkeypatch, self._capsys = fake, monkeypatch, capsys

    def __call__(self, *lines: str, status: int = 0) -> tuple[str, str]:
        self._monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["--url", self._fake.url]) == status
        out, err = self._capsys.readouterr()
        return out, err


@pytest.fixture
def typed(fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(fake, monkeypatch, capsys)


def contents(request: dict[str, Any]) -> list[str]:
    return [message["content"] for message in request["messages"]]


def test_system_is_the_next_turns_and_reset_keeps_it(typed: Typed, fake: FakeServer) -> None:
    out, err = typed("/system Be brief.", "a", "/reset", "b", "/system", "c", "/quit", "never")
    assert "(new system message)" in err and "forgotten" in err and "the model's own" in err
    assert [contents(request) for request in fake.requests] == [
        ["Be brief.", "a"],
        ["Be brief.", "b"],
        ["b", "You said: b", "c"],
    ]


def test_parameters_are_shown_set_and_left_to_the_server_again(typed: Typed, fake: FakeServer) -> None:
    _, err = typed("/temp", "/temp 0.5", "/seed 7", "a", "/temp default", "/seed none", "b", "/temp 0", "c")
    assert re.findall(r"\((\w+) (.*)\)", err) == [
        ("temperature", "as the server chooses"),
        ("temperature", "0.5"),
        ("seed", "7"),
        ("temperature", "as the server chooses"),
        ("seed", "as the server chooses"),
        ("temperature", "0.0"),
    ]
    sent = [(request.get("temperature"), request.get("seed")) for request in fake.requests]
    assert sent == [(0.5, 7), (None, None), (0.0, None)], "zero is a number"


@pytest.mark.parametrize(
    "line",
    [
        "/temp hot",
        "/temp nan",
        "/temp -1",
        "/temp inf",
        "/seed 1.5",
        "/seed -1",
        f"/seed {2**64}",
        "/seed " + "9" * 5000,
    ],
)
def test_a_value_that_cannot_be_sent_changes_nothing(typed: Typed, fake: FakeServer, line: str) -> None:
    _, err = typed("/temp 0.5", "/seed 7", line, "a", status=1)
    assert re.search(r"(temperature|seed) is \S+( …)?, expected a (whole )?number from 0, or default\n", err)
    assert (fake.requests[0]["temperature"], fake.requests[0]["seed"]) == (0.5, 7)


def test_model_is_chosen_from_what_is_served(typed: Typed, fake: FakeServer) -> None:
    fake.models = {"data": [{"id": "one"}, {"id": "two\x1b[1m"}]}
    _, err = typed("/model", "/model three", "/model two", "a", "/model one", "b", status=1)
    assert "(model one; served: one, two␛[1m)" in err
    assert f"no model three at {fake.url}; there are: one, two␛[1m" in err
    assert [request["model"] for request in fake.requests] == ["one", "one"]


def test_any_model_is_taken_where_none_are_listed(typed: Typed, fake: FakeServer) -> None:
    fake.models = None
    _, err = typed("/model mine", "a")
    assert "(model mine; served: the server does not say)" in err
    assert fake.requests[0]["model"] == "mine"


def test_retry_asks_the_same_question_and_keeps_the_newer_reply(typed: Typed, fake: FakeServer) -> None:
    fake.say("first")
    fake.say("second")
    out, err = typed("a", "/retry", "b")
    assert out == "first\nsecond\nYou said: b\n" and err == ""
    assert contents(fake.requests[1]) == ["a"]
    assert contents(fake.requests[2]) == ["a", "second", "b"]
    assert all("seed" not in request for request in fake.requests), "the server draws another each time"


def test_retry_says_when_the_reply_will_be_the_same(typed: Typed) -> None:
    _, err = typed("/retry", "a", "/seed 7", "/retry", "/temp 0", "/retry", status=1)
    assert "nothing was asked yet" in err
    assert "(seed 7: expect the same reply; /seed default draws another)" in err
    assert "(temperature 0: expect the same reply)" in err


def test_a_question_whose_reply_failed_is_asked_again(typed: Typed, fake: FakeServer) -> None:
    """And a retry that fails takes nothing away."""
    fake.say("one")
    fake.fail(429, {"error": {"message": "the queue is full"}}, headers={"retry-after": "3"})
    fake.send(frame(chunk({"content": "half"})))
    fake.say("two")
    out, err = typed("a", "b", "/retry", "/retry", "c", "/retry", status=1)
    assert out == "one\nhalf\ntwo\n" + 2 * "You said: c\n"
    assert "the queue is full; it asks to wait 3 s\n" in err
    assert "the stream ended without [DONE]: the reply is not complete\n" in err
    assert [contents(request) for request in fake.requests[1:]] == [
        *[["a", "one", "b"]] * 3,
        *[["a", "one", "b", "two", "c"]] * 2,
    ]


def test_tokens_are_the_servers_count_or_the_last_replys(typed: Typed, fake: FakeServer) -> None:
    _, err = typed("/tokens", "a b", "/tokens")
    assert "(nothing was said: no tokens)" in err
    assert "this server has no /tokenize" in err and "last reply: first token after" in err
    assert "4 tokens of prompt, 4 of reply" in err
    fake.tokens = {"count": 9, "max_model_len": 64}
    _, err = typed("a", "/tokens")
    assert "(9 tokens of 64: the conversation as the model reads it)" in err
    fake.tokens = {"count": 9}
    _, err = typed("a", "/tokens")
    assert "(9 tokens the server does not say of how many: " in err


def test_stats(typed: Typed, fake: FakeServer) -> None:
    _, err = typed("/stats", "a", "b", "/stats")
    assert "no reply yet" in err
    assert "last reply: first token after " in err and "3 tokens of prompt, 3 of reply" in err
    assert "session: 2 replies, " in err and "6 tokens of prompt, 6 of reply" in err


def test_what_was_saved_is_gone_on_with(typed: Typed, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "my talk.jsonl"
    _, err = typed("/system s", "a", f"/save {path}")
    assert f"(3 messages written to {path})" in err
    _, err = typed("x", f"/load {path}", "b")
    assert f"(3 messages read from {path}; the conversation is theirs)" in err
    assert contents(fake.requests[-1]) == ["s", "a", "You said: a", "b"]


def test_damage_is_a_line_and_the_conversation_stays(typed: Typed, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "\x1b[2J" + "x" * 10_000, "content": ""}]}))
    _, err = typed("a", f"/load {path}", "/load", "/save", "b", status=1)
    (damage,) = [line for line in err.splitlines() if str(path) in line]
    assert "line 1: messages[0].role is " in damage and len(damage) < 800 and "\x1b" not in damage
    assert "/load needs a file name" in err and "/save needs a file name" in err
    assert contents(fake.requests[-1]) == ["a", "You said: a", "b"]


def test_nothing_is_saved_where_nothing_was_said(typed: Typed, tmp_path: Path) -> None:
    _, err = typed(f"/save {tmp_path / 'x'}", status=1)
    assert "nothing was said" in err and not (tmp_path / "x").exists()


def test_what_is_no_command_is_said_and_a_second_slash_sends_it(typed: Typed, fake: FakeServer) -> None:
    _, err = typed("/nonsense\x1b[1m x", "//etc/hosts", status=1)
    assert "no command /nonsense[1m: /help lists them, //text sends /text" in err
    assert contents(fake.requests[0]) == ["/etc/hosts"]


def test_help_and_the_page_name_every_command(typed: Typed) -> None:
    _, err = typed("/help")
    for name in (*COMMANDS, *LEAVE):
        assert name in err
        assert f"`{name}" in DOCS, name
