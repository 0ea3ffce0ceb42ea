"""Conversations as files: what was saved is what is loaded, and damage is named."""

from __future__ import annotations

import json
import os
import resource
import stat
from pathlib import Path

import pytest

from clients.chat.conversation import Message
from clients.chat.saved import MAX_BYTES, NotLoaded, NotSaved, load, save
from llm.train.data import read_chats

TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "two\nlines € \x1b[31m"},
    {"role": "assistant", "content": "yes"},
]


def test_what_was_saved_is_loaded_and_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    save(str(path), TALK)
    assert load(str(path)) == TALK
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a conversation is its owner's"
    (chat,) = read_chats(path)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant"]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(NotSaved, match=f"{path}: not saved: File exists"):
        save(str(path), TALK)
    assert path.read_text() == "x"


@pytest.mark.parametrize("path", ["/nowhere/at/all", "nul\0", "~nobody-of-this-name/x", "/"])
def test_where_nothing_can_be_written_or_read_is_said(path: str) -> None:
    with pytest.raises(NotSaved, match="not saved: "):
        save(path, TALK)
    with pytest.raises(NotLoaded, match="not loaded: |not a file"):
        load(path)


def line(**message: object) -> str:
    return json.dumps({"messages": [TALK[1], message]})


DAMAGE = {
    "": "0 conversations, /load reads a file of one",
    "{}\n{}": "2 conversations, /load reads a file of one",
    '\n{"messages": [': r"line 2: not JSON: Expecting value at column 15",
    "[" * 100_000: "line 1: not JSON",
    "1" * 5_000: "line 1: not JSON",
    "[]": 'line 1: expected {"messages": […]}',
    '{"messages": []}': 'line 1: expected {"messages": […]} with at least one message',
    '{"messages": [1]}': r"line 1: messages[0] must be",
    '{"tools": [], "messages": [{}]}': "line 1: tools: unknown",
    line(role="robot", content="x"): "line 1: messages[1].role is 'robot', expected system, user, assistant",
    line(role=["user"], content="x"): "line 1: messages[1].role is ['user'], expected",
    line(role="system", content="x"): "line 1: messages[1].role is 'system', which only the first",
    line(role="user"): "line 1: messages[1].content must be text",
    line(role="user", content=None): "line 1: messages[1].content must be text",
    line(role="user", content="\ud800"): "line 1: messages[1].content must be text",
    line(role="assistant", content="x", tool_calls=[]): "line 1: messages[1].tool_calls: unknown",
}


@pytest.mark.parametrize("text", DAMAGE, ids=lambda text: repr(text[:40]))
def test_damage_is_refused_by_line_and_field(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(text)
    with pytest.raises(NotLoaded) as caught:
        load(str(path))
    assert f"{path}: {DAMAGE[text]}" in str(caught.value)


def test_what_is_no_text_or_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_bytes(b"\n\xff")
    with pytest.raises(NotLoaded, match="line 2: not UTF-8 text at byte 1"):
        load(str(path))
    path.write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(NotLoaded, match=f"longer than {MAX_BYTES} bytes"):
        load(str(path))


def test_a_pipe_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotLoaded, match="not a file"):
        load(str(tmp_path / "pipe"))


def test_a_file_that_could_not_be_finished_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # as a disk with room for 10 bytes
    try:
        with pytest.raises(NotSaved, match="File too large"):
            save(str(path), TALK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()
