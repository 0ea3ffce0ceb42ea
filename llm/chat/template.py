"""Messages → the token ids the model was trained on. Training and serving both come through here.

A template renders a conversation into segments; each segment is encoded on its own, so a conversation's ids
are the same whether it was seen in training or arrives in a request, turn by turn. Refuses to know the
network, requests, and any template text that does not come from this file (later: from the operator's
checkpoint).

    >>> template = PlainTemplate(default_system="You answer questions briefly.")
    >>> print(template.text([Message("user", "hello")]))
    System: You answer questions briefly.
    User: hello
    Assistant:
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Protocol

from llm.chat.message import Message as Message
from llm.chat.message import Role as Role
from llm.chat.message import Segment as Segment
from llm.chat.message import ToolCall as ToolCall
from llm.chat.tools import PLAIN, Tool, ToolFormat
from llm.chat.turns import check_calls, check_final, instruct, spell_calls, with_system
from llm.errors import CheckpointError, RequestError
from llm.tokenizer import Tokenizer


class ChatTemplate(Protocol):
    """How one family of checkpoints writes a conversation."""

    name: str
    default_system: str | None

    @property
    def tool_format(self) -> ToolFormat:
        """How a reply calls functions, and how calls in a conversation are written."""

    @property
    def writes_tools(self) -> bool:
        """Whether the template has words of its own for functions, so that the model has seen some."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        tools: Sequence[Tool] = (),
        options: Mapping[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[Segment]:
        """Segments of a conversation.

        Args:
            generate: end where the model's reply begins.
            tools: functions the model may call.
            options: what else a template may be told, such as enable_thinking.
            continue_final: end where the last message's text ends, so that the model goes on with it; it is
                the assistant's. `generate` does not count then.

        Raises:
            RequestError: the template refuses this conversation, or does not know an option; or the last
                message cannot be continued.
        """


class PlainTemplate:
    """The course's format: one line per turn, the reply ends at the line's end.

        System: You answer questions briefly.
        User: what is a token?
        Assistant: A piece of text.

    Line breaks inside a message become spaces, so a message can never speak as another role. Calls are part
    of the assistant's line, and a result is a line of its own:

        Assistant: <tool_call>{"name": "weather", "arguments": {"place": "Oslo"}}</tool_call>
        Tool: rain

    Args:
        default_system: system line of a conversation that brings none.
        begin: spelling of the control token that every sequence begins with, if the model has one.
    """

    name = "plain"
    stops = ("\nUser:", "\nSystem:", "\n")
    """Stop strings that end a reply in this format."""
    tool_format = PLAIN
    writes_tools = False

    def __init__(self, default_system: str | None = None, begin: str | None = None) -> None:
        self.default_system, self.begin = default_system, begin

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        tools: Sequence[Tool] = (),
        options: Mapping[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[Segment]:
        refuse_options(self.name, options)
        check_calls(messages)
        final = messages[-1] if continue_final and check_final(messages) else None
        messages = with_system(messages[:-1] if continue_final else messages, self.default_system)
        if tools:
            messages = instruct(messages, PLAIN, tools, between=" ")
        segments = [] if self.begin is None else [Segment(self.begin, control=True)]
        for message in spell_calls(messages, PLAIN):
            line = _one_line(message.content).strip()
            if message.role == "assistant":
                segments += [Segment("Assistant:"), Segment(f" {line}\n", trained=True)]
            else:
                segments.append(Segment(f"{message.role.title()}: {line}\n"))
        if generate or continue_final:
            segments.append(Segment("Assistant:"))
        if final is not None:
            segments.append(Segment(f" {_one_line(final.content).lstrip()}", trained=True))
        return segments

    def text(self, messages: Sequence[Message], *, generate: bool = True) -> str:
        """The rendered conversation as one string, for people to read."""
        return "".join(segment.text for segment in self.render(messages, generate=generate))


_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def _one_line(text: str) -> str:
    """As `" ".join(text.splitlines())`, which makes a string of each line and takes eight times as long for a
    million of them, all of it without letting another thread in.
    """
    text = text.replace("\r\n", "\n")
    if text and text[-1] in _BREAKS:
        text = text[:-1]
    for mark in _BREAKS:
        text = text.replace(mark, " ")
    return text


def refuse_options(name: str, options: Mapping[str, object] | None) -> None:
    """For a template that knows no options.

    Raises:
        RequestError: one is given.
    """
    if options:
        option = option_param(next(iter(options)))
        raise RequestError(f"{option}: this model's chat template ({name}) knows no options", param=option)


def option_param(name: str) -> str:
    """An option's JSON path, fit for a line of the log whatever a client calls it."""
    shown = "".join(char if char.isprintable() else "?" for char in name[:64])
    return f"chat_template_kwargs.{shown}"


def get_template(name: str, default_system: str | None = None, begin: str | None = None) -> PlainTemplate:
    """The built-in template of that name; the other arguments are its own.

    Raises:
        CheckpointError: no such template.
    """
    if name != PlainTemplate.name:
        raise CheckpointError(f"unknown chat template {name!r}, known: {PlainTemplate.name}")
    return PlainTemplate(default_system, begin)


def begin_of(tokenizer: Tokenizer) -> str | None:
    """Spelling of the control token that every sequence begins with, if there is one."""
    begin = tokenizer.begin_of_text
    return next((text for text, token_id in tokenizer.control.items() if token_id == begin), None)


def encode_segments(tokenizer: Tokenizer, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
    """Ids of the segments, and for each id whether it is trained. Both lists have the same length."""
    ids: list[int] = []
    trained: list[bool] = []
    for segment in segments:
        if segment.control:
            encoded = [tokenizer.control[segment.text]]
        else:
            encoded = tokenizer.encode(segment.text, continued=bool(ids))
        ids += encoded
        trained += [segment.trained] * len(encoded)
    return ids, trained


def encode_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    options: Mapping[str, object] | None = None,
    *,
    tools: Sequence[Tool] = (),
    generate: bool = True,
    continue_final: bool = False,
) -> list[int]:
    """Ids after which the model's reply begins; the arguments are the template's."""
    segments = template.render(
        messages, generate=generate, tools=tools, options=options, continue_final=continue_final
    )
    return encode_segments(tokenizer, segments)[0]


def text_bytes(segments: Sequence[Segment]) -> int:
    """UTF-8 bytes of the ordinary text: it has at least one token for every `longest_token` of them."""
    return sum(len(segment.text.encode("utf-8", "replace")) for segment in segments if not segment.control)


def drop_oldest(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    room: int,
    options: Mapping[str, object] | None = None,
    *,
    tools: Sequence[Tool] = (),
    generate: bool = True,
    continue_final: bool = False,
) -> tuple[list[int], int]:
    """Drop the oldest turns, never a system message and never the last message, until the prompt fits `room`
    ids.

    A user's turn and the replies to it go together: a reply whose question is gone would answer nothing. A
    result goes with its call: when the last message is one, so does the turn that called.
    The cut is found by bisection, so 1,024 messages are encoded about ten times, not a thousand, and what has
    more bytes than `room` tokens can hold is not encoded at all.

    Args:
        options, tools, generate, continue_final: the template's.

    Returns:
        The prompt's ids and the number of messages dropped.

    Raises:
        RequestError: system messages and the last message alone are already too long, or the template refuses
            the conversation.
    """

    def without(first_kept: int) -> list[Message]:
        return [m for i, m in enumerate(messages) if i >= first_kept or m.role == "system"]

    def render(first_kept: int) -> list[Segment]:
        return template.render(
            without(first_kept),
            generate=generate,
            tools=tools,
            options=options,
            continue_final=continue_final,
        )

    def num_tokens(first_kept: int) -> int:
        """Exact up to `room`, at least a lower bound beyond."""
        segments = render(first_kept)
        least = -(-text_bytes(segments) // tokenizer.longest_token)
        return least if least > room else len(encode_segments(tokenizer, segments)[0])

    starts = _starts(messages)
    cut = bisect.bisect_left(starts, True, key=lambda start: num_tokens(start) <= room)
    if cut == len(starts):
        raise RequestError(
            f"the prompt is too long: the system message and the last message alone are at least "
            f"{num_tokens(starts[-1])} tokens, the limit is {room}",
            param="messages",
            code="context_length_exceeded",
        )
    ids = encode_segments(tokenizer, render(starts[cut]))[0]
    return ids, len(messages) - len(without(starts[cut]))


def _starts(messages: Sequence[Message]) -> list[int]:
    """Where a conversation may begin: at its beginning, at a turn of the user's, and as late as possible; but
    never between a call and its result.
    """
    last = len(messages) - 1
    calls: dict[str | None, int] = {}
    held: set[int] = set()  # places after a call, up to its result
    owner = last
    for i, message in enumerate(messages):
        if message.role != "tool":
            owner = i if message.role != "system" else owner
            calls |= {call.id: i for call in message.tool_calls}
        else:
            held.update(range(calls.get(message.tool_call_id, owner) + 1, i + 1))
    latest = next(i for i in range(last, -1, -1) if i not in held)
    users = {i for i, message in enumerate(messages) if message.role == "user" and i <= latest}
    return sorted({0, latest, *users} - held)
