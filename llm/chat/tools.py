"""Functions a model may call, and the forms in which models ask for them.

A form says how calls and results are written, what a model without a tool template of its own is told, how a
reply is read (`tool_calls.py`), and, as a grammar, what a reply may be. Grammars are text for llguidance:
Lark rules in which `%json` embeds a function's schema. JSON comes on one line there, so a stop string with a
line break in it cannot cut a call. Refuses to know templates and tokens.

    >>> print(HERMES.write_call(ToolCall("call_1", "weather", '{"place":"Oslo"}')))
    <tool_call>
    {"name": "weather", "arguments": {"place": "Oslo"}}
    </tool_call>
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol

from llm.chat.message import ToolCall
from llm.chat.tool_calls import CALL, END_OF_CALL, PYTHON_TAG, HermesParser, Llama3Parser, ToolCallParser
from llm.errors import RequestError
from llm.tokenizer.added import replace_surrogates

MAX_ARGUMENT_DEPTH = 48
RESPONSE = "<tool_response>"
END_OF_RESPONSE = "</tool_response>"
_NO_ARGUMENTS: Mapping[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}
_ANY_ARGUMENTS: Mapping[str, object] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function, as a request describes it.

    Attributes:
        parameters: JSON schema of the arguments object; None for a function without arguments.
        strict: its schema has to be enforced or refused.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, object] | None = None
    strict: bool = False

    @property
    def spec(self) -> dict[str, object]:
        """What templates are given: OpenAI's object."""
        function: dict[str, object] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        empty = {"type": "object", "properties": {}}
        function["parameters"] = empty if self.parameters is None else self.parameters
        return {"type": "function", "function": function}


Choice = Literal["auto", "required"] | Tool
"""What a reply may be: text, calls or both; calls only; one call of this function only."""


class ToolFormat(Protocol):
    """How one family of models writes calls."""

    @property
    def name(self) -> str:
        """hermes, llama3 or plain."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts of the format that are control tokens in some vocabularies; a parser has to see the text."""

    @property
    def opening(self) -> str:
        """How a call begins."""

    @property
    def between(self) -> str:
        """What stands between two calls of a turn."""

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What a system message says of the functions where the template says nothing."""

    def grammar(self, tools: Sequence[Tool], choice: Choice = "auto", parallel: bool = True) -> str:
        """Lark text of the replies that are allowed.

        Args:
            choice: of `tools`, or of all of them.
            parallel: more than one call may be made. If not, nothing comes after a call.

        Raises:
            RequestError: a schema that must be enforced cannot be; others give way to any object.
        """

    def parser(self) -> ToolCallParser:
        """A new one, for one reply."""

    def write_call(self, call: ToolCall) -> str:
        """A call as the model would write it.

        Raises:
            RequestError: its arguments are no JSON object.
        """

    def write_result(self, content: str) -> str:
        """A function's answer, for a user's turn; of the plain format, for a line of its own."""


class Hermes:
    """<tool_call>, an object with name and arguments, </tool_call>: Hermes, Qwen and most others.

    Args:
        line: everything on one line, for a template whose reply ends where the line ends.
    """

    def __init__(self, *, line: bool = False) -> None:
        self.name = "plain" if line else "hermes"
        self.markers = (CALL, END_OF_CALL)
        self.opening = CALL
        self.between = " " if line else "\n"
        self._break = "" if line else "\n"
        self._line = line

    def instructions(self, tools: Sequence[Tool]) -> str:
        specs = [_dumps(tool.spec) for tool in tools]
        shape = f'{CALL}{self._break}{{"name": "…", "arguments": {{…}}}}{self._break}{END_OF_CALL}'
        if self._line:
            return f"You can call functions: {' '.join(specs)} To call one, write {shape}"
        return (
            "# Tools\n\nYou can call functions to help the user. Each line between <tools> and </tools> "
            "describes one:\n<tools>\n" + "\n".join(specs) + "\n</tools>\n\n"
            f"To call a function, write its name and its arguments as JSON:\n{shape}\n"
            f"Its result comes back between {RESPONSE} and {END_OF_RESPONSE}."
        )

    def grammar(self, tools: Sequence[Tool], choice: Choice = "auto", parallel: bool = True) -> str:
        opening = "" if choice == "auto" else CALL
        calls = _call_rules(tools, choice, "arguments", opening + self._break, f"{self._break}{END_OF_CALL}")
        again, end = (" ", ' "\\n"?') if self._line else ("\n", "")
        if choice != "auto":
            more = f"({_literal(again)}? call)*" if parallel and choice == "required" else ""
            first = '" "? ' if self._line else ""
            return _lark(f"start: {first}call {more}{end}", *calls)
        any_text = "[^\\n]*" if self._line else "(?s:.*)"
        start = f"(opening call)* FREE?{end}" if parallel else f"(FREE? | opening call){end}"
        return _lark(
            f"start: {start}",
            f"opening[lazy]: /{any_text}{CALL}/",
            f"FREE: /{any_text}/ & ~/{any_text}{CALL}{any_text}/",
            *calls,
        )

    def parser(self) -> ToolCallParser:
        return HermesParser()

    def write_call(self, call: ToolCall) -> str:
        return f"{CALL}{self._break}{_object(call, 'arguments')}{self._break}{END_OF_CALL}"

    def write_result(self, content: str) -> str:
        return content if self._line else f"{RESPONSE}\n{content}\n{END_OF_RESPONSE}"


class Llama3:
    """The whole reply is an object with name and parameters, or several with semicolons between them."""

    name = "llama3"
    markers = (PYTHON_TAG,)
    opening = "{"
    between = "; "

    def instructions(self, tools: Sequence[Tool]) -> str:
        return (
            "You can call these functions:\n\n" + "\n".join(_dumps(tool.spec) for tool in tools) + "\n\n"
            "To call one, answer with nothing but its name and its arguments as JSON: "
            '{"name": "…", "parameters": {…}}'
        )

    def grammar(self, tools: Sequence[Tool], choice: Choice = "auto", parallel: bool = True) -> str:
        calls = _call_rules(tools, choice, "parameters", "", "")
        several = (
            f"call ({_literal(self.between)} call)*" if parallel and not isinstance(choice, Tool) else "call"
        )
        if choice != "auto":
            return _lark(f"start: {several}", *calls)
        return _lark(
            f"start: FREE | {several}",
            r"FREE: /(?s:\s*([^{\s].*)?)/ & ~/(?s:\s*<\|python_tag\|>.*)/",
            *calls,
        )

    def parser(self) -> ToolCallParser:
        return Llama3Parser()

    def write_call(self, call: ToolCall) -> str:
        return _object(call, "parameters")

    def write_result(self, content: str) -> str:
        return f"{RESPONSE}\n{content}\n{END_OF_RESPONSE}"


HERMES: ToolFormat = Hermes()
LLAMA3: ToolFormat = Llama3()
PLAIN: ToolFormat = Hermes(line=True)


def or_content(calls: str, schema: Mapping[str, object]) -> str:
    """A format's grammar of required calls, widened: such calls, or else content that matches a schema.

    Raises:
        RequestError: the schema cannot be enforced.
    """
    head, _, replies = calls.partition("start: ")
    embedded = json.dumps(schema)
    return f"{head}start: form | calls\nform: %json {embedded}\ncalls: {replies}"


def read_arguments(call: ToolCall, where: str = "messages") -> dict[str, object]:
    """A call's arguments, read; half of a surrogate pair becomes U+FFFD, as in a prompt.

    Args:
        where: JSON path of the field, for the message.

    Raises:
        RequestError: not the JSON text of an object, or one nested too deeply.
    """
    try:
        value = _read(call.arguments or "{}")
        if "\\u" in call.arguments:  # half of a surrogate pair is no text, but models write it
            value = _read(replace_surrogates(json.dumps(value, ensure_ascii=False)))
        depth = _depth(value)
    except (ValueError, RecursionError):
        value, depth = None, 0
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be the JSON text of an object", param=where)
    if depth > MAX_ARGUMENT_DEPTH:
        raise RequestError(f"{where} is nested more than {MAX_ARGUMENT_DEPTH} deep", param=where)
    return value


def _read(text: str) -> object:
    return json.loads(text, parse_constant=_refuse_number, parse_float=_finite)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
    return depth


def _dumps(value: object) -> str:
    """JSON on one line, whatever counts as a line's end; and spelled as the grammars have it."""
    text = json.dumps(value, ensure_ascii=False)
    for char in "\x7f\x85\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _head(name: str, key: str) -> str:
    return f'{{"name": {_dumps(name)}, "{key}": '


def _object(call: ToolCall, key: str) -> str:
    return f"{_head(call.name, key)}{_dumps(read_arguments(call))}}}"


def _lark(*rules: str) -> str:
    return "".join(f"{rule}\n" for rule in ("%llguidance {}", *rules))


def _literal(text: str) -> str:
    """The text in Lark: a JSON string, in ASCII."""
    return json.dumps(text)


def _call_rules(tools: Sequence[Tool], choice: Choice, key: str, before: str, after: str) -> list[str]:
    """The rule `call`: one of the tools, with arguments of its schema."""
    rules = []
    for i, tool in enumerate(tools):
        if isinstance(choice, Tool) and tool.name != choice.name:
            continue
        schema = _enforced(tool, f"tools[{i}].function.parameters", tool.strict or choice != "auto")
        embedded = json.dumps({**schema, "type": "object"})
        rules.append(
            f"call_{i}: {_literal(before + _head(tool.name, key))} %json {embedded} {_literal('}' + after)}"
        )
    assert rules, "a choice among no functions"
    return ["call: " + " | ".join(rule.partition(":")[0] for rule in rules), *rules]


def _enforced(tool: Tool, where: str, must: bool) -> Mapping[str, object]:
    """The schema that a call's arguments have to match.

    Raises:
        RequestError: it cannot be enforced, and `must`.
    """
    from llm.grammar import check_schema  # brings torch, which reading and writing calls does without

    if tool.parameters is None:
        return _NO_ARGUMENTS
    try:
        if tool.parameters.get("type", "object") != "object":
            raise RequestError(f"{where}.type must be 'object'", param=f"{where}.type")
        check_schema({**tool.parameters, "type": "object"}, where)
    except RequestError:
        if must:
            raise
        return _ANY_ARGUMENTS
    return tool.parameters
