"""What a conversation is made of before it is written, and the stretches of text it is written as.

Refuses to know templates, tokens and requests.

    >>> call = ToolCall("call_1", "rain", '{"place": "Oslo"}')
    >>> chat = [Message("user", "Rain?"), Message("assistant", "", (call,)), Message("tool", "no")]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the assistant asked for.

    Attributes:
        id: by which the result names it.
        arguments: JSON text of an object; empty for none.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Roles beyond these are mapped (developer → system) or refused at the HTTP edge.

    Attributes:
        tool_calls: of the assistant, after its content.
        tool_call_id: of a tool's result: which call it answers.
        name: of the speaker or the function, for templates that write it.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


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
