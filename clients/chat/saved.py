"""A conversation as a line of chat JSONL, written and read back: what `causerie train sft` reads.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}

Written for its owner alone (mode 0600), never over an existing file. Read as hostile: any damage is refused
in a line with the file's line and the field, and nothing is half taken.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.chat.conversation import Message

ROLES = ("system", "user", "assistant")
MAX_BYTES = 2_000_000
"""As much as a server takes in one request by default."""


class NotSaved(Exception):
    """The file cannot be written; the text says why."""


class NotLoaded(Exception):
    """The file holds no conversation that can be gone on with; the text says where and why."""


def save(path: str, messages: Sequence[Message]) -> None:
    """Write one line of chat JSONL to a new file.

    Raises:
        NotSaved: it exists, or cannot be written; a file begun is taken away.
    """
    line = json.dumps({"messages": list(messages)}, ensure_ascii=False) + "\n"
    try:
        with open(Path(path).expanduser(), "x", encoding="utf-8", opener=_for_its_owner) as file:
            try:
                file.write(line)
                file.flush()
            except OSError:
                os.unlink(file.name)
                raise
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the name; RuntimeError: ~who
        raise NotSaved(f"{path}: not saved: {_reason(error)}") from None


def load(path: str) -> list[Message]:
    """The messages of the file's one conversation.

    Raises:
        NotLoaded: the file cannot be read, or is not exactly one line of chat JSONL.
    """
    lines = [line for line in enumerate(_read(path).split("\n"), start=1) if line[1].strip()]
    if len(lines) != 1:
        raise NotLoaded(f"{path}: {len(lines)} conversations, /load reads a file of one")
    number, line = lines[0]
    where = f"{path}: line {number}"
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise NotLoaded(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):  # nested thousands deep, or a number of thousands of digits
        raise NotLoaded(f"{where}: not JSON that a conversation can be made of") from None
    return _messages(where, value)


def _read(path: str) -> str:
    try:
        # non-blocking, since opening a pipe would wait for its writer
        file = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise NotLoaded(f"{path}: not a file")
            data = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        raise NotLoaded(f"{path}: not loaded: {_reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise NotLoaded(f"{path}: longer than {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotLoaded(f"{path}: line {line}: not UTF-8 text at byte {error.start}") from None


def _messages(where: str, value: Any) -> list[Message]:
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise NotLoaded(f'{where}: expected {{"messages": […]}} with at least one message')
    if unknown := sorted(value.keys() - {"messages"}):
        raise NotLoaded(f"{where}: {unknown[0]}: unknown, and going on would lose it")
    return [_message(f"{where}: messages[{i}]", i, item) for i, item in enumerate(messages)]


def _message(where: str, place: int, item: Any) -> Message:
    if not isinstance(item, dict):
        raise NotLoaded(f'{where} must be {{"role": "…", "content": "…"}}')
    if unknown := sorted(item.keys() - {"role", "content"}):
        raise NotLoaded(f"{where}.{unknown[0]}: unknown, and going on would lose it")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise NotLoaded(f"{where}.role is {role!r}, expected {', '.join(ROLES)}")
    if role == "system" and place > 0:
        raise NotLoaded(f"{where}.role is 'system', which only the first message can be")
    if not isinstance(content, str) or not _is_utf8(content):
        raise NotLoaded(f"{where}.content must be text")
    return {"role": role, "content": content}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a pair, as "\ud800" in JSON
        return False
    return True


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
