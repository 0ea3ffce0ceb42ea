"""Messages as a client sends them → the prompt the model was trained on. Shared by chat and /apply-template.

Long prompts are tokenised in a worker thread, and those that cannot fit by their bytes alone not at all; what
to drop is always found in one, since that renders the conversation a dozen times (0.3 s for 1,024 messages).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llm.chat.template import Message, Role, Segment, ToolCall, drop_oldest, encode_segments, text_bytes
from llm.chat.tools import Tool
from llm.errors import RequestError
from llm.text import TextModel
from server.api.fields import Neutral, Schema, refuse_unbuilt
from server.api.inputs import IN_THREAD_SIZE, off_loop
from server.api.tools import FunctionName
from server.errors import invalid

MAX_MESSAGES = 1024
MAX_OPTIONS = 16
MAX_CALLS = 64
MAX_ID_CHARS = 256
TRUNCATED_HEADER = "x-truncated-messages"

UNBUILT_MESSAGE: Neutral = {"function_call": ()}
"""Parts of a message that would change what the model reads."""


class TextPart(Schema):
    """One piece of a message's content; only text is built."""

    type: Literal["text"]
    text: str


def _kind_of_content(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES), Tag("<parts>")],
    Discriminator(
        _kind_of_content,
        custom_error_type="content_type",
        custom_error_message="must be a string or a list of text parts",
    ),
]


class SentFunction(Schema):
    """What was called."""

    name: FunctionName
    arguments: str


class SentCall(Schema):
    """A tool call of an assistant's turn, as the server wrote it."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    type: Literal["function"] | None = None
    function: SentFunction


class ChatMessage(Schema):
    """One turn, as OpenAI's API writes it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Annotated[str, Field(max_length=MAX_ID_CHARS)] | None = None
    tool_calls: Annotated[list[SentCall], Field(max_length=MAX_CALLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=MAX_ID_CHARS)] | None = None


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
TemplateOptions = Annotated[dict[str, Any], Field(max_length=MAX_OPTIONS)] | None
"""`chat_template_kwargs`: the template says which it knows."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a conversation is to be written: the arguments of ChatTemplate.render."""

    tools: tuple[Tool, ...] = ()
    options: TemplateOptions = None
    generate: bool = True
    continue_final: bool = False

    def segments(self, model: TextModel, messages: Sequence[Message]) -> list[Segment]:
        """The conversation in the model's template."""
        return model.template.render(
            messages,
            generate=self.generate,
            tools=self.tools,
            options=self.options,
            continue_final=self.continue_final,
        )


class RenderingFields(Schema):
    """What chat and /apply-template take."""

    messages: Messages
    chat_template_kwargs: TemplateOptions = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


def to_rendering(fields: RenderingFields, tools: tuple[Tool, ...]) -> Rendering:
    """How this request wants its conversation written.

    Raises:
        ApiError: a final message that is both continued and answered.
    """
    continue_final = fields.continue_final_message is True
    if continue_final and fields.add_generation_prompt is True:
        message = "continue_final_message and add_generation_prompt cannot both be true"
        raise invalid(message, "continue_final_message")
    generate = fields.add_generation_prompt is not False and not continue_final
    return Rendering(tools, fields.chat_template_kwargs, generate, continue_final)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids after which the reply begins, and how many of the oldest messages were left out."""

    ids: list[int]
    num_dropped: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """Says so when messages were dropped."""
        return {TRUNCATED_HEADER: str(self.num_dropped)} if self.num_dropped else {}


def to_messages(sent: Sequence[ChatMessage], param: str = "messages") -> list[Message]:
    """Text of each turn: parts joined by line breaks, developer read as system, an assistant's null as "".

    Args:
        param: the conversation's path in the request.

    Raises:
        ApiError: a turn without content that must have some, calls of another than the assistant, a result
            that names no call.
    """
    messages: list[Message] = []
    for i, message in enumerate(sent):
        path = f"{param}[{i}]"
        refuse_unbuilt(message, UNBUILT_MESSAGE, f"{path}.")
        if message.content is None and message.role != "assistant":
            param = f"{path}.content"
            raise invalid(f"{param} is required for role {message.role}", param, "missing_required_parameter")
        if message.tool_calls and message.role != "assistant":
            param = f"{path}.tool_calls"
            raise invalid(f"{param} is only for role assistant, got role {message.role}", param)
        if message.role == "tool" and message.tool_call_id is None:
            param = f"{path}.tool_call_id"
            raise invalid(f"{param} is required for role tool", param, "missing_required_parameter")
        role: Role = "system" if message.role == "developer" else message.role
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in message.tool_calls or ()
        )
        messages.append(Message(role, _text(message.content), calls, message.tool_call_id, message.name))
    return messages


def _text(content: str | list[TextPart] | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


async def encode(model: TextModel, segments: list[Segment]) -> list[int]:
    """Token ids of a rendered conversation of any length."""
    return await off_loop(text_bytes(segments), lambda: encode_segments(model.tokenizer, segments)[0])


async def build_prompt(
    model: TextModel, messages: list[Message], rendering: Rendering, *, max_tokens: int | None, drop: bool
) -> Prompt:
    """The prompt of a conversation.

    Args:
        rendering: how it is written.
        max_tokens: new tokens wanted; `drop` makes room for them, up to half of the context.
        drop: leave out the oldest turns instead of refusing a conversation that is too long.

    Raises:
        RequestError: longer than the model's context, or refused by the model's template.
    """
    segments = rendering.segments(model, messages)
    if drop:
        size = IN_THREAD_SIZE + text_bytes(segments)
        return await off_loop(size, lambda: _fit(model, messages, rendering, max_tokens))
    if (size := text_bytes(segments)) > model.max_prompt_bytes:
        raise RequestError(
            f"the prompt is too long: it is {size} bytes, and this model's maximum context length is "
            f"{model.max_model_len} tokens, which hold at most {model.max_prompt_bytes} bytes",
            param="messages",
            code="context_length_exceeded",
        )
    return Prompt(await encode(model, segments))


def _fit(model: TextModel, messages: list[Message], rendering: Rendering, max_tokens: int | None) -> Prompt:
    """Room for the reply if possible; when the last message leaves less, what it leaves."""
    half = model.max_model_len // 2
    reply = half if max_tokens is None else min(max_tokens, half)

    def fit(room: int) -> Prompt:
        ids, num_dropped = drop_oldest(
            model.tokenizer,
            model.template,
            messages,
            room,
            rendering.options,
            tools=rendering.tools,
            generate=rendering.generate,
            continue_final=rendering.continue_final,
        )
        return Prompt(ids, num_dropped)

    try:
        return fit(model.max_model_len - reply)
    except RequestError:
        return fit(model.max_model_len - 1)
