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
from dataclasses import dataclass
from typing import Literal, Protocol

from llm.errors import CheckpointError, RequestError
from llm.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Roles beyond these three are mapped (developer → system) or refused at the HTTP edge."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered text.

    Attributes:
        text: as written into the prompt.
        trained: the model is taught to write it itself.
        control: the text is the spelling of one control token, and becomes that token. Nothing else does.
    """

    text: str
    trained: bool = False
    control: bool = False


class ChatTemplate(Protocol):
    """How one family of checkpoints writes a conversation."""

    name: str
    default_system: str | None

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        tools: Sequence[Mapping[str, object]] = (),
        options: Mapping[str, object] | None = None,
    ) -> list[Segment]:
        """Segments of a conversation.

        Args:
            generate: end where the model's reply begins.
            tools: functions the model may call, as OpenAI's API describes them.
            options: what else a template may be told, such as enable_thinking.

        Raises:
            RequestError: the template refuses this conversation, or does not know an option.
        """


class PlainTemplate:
    """The course's format: one line per turn, the reply ends at the line's end.

        System: You answer questions briefly.
        User: what is a token?
        Assistant: A piece of text.

    Line breaks inside a message become spaces, so a message can never speak as another role.

    Args:
        default_system: system line of a conversation that brings none.
        begin: spelling of the control token that every sequence begins with, if the model has one.
    """

    name = "plain"
    stops = ("\nUser:", "\nSystem:", "\n")
    """Stop strings that end a reply in this format."""

    def __init__(self, default_system: str | None = None, begin: str | None = None) -> None:
        self.default_system = default_system
        self._begin = [] if begin is None else [Segment(begin, control=True)]

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        tools: Sequence[Mapping[str, object]] = (),
        options: Mapping[str, object] | None = None,
    ) -> list[Segment]:
        refuse_options(self.name, tools, options)
        if self.default_system is not None and not any(m.role == "system" for m in messages):
            messages = [Message("system", self.default_system), *messages]
        segments = list(self._begin)
        for message in messages:
            line = " ".join(message.content.splitlines()).strip()
            if message.role == "assistant":
                segments += [Segment("Assistant:"), Segment(f" {line}\n", trained=True)]
            else:
                segments.append(Segment(f"{message.role.title()}: {line}\n"))
        if generate:
            segments.append(Segment("Assistant:"))
        return segments

    def text(self, messages: Sequence[Message], *, generate: bool = True) -> str:
        """The rendered conversation as one string, for people to read."""
        return "".join(segment.text for segment in self.render(messages, generate=generate))


def refuse_options(
    name: str, tools: Sequence[Mapping[str, object]], options: Mapping[str, object] | None
) -> None:
    """For a template that knows neither tools nor options.

    Raises:
        RequestError: either is given.
    """
    if tools:
        raise RequestError(f"this model's chat template ({name}) knows no tools", param="tools")
    if options:
        option = option_param(next(iter(options)))
        raise RequestError(f"{option}: this model's chat template ({name}) knows no options", param=option)


def option_param(name: str) -> str:
    """An option's JSON path, fit for a line of the log whatever a client calls it."""
    shown = "".join(char if char.isprintable() else "?" for char in name[:64])
    return f"chat_template_kwargs.{shown}"


def get_template(name: str, default_system: str | None = None) -> PlainTemplate:
    """The built-in template of that name.

    Raises:
        CheckpointError: no such template.
    """
    if name != PlainTemplate.name:
        raise CheckpointError(f"unknown chat template {name!r}, known: {PlainTemplate.name}")
    return PlainTemplate(default_system)


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
) -> list[int]:
    """Ids after which the model's reply begins."""
    return encode_segments(tokenizer, template.render(messages, options=options))[0]


def text_bytes(segments: Sequence[Segment]) -> int:
    """UTF-8 bytes of the ordinary text: it has at least one token for every `longest_token` of them."""
    return sum(len(segment.text.encode("utf-8", "replace")) for segment in segments if not segment.control)


def drop_oldest(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    room: int,
    options: Mapping[str, object] | None = None,
) -> tuple[list[int], int]:
    """Drop the oldest turns, never a system message and never the last message, until the prompt fits `room`
    ids.

    A user's turn and the replies to it go together: a reply whose question is gone would answer nothing.
    The cut is found by bisection, so 1,024 messages are encoded about ten times, not a thousand, and what has
    more bytes than `room` tokens can hold is not encoded at all.

    Args:
        options: the template's.

    Returns:
        The prompt's ids and the number of messages dropped.

    Raises:
        RequestError: system messages and the last message alone are already too long, or the template refuses
            the conversation.
    """

    def without(first_kept: int) -> list[Message]:
        return [m for i, m in enumerate(messages) if i >= first_kept or m.role == "system"]

    def num_tokens(first_kept: int) -> int:
        """Exact up to `room`, at least a lower bound beyond."""
        segments = template.render(without(first_kept), options=options)
        least = -(-text_bytes(segments) // tokenizer.longest_token)
        return least if least > room else len(encode_segments(tokenizer, segments)[0])

    last = len(messages) - 1
    starts = [0, *(i for i, m in enumerate(messages) if i == last or m.role == "user")]
    cut = bisect.bisect_left(starts, True, key=lambda start: num_tokens(start) <= room)
    if cut == len(starts):
        raise RequestError(
            f"the system message and the last message alone are at least {num_tokens(last)} tokens, "
            f"the limit is {room}",
            param="messages",
            code="context_length_exceeded",
        )
    kept = without(starts[cut])
    return encode_prompt(tokenizer, template, kept, options), len(messages) - len(kept)
