"""Functions a model may call: the request's `tools` and `tool_choice` → tools, and the grammar of the reply.

How calls are written is the template's affair (llm/chat/tools.py); whatever it is, replies follow a grammar
in which a call is well formed, so a model that never saw a function still calls it correctly when it must.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llm.chat.template import ChatTemplate
from llm.chat.tools import Choice, Tool, or_content
from llm.grammar import GrammarSpec, check_schema
from server.api.fields import Schema
from server.errors import invalid, shown

MAX_TOOLS = 64

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionSpec(Schema):
    """A function: what it does and what it takes."""

    name: FunctionName
    description: Annotated[str, Field(max_length=16 << 10)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Schema):
    """One tool; functions are the only kind there is."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Schema):
    """The function that must be called."""

    name: FunctionName


class NamedTool(Schema):
    """`tool_choice` as an object."""

    type: Literal["function"]
    function: NamedFunction


def _kind_of_choice(value: Any) -> str | None:
    return "<word>" if isinstance(value, str) else "<named>" if isinstance(value, dict | NamedTool) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedTool, Tag("<named>")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="tool_choice_type",
        custom_error_message="must be none, auto, required or an object that names a function",
    ),
]


class ToolFields(Schema):
    """What the chat takes."""

    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What one request's reply may call; no tools for none.

    Attributes:
        tools: shown to the model.
        choice: auto, required, or the one that must be called.
        parallel: several calls in one reply; None where the model knows how, since one that has only been
            told of functions is apt to call them again and again.
    """

    tools: tuple[Tool, ...] = ()
    choice: Choice = "auto"
    parallel: bool | None = None

    def spec(self, template: ChatTemplate, form: GrammarSpec | None = None) -> GrammarSpec:
        """The grammar of replies in this template's format, of a request with tools.

        Args:
            form: what content has to be where a reply may also call.

        Raises:
            ApiError, RequestError: the form is none that can stand beside calls, or a schema cannot be
                enforced.
        """
        assert self.tools
        parallel = template.writes_tools if self.parallel is None else self.parallel
        if form is None or self.choice != "auto":
            text = template.tool_format.grammar(self.tools, self.choice, parallel)
            return GrammarSpec("grammar", text, "tools")
        calls = template.tool_format.grammar(self.tools, "required", parallel)
        return GrammarSpec("grammar", or_content(calls, _object_schema(form)), form.param)


def _object_schema(form: GrammarSpec) -> dict[str, Any]:
    schema = {"type": "object"} if form.kind == "json_object" else None
    if form.kind == "json_schema":
        schema = json.loads(form.source)
    if not isinstance(schema, dict):
        message = f"{form.param} together with tools must be a JSON schema, unless tool_choice says otherwise"
        raise invalid(message, form.param)
    check_schema(schema, form.param)
    return schema


def to_tool_use(fields: ToolFields) -> ToolUse:
    """The tools of a request, as they are to be used. With `tool_choice: none` the model is not shown them.

    Raises:
        ApiError: a name twice, a choice without tools, or of a function that is not among them.
    """
    tools = tuple(_tool(sent) for sent in fields.tools or ())
    names = [tool.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise invalid(
                f"tools[{i}].function.name {shown(name)} is given twice", f"tools[{i}].function.name"
            )
    choice = fields.tool_choice
    if not tools:
        if isinstance(choice, NamedTool) or choice == "required":
            raise invalid("tool_choice is only for requests with tools", "tool_choice")
        return ToolUse()
    if choice == "none":
        return ToolUse()
    parallel = fields.parallel_tool_calls
    if isinstance(choice, NamedTool):
        wanted = choice.function.name
        if wanted not in names:
            param = "tool_choice.function.name"
            raise invalid(f"{param} {shown(wanted)} is not among tools: {', '.join(names)[:200]}", param)
        return ToolUse(tools, tools[names.index(wanted)], parallel)
    return ToolUse(tools, "required" if choice == "required" else "auto", parallel)


def _tool(sent: ToolSpec) -> Tool:
    function = sent.function
    return Tool(function.name, function.description, function.parameters, bool(function.strict))
