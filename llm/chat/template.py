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
from collections.abc import Sequence
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
    """A stretch of rendered text; `trained` marks what the model is taught to write itself."""

    text: str
    trained: bool = False


class ChatTemplate(Protocol):
    """How one family of checkpoints writes a conversation."""

    name: str

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> list[Segment]:
        """Segments of a conversation, ending where the model's reply begins when `generate`."""


class PlainTemplate:
    """The course's format: one line per turn, the reply ends at the line's end.

        System: You answer questions briefly.
        User: what is a token?
        Assistant: A piece of text.

    Line breaks inside a message become spaces, so a message can never speak as another role.
    """

    name = "plain"

    def __init__(self, default_system: str | None = None) -> None:
        self.default_system = default_system

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> list[Segment]:
        if self.default_system is not None and not any(m.role == "system" for m in messages):
            messages = [Message("system", self.default_system), *messages]
        segments: list[Segment] = []
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
        encoded = tokenizer.encode(segment.text)
        ids += encoded
        trained += [segment.trained] * len(encoded)
    return ids, trained


def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Ids after which the model's reply begins."""
    return encode_segments(tokenizer, template.render(messages))[0]


def drop_oldest(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], room: int
) -> tuple[list[int], int]:
    """Drop the oldest turns, never a system message and never the last message, until the prompt fits `room`
    ids.

    A user's turn and the replies to it go together: a reply whose question is gone would answer nothing.
    The cut is found by bisection, so 1,024 messages are encoded about ten times, not a thousand, and what has
    more bytes than `room` tokens can hold is not encoded at all.

    Returns:
        The prompt's ids and the number of messages dropped.

    Raises:
        RequestError: system messages and the last message alone are already too long.
    """

    def without(first_kept: int) -> list[Message]:
        return [m for i, m in enumerate(messages) if i >= first_kept or m.role == "system"]

    def num_tokens(first_kept: int) -> int:
        """Exact up to `room`, at least a lower bound beyond."""
        segments = template.render(without(first_kept))
        num_bytes = sum(len(segment.text.encode("utf-8", "replace")) for segment in segments)
        least = -(-num_bytes // tokenizer.longest_token)
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
    return encode_prompt(tokenizer, template, kept), len(messages) - len(kept)
