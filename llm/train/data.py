"""Files to token ids: conversations with a loss mask, or documents.

A conversation is rendered by the template that serves it, so training and serving share every token id. Every
refusal names file, line and field. Refuses to know batches, models and devices.

    >>> examples = [example for chat in read_chats("chat.jsonl") for example in
    ...             encode_examples(tokenizer, template, chat)]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm.chat.replies import encode_replies
from llm.chat.template import ChatTemplate, Message, Role, ToolCall, encode_segments
from llm.chat.tools import Tool
from llm.errors import DataError, RequestError
from llm.tokenizer import Tokenizer

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Chat:
    """One line of a chat file.

    Attributes:
        where: "file:line", for errors.
        tools: functions the assistant may call in it.
    """

    where: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation: ids (n,) and, for each, whether the model is taught to write it (n,)."""

    ids: Ids
    trained: npt.NDArray[np.bool_]


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each non-empty line's place ("file:3") and object.

    Raises:
        DataError: no such file, not UTF-8, or a line that is no JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
        yield f"{path}:{number}", value


def read_messages(where: str, value: object) -> list[Message]:
    """The messages of one conversation in OpenAI's form, checked.

    Args:
        where: "file:line", for the error.
        value: what stands under "messages".

    Raises:
        DataError: not a non-empty list of {"role", "content"}, or a field that cannot be used.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages must be a non-empty list")
    return [_message(f"{where}: messages[{i}]", item) for i, item in enumerate(value)]


def _message(where: str, item: object) -> Message:
    fields: Mapping[str, Any] = item if isinstance(item, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if role not in ROLES:
        raise DataError(f"{where}.role is {role!r}, expected {', '.join(ROLES)}")
    if fields.get("weight", 1) != 1:
        raise DataError(f"{where}.weight is {fields['weight']!r}: every reply is learned alike, leave it out")
    calls = fields.get("tool_calls") or []
    if calls and role != "assistant":
        raise DataError(f"{where}.tool_calls: only the assistant calls functions, not the {role}")
    if content is None and calls:
        content = ""
    may_be_empty = bool(calls) or role == "tool"
    if not isinstance(content, str) or not (content.strip() or may_be_empty):
        raise DataError(f"{where}.content must be non-empty text")
    if not isinstance(calls, list):
        raise DataError(f"{where}.tool_calls must be a list")
    return Message(
        role,
        content,
        tuple(_call(f"{where}.tool_calls[{j}]", call) for j, call in enumerate(calls)),
        _optional(where, fields, "tool_call_id"),
        _optional(where, fields, "name"),
    )


def _call(where: str, item: object) -> ToolCall:
    """A call; its arguments are JSON text, as OpenAI has them, or an object."""
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(function, dict):
        raise DataError(f'{where} must be {{"id", "type": "function", "function": {{"name", "arguments"}}}}')
    name = _text(f"{where}.function", function, "name")
    arguments = function.get("arguments", "{}")
    text = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
    if not isinstance(text, str):
        raise DataError(f"{where}.function.arguments must be the JSON text of an object")
    return ToolCall(_optional(where, item, "id") or "", name, text)


def _text(where: str, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}.{name} must be non-empty text")
    return value


def _optional(where: str, fields: Mapping[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else _text(where, fields, name)


def _tools(where: str, value: object) -> tuple[Tool, ...]:
    """The functions under "tools", in OpenAI's form."""
    if not isinstance(value, list):
        raise DataError(f"{where}: tools must be a list")
    tools = []
    for i, item in enumerate(value):
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f'{where}: tools[{i}] must be {{"type": "function", "function": {{"name", …}}}}')
        description, parameters = function.get("description"), function.get("parameters")
        if not isinstance(parameters, dict | None):
            raise DataError(f"{where}: tools[{i}].function.parameters must be a JSON schema")
        if not isinstance(description, str | None):
            raise DataError(f"{where}: tools[{i}].function.description must be text")
        tools.append(Tool(function["name"], description, parameters))
    return tuple(tools)


def read_chats(path: str | Path) -> list[Chat]:
    """Conversations of a JSONL file, one per line, of either form.

        {"messages": [{"role", "content"}, …], "tools": […]}    OpenAI's; tools may be left out
        {"prompt": "…", "completion": "…"}                      a user's turn and the assistant's

    Raises:
        DataError: as read_jsonl and read_messages, a conversation without a reply, or no conversation at all.
    """
    chats = [read_conversation(where, value) for where, value in read_jsonl(path)]
    if not chats:
        raise DataError(f"{path}: no conversations")
    return chats


def read_conversation(where: str, value: Mapping[str, Any]) -> Chat:
    """One line of `read_chats`.

    Raises:
        DataError: as there.
    """
    if "prompt" in value or "completion" in value:
        for name in ("prompt", "completion"):
            if not isinstance(value.get(name), str) or not value[name].strip():
                raise DataError(f"{where}: {name} must be non-empty text")
        if "messages" in value:
            raise DataError(f"{where}: messages beside prompt and completion: one of the two")
        return Chat(where, (Message("user", value["prompt"]), Message("assistant", value["completion"])))
    if "messages" not in value:
        raise DataError(f'{where}: expected {{"messages": […]}} or {{"prompt": "…", "completion": "…"}}')
    messages = read_messages(where, value["messages"])
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{where}: no assistant message, so there is nothing to learn")
    tools = value.get("tools")
    return Chat(where, tuple(messages), () if tools is None else _tools(where, tools))


def read_documents(path: str | Path) -> list[str]:
    """Documents of a text file (one, the whole file) or of a .jsonl file (one {"text": …} per line).

    Raises:
        DataError: unreadable, no "text", or nothing but white space.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        documents = []
        for where, value in read_jsonl(path):
            if not isinstance(value.get("text"), str):
                raise DataError(f'{where}: expected {{"text": "…"}}')
            documents.append(value["text"])
    else:
        try:
            documents = [path.read_text(encoding="utf-8")]
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise DataError(f"{path}: no text")
    return documents


def encode_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> Example:
    """One conversation as the server would render it; trained is what the template itself marks."""
    segments = template.render(messages, generate=False, tools=tools)
    return _example(*encode_segments(tokenizer, segments))


def encode_examples(tokenizer: Tokenizer, template: ChatTemplate, chat: Chat) -> list[Example]:
    """What is learned from a conversation: every reply after the prompt that is served for it.

    Usually one example with all replies; several where a template writes a turn differently once others
    follow (llm/chat/replies.py).

    Raises:
        DataError: the template refuses the conversation.
    """
    try:
        return [_example(*part) for part in encode_replies(tokenizer, template, chat.messages, chat.tools)]
    except RequestError as error:
        raise DataError(f"{chat.where}: {error}") from None


def _example(ids: list[int], trained: list[bool]) -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array(trained, dtype=np.bool_))


def encode_file(path: Path, tokenizer: Tokenizer, template: ChatTemplate) -> list[list[int]]:
    """The texts of a file as they are read, whatever is learned from them: chats when its name ends with
    .jsonl, else one document, after the begin-of-text id if there is one.

    Raises:
        DataError, RequestError: it cannot be used.
    """
    if path.suffix == ".jsonl":
        chats = read_chats(path)
        return [encode_chat(tokenizer, template, chat.messages, chat.tools).ids.tolist() for chat in chats]
    begin = [] if tokenizer.begin_of_text is None else [tokenizer.begin_of_text]
    return [begin + tokenizer.encode(text, continued=bool(begin)) for text in read_documents(path)]


def join_documents(tokenizer: Tokenizer, documents: Sequence[str]) -> Ids:
    """Ids of all documents, an end-of-text after each where the vocabulary has one."""
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document)
        if tokenizer.end_of_text is not None:
            ids.append(tokenizer.end_of_text)
    return np.array(ids, dtype=np.int32)
