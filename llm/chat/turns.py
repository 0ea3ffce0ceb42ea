"""Conversations with tools, rewritten for templates that know less: messages in, messages out.

What a template cannot write becomes text: the functions a part of the system message, calls a part of the
assistant's message, results a user's turn. Refuses to know how templates write what they can.

    >>> spell_calls([Message("assistant", "", (ToolCall("call_1", "f", "{}"),))], PLAIN)[0].content
    '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from llm.chat.message import Message, Role, ToolCall
from llm.chat.tools import Tool, ToolFormat, read_arguments
from llm.errors import RequestError

CONTINUE = "continue_final_message"


def check_calls(messages: Sequence[Message]) -> None:
    """Refuse calls that cannot be written.

    Raises:
        RequestError: the arguments of a call are no JSON object; names the call.
    """
    for i, message in enumerate(messages):
        for j, call in enumerate(message.tool_calls):
            read_arguments(call, f"messages[{i}].tool_calls[{j}].function.arguments")


def with_system(messages: Sequence[Message], content: str | None) -> list[Message]:
    """With a system message of that content in front, unless there is one."""
    if content is None or any(message.role == "system" for message in messages):
        return list(messages)
    return [Message("system", content), *messages]


def instruct(
    messages: Sequence[Message],
    form: ToolFormat,
    tools: Sequence[Tool],
    *,
    system: bool = True,
    between: str = "\n\n",
) -> list[Message]:
    """With what the model has to know of its tools at the end of the first system message.

    Args:
        system: the template writes system messages; if not, the first user's message begins with it.
        between: what stands between that and the message.
    """
    text = form.instructions(tools)
    role: Role = "system" if system else "user"
    at = next((i for i, message in enumerate(messages) if message.role == role), None)
    if at is None:
        return [Message(role, text), *messages]
    content = messages[at].content
    parts = [content, text] if system else [text, content]
    changed = replace(messages[at], content=between.join(filter(None, parts)))
    return [*messages[:at], changed, *messages[at + 1 :]]


def spell_calls(messages: Sequence[Message], form: ToolFormat) -> list[Message]:
    """Calls as text of the assistant's."""
    return [
        replace(message, content=_spelled(message, form), tool_calls=()) if message.tool_calls else message
        for message in messages
    ]


def _spelled(message: Message, form: ToolFormat) -> str:
    calls = form.between.join(map(form.write_call, message.tool_calls))
    return f"{message.content}{form.between}{calls}" if message.content else calls


def results_as_user(messages: Sequence[Message], form: ToolFormat) -> list[Message]:
    """The results of one turn's calls as one turn of the user's, so that turns go on alternating."""
    turns: list[Message] = []
    for is_result, group in groupby(messages, key=lambda message: message.role == "tool"):
        if is_result:
            turns.append(Message("user", "\n".join(form.write_result(message.content) for message in group)))
        else:
            turns += group
    return turns


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Turns with several calls as several turns, each call followed by its result, for templates that write
    one call at a time.
    """
    turns: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        end = at + 1
        while end < len(messages) and message.tool_calls and messages[end].role == "tool":
            end += 1
        turns += (
            _paired(message, list(messages[at + 1 : end]))
            if len(message.tool_calls) > 1
            else messages[at:end]
        )
        at = end
    return turns


def _paired(message: Message, results: list[Message]) -> list[Message]:
    turns = []
    for i, call in enumerate(message.tool_calls):
        turns.append(replace(message, content="" if i else message.content, tool_calls=(call,)))
        mine = [result for result in results if result.tool_call_id == call.id]
        turns += mine
        results = [result for result in results if result not in mine]
    return turns + results


def named_results(messages: Sequence[Message]) -> list[Message]:
    """With each result carrying its function's name, as some templates want it."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [
        replace(message, name=names.get(message.tool_call_id or ""))
        if message.role == "tool" and message.name is None
        else message
        for message in messages
    ]


def fields_of(message: Message) -> dict[str, object]:
    """A message as templates know it: OpenAI's object, but with a call's arguments read, as Hugging Face's
    renderer expects them.
    """
    fields: dict[str, object] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [_call_fields(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        fields["name"] = message.name
    return fields


def _call_fields(call: ToolCall) -> Mapping[str, object]:
    function = {"name": call.name, "arguments": read_arguments(call)}
    return {"id": call.id, "type": "function", "function": function}


def check_final(messages: Sequence[Message]) -> bool:
    """Whether the last message, which the model is to continue, says anything yet.

    Raises:
        RequestError: the last message is none of the assistant's, or calls functions.
    """
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant":
        raise RequestError(f"{CONTINUE}: the last message must be the assistant's", param=CONTINUE)
    if last.tool_calls:
        raise RequestError(f"{CONTINUE}: a message with tool calls cannot be continued", param=CONTINUE)
    return bool(last.content.strip())
