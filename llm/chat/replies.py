"""Which token ids of a conversation a model is taught to write: each reply, after the prompt served for it.

A template that marks its replies (plain, chatml, jinja with {% generation %}) is taken at its word. Of any
other, a reply is what stands after the prompt that the server would render for it, up to the marker that ends
it; the line break that many templates write after that marker is theirs, not the model's. Some templates
write a turn differently once others follow (they drop what was thought), and then the conversation becomes
several stretches, each a prompt exactly as served and its reply. Refuses to know files, batches and losses.

    >>> encode_replies(tokenizer, template, [Message("user", "hi"), Message("assistant", "hello")])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llm.chat.message import Message, Segment
from llm.chat.template import ChatTemplate, encode_segments
from llm.chat.tools import Tool
from llm.errors import RequestError
from llm.tokenizer import Tokenizer

Stretch = tuple[list[int], list[bool]]
"""Ids (n,) and, for each, whether the model is taught to write it (n,)."""


def encode_replies(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[Stretch]:
    """A conversation as what is learned from it.

    Returns:
        One stretch with every reply, or several.

    Raises:
        RequestError: the template refuses the conversation, or does not write a reply after its prompt.
    """
    whole = template.render(messages, generate=False, tools=tools)
    if any(segment.trained for segment in whole):
        return [encode_segments(tokenizer, whole)]
    stretches: list[Stretch] = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = template.render(messages[:i], generate=True, tools=tools)
        written = template.render(messages[: i + 1], generate=False, tools=tools)
        reply = _after(prompt, written, f"messages[{i}]")
        ids, trained = encode_segments(tokenizer, [*prompt, *_taught(reply)])
        if stretches and ids[: len(stretches[-1][0])] == stretches[-1][0]:
            before = stretches.pop()[1]
            trained = before + trained[len(before) :]
        stretches.append((ids, trained))
    return stretches


def _after(prompt: Sequence[Segment], written: Sequence[Segment], where: str) -> list[Segment]:
    """What is written after the prompt.

    Raises:
        RequestError: something else stands where the prompt should.
    """
    begun = "".join(segment.text for segment in prompt)
    if not "".join(segment.text for segment in written).startswith(begun):
        raise RequestError(
            f"{where}: this model's chat template does not write a reply after the prompt it is served with",
            param="messages",
        )
    rest, left = [], len(begun)
    for segment in written:
        if left < len(segment.text):
            rest.append(Segment(segment.text[left:]) if left else segment)
        left = max(0, left - len(segment.text))
    return rest


def _taught(reply: Sequence[Segment]) -> list[Segment]:
    """The reply with all of it marked but the white space after the control token that ends it."""
    last = len(reply) - 1
    tail = last > 0 and reply[last - 1].control and not reply[last].text.strip()
    return [replace(segment, trained=not (tail and i == last)) for i, segment in enumerate(reply)]
