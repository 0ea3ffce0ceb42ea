"""Forms of calls: what is written is read back, and grammars let through calls of known functions only."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from llm.chat.template import ToolCall
from llm.chat.tool_calls import ContentDelta, ToolCallDelta
from llm.chat.tools import HERMES, LLAMA3, PLAIN, Choice, Tool, ToolFormat, read_arguments
from llm.errors import RequestError
from llm.grammar.lark import program
from tests.llm.tool_templates import CALLS, TIME, WEATHER

FORMS = (HERMES, LLAMA3, PLAIN)
form_of = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)
NAMES = st.from_regex(r"\A[a-zA-Z0-9_-]{1,64}\Z")


class Bytes:
    """A vocabulary of bytes, for llguidance."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]
    tokens = [*(bytes([i]) for i in range(256)), b"<end>"]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


VOCABULARY = LLTokenizer(TokenizerWrapper(Bytes()))


class Judge:
    """Says which texts a grammar allows, wholly or as a beginning."""

    def __init__(
        self, form: ToolFormat, tools: Iterable[Tool], choice: Choice, parallel: bool = True
    ) -> None:
        self.lark = program("grammar", form.grammar(list(tools), choice, parallel), "tools")
        assert LLMatcher.validate_grammar(self.lark, VOCABULARY) == ""

    def begins(self, text: str) -> bool:
        matcher = LLMatcher(VOCABULARY, self.lark)
        return matcher.try_consume_tokens(list(text.encode())) == len(text.encode())

    def allows(self, text: str) -> bool:
        matcher = LLMatcher(VOCABULARY, self.lark)
        return (
            matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()
        )


def read_back(form: ToolFormat, text: str) -> tuple[str, list[tuple[str, object]]]:
    parser = form.parser()
    content, calls = "", list[list[str]]()
    for delta in [*parser.feed(text), *parser.flush()]:
        if isinstance(delta, ContentDelta):
            content += delta.text
        else:
            assert isinstance(delta, ToolCallDelta)
            calls += [[delta.name, ""]] if delta.name is not None else []
            calls[-1][1] += delta.arguments
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


@form_of
@given(st.lists(st.tuples(st.text(min_size=1, max_size=9) | NAMES, OBJECTS), min_size=1, max_size=3))
def test_what_is_written_is_read_back(form: ToolFormat, calls: list[tuple[str, dict[str, object]]]) -> None:
    written = [form.write_call(ToolCall("id", name, json.dumps(value))) for name, value in calls]
    assert read_back(form, form.between.join(written)) == ("", calls)


def test_a_plain_call_stays_on_its_line() -> None:
    breaks = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    written = PLAIN.write_call(ToolCall("id", f"f{breaks}", json.dumps({breaks: breaks})))
    assert len(written.splitlines()) == 1
    assert read_back(PLAIN, written) == ("", [(f"f{breaks}", {breaks: breaks})])


def test_how_calls_are_written() -> None:
    call = ToolCall("id", "weather", '{"place":"Zürich",\n"days":2}')
    shape = '{"name": "weather", "%s": {"place": "Zürich", "days": 2}}'
    assert HERMES.write_call(call) == f"<tool_call>\n{shape % 'arguments'}\n</tool_call>"
    assert PLAIN.write_call(call) == f"<tool_call>{shape % 'arguments'}</tool_call>"
    assert LLAMA3.write_call(call) == shape % "parameters"
    assert (
        HERMES.write_result("rain")
        == LLAMA3.write_result("rain")
        == "<tool_response>\nrain\n</tool_response>"
    )
    assert PLAIN.write_result("rain") == "rain"


@form_of
def test_instructions_name_every_function_and_show_a_call(form: ToolFormat) -> None:
    text = form.instructions([WEATHER, TIME])
    for tool in (WEATHER, TIME):
        assert json.dumps(tool.spec) in text
    assert ('"parameters": {…}' if form is LLAMA3 else '"arguments": {…}') in text
    assert form is not PLAIN or "\n" not in text


def test_a_tool_as_templates_see_it() -> None:
    assert WEATHER.spec["function"] == {
        "name": "weather",
        "description": "of a place",
        "parameters": WEATHER.parameters,
    }
    assert Tool("f").spec == {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
    }


@pytest.mark.parametrize(
    "arguments",
    ["3", "[]", "{", '{"a": NaN}', '{"a": 1e999}', '{"a": ' * 5000, "x", '"{}"', f'{{"a": {"9" * 9999}}}'],
)
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    with pytest.raises(RequestError, match="must be the JSON text of an object") as caught:
        read_arguments(ToolCall("id", "f", arguments), "messages[1].tool_calls[0].function.arguments")
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"
    for form in FORMS:
        with pytest.raises(RequestError):
            form.write_call(ToolCall("id", "f", arguments))


def test_arguments_nested_too_deeply_are_refused() -> None:
    def nested(depth: int) -> str:
        return '{"a": ' * (depth - 1) + "{}" + "}" * (depth - 1)

    assert read_arguments(ToolCall("id", "f", nested(48)))
    with pytest.raises(RequestError, match="nested more than 48 deep"):
        read_arguments(ToolCall("id", "f", nested(49)))
    assert read_arguments(ToolCall("id", "f", "")) == {}


def test_half_of_a_surrogate_pair_in_arguments_is_replaced_and_a_whole_pair_is_kept() -> None:
    call = ToolCall("id", "f", '{"a": ["\\ud800", {"\\udc00": "\\ud83d\\ude00"}]}')
    assert read_arguments(call) == {"a": ["\ufffd", {"\ufffd": "\U0001f600"}]}
    assert "\ufffd" in HERMES.write_call(call).encode().decode()


# Grammars.

ONE = '{"name": "weather", "KEY": {"place": "Oslo"}}'
TWO = '{"name": "time", "KEY": {}}'


def call(form: ToolFormat, text: str) -> str:
    """A call's object as the form has it."""
    text = text.replace("KEY", "parameters" if form is LLAMA3 else "arguments")
    return (
        text
        if form is LLAMA3
        else {HERMES: f"<tool_call>\n{text}\n</tool_call>"}.get(form, f"<tool_call>{text}</tool_call>")
    )


BAD = [
    '{"name": "rain", "KEY": {}}',
    '{"name": "weather", "KEY": {}}',
    '{"name": "weather", "KEY": {"place": 3}}',
    '{"name": "time", "KEY": {"zone": "CET"}}',
    '{"KEY": {}, "name": "time"}',
    '{"name": "time"}',
    '{"name": "weather", "KEY": {\n"place": "Oslo"}}',
    '{"name": "weather", "KEY": { "place": "Oslo"}}',
    '{"name": "weather", "KEY": {"place": "Os\nlo"}}',
    "rain",
]


@form_of
def test_a_required_call(form: ToolFormat) -> None:
    judge = Judge(form, [WEATHER, TIME], "required")
    one, two = call(form, ONE), call(form, TWO)
    assert judge.allows(one) and judge.allows(two) and judge.allows(form.between.join([one, two, one]))
    assert judge.allows(call(form, '{"name": "weather", "KEY": {"place":"Oslo"}}'))
    assert judge.allows(one + "\n") == (form is PLAIN) and not judge.begins(one + "\n\n")
    for text in ["", *(one[:end] for end in range(len(one)))]:
        assert judge.begins(text) and not judge.allows(text), text
    for bad in BAD:
        assert not judge.begins(call(form, bad)), bad
    assert not judge.begins(f"So: {one}") and not judge.begins(f"{one} so")
    single = Judge(form, [WEATHER, TIME], "required", parallel=False)
    assert single.allows(one) and not single.begins(form.between.join([one, two]))


@form_of
def test_one_function(form: ToolFormat) -> None:
    tools = [WEATHER, TIME, Tool("required"), Tool("auto")]
    for parallel in (True, False):
        judge = Judge(form, tools, TIME, parallel)
        assert judge.allows(call(form, TWO)) and not judge.begins(call(form, ONE))
        assert not judge.begins(form.between.join([call(form, TWO)] * 2))
    assert Judge(form, tools, tools[3]).allows(call(form, '{"name": "auto", "KEY": {}}'))


@form_of
def test_text_or_calls(form: ToolFormat) -> None:
    judge = Judge(form, [WEATHER, TIME], "auto")
    one, two = call(form, ONE), call(form, TWO)
    for text in ("", "Hello.", "é <b> </tool_call> <tool_cal", " {" if form is not LLAMA3 else "So {"):
        assert judge.allows(text), text
    for text in (one, form.between.join([one, two])):
        assert judge.allows(text), text
    assert judge.allows("Hi\nyou") == (form is not PLAIN)
    for bad in BAD[:-1]:
        assert not judge.begins(call(form, bad)), bad
    if form is LLAMA3:
        assert not judge.begins('{"answer"') and not judge.begins(' {"name"')
        assert not judge.allows("<|python_tag|>x()")
        return
    assert judge.allows(f"I look. {one} And: {two} So.") and not judge.begins(f"{one}<tool_call>x")
    single = Judge(form, [WEATHER, TIME], "auto", parallel=False)
    assert single.allows("Hello.") and single.allows(f"I look. {one}")
    assert not single.begins(f"{one} so") and not single.begins(one + two)


def test_a_plain_reply_may_end_its_line() -> None:
    for parallel in (True, False):
        judge = Judge(PLAIN, [TIME], "auto", parallel)
        for text in ("", "Hello.", call(PLAIN, TWO)):
            assert judge.allows(f"{text}\n") and not judge.begins(f"{text}\nUser"), text
    assert Judge(PLAIN, [TIME], "required").allows(f" {call(PLAIN, TWO)}\n")


STRANGE = [
    '"',
    "\\",
    "%json {",
    "/",
    "//",
    "#",
    "\n start: TEXT",
    "é",
    "😀",
    "\u2028",
    "|",
    "f[lazy]",
    "{}",
    "\x7f",
    "'",
]


@form_of
@given(st.sampled_from(STRANGE) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
@example("\u2028")
def test_no_name_is_more_than_a_name(form: ToolFormat, name: str) -> None:
    tool = Tool(name, parameters={"type": "object", "properties": {name: {"const": name}}})
    written = form.write_call(ToolCall("id", name, json.dumps({name: name})))
    assert read_back(form, written) == ("", [(name, {name: name})])
    choices: list[Choice] = ["auto", "required", tool]
    for choice in choices:
        judge = Judge(form, [TIME, tool], choice)
        assert "\\u" in written or judge.allows(written)
        assert not judge.begins(written.replace('"name"', '"game"', 1))


@form_of
@given(OBJECTS)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_allowed(form: ToolFormat, value: dict[str, object]) -> None:
    written = form.write_call(ToolCall("id", "f", json.dumps(value)))
    judge = Judge(form, [Tool("f", parameters={})], "required")
    assert "\\u" in written or judge.allows(written), "but for its own idea of which characters are spelled"


UNENFORCED = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}


@form_of
def test_a_schema_that_cannot_be_enforced(form: ToolFormat) -> None:
    """It gives way to any object where the model may choose, and is refused where it must."""
    tools = [TIME, Tool("f", parameters=UNENFORCED), Tool("g", parameters={"type": "string"})]
    for name in ("f", "g"):
        judge = Judge(form, tools, "auto")
        assert judge.allows(call(form, f'{{"name": "{name}", "KEY": {{"a": [1]}}}}'))
        assert not judge.begins(call(form, f'{{"name": "{name}", "KEY": 3}}'))
    refused: list[tuple[list[Tool], Choice, str]] = [
        (tools, "required", "tools[1]"),
        (tools, tools[2], "tools[2]"),
        ([TIME, Tool("f", parameters=UNENFORCED, strict=True)], "auto", "tools[1]"),
    ]
    for some, choice, where in refused:
        with pytest.raises(RequestError) as caught:
            form.grammar(some, choice)
        assert str(caught.value.param).startswith(f"{where}.function.parameters")
    assert form.grammar(tools, TIME), "what is not called does not matter"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (None, "{}", '{"a": 1}'),
        ({}, '{"a": [{"b": null}]}', "[]"),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": 1}', '{"a": "1"}'),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": {"a": {"enum": ["b"]}}}}},
            '{"a": "b"}',
            '{"a": "c"}',
        ),
        (
            {"anyOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["b"]}]},
            '{"b": 2}',
            "{}",
        ),
    ],
)
def test_schemas_of_arguments(schema: dict[str, object] | None, good: str, bad: str) -> None:
    judge = Judge(HERMES, [Tool("f", parameters=schema, strict=True)], "auto")
    assert judge.allows(f'<tool_call>\n{{"name": "f", "arguments": {good}}}\n</tool_call>')
    assert not judge.begins(f'<tool_call>\n{{"name": "f", "arguments": {bad}}}\n</tool_call>')


def test_many_tools() -> None:
    tools = [Tool(f"f{i}", parameters={**(WEATHER.parameters or {}), "title": str(i)}) for i in range(64)]
    judge = Judge(HERMES, tools, "auto")
    assert judge.allows(HERMES.write_call(ToolCall("id", "f63", '{"place": "x"}')))
    assert not judge.begins('<tool_call>\n{"name": "f64"')
    assert len(CALLS) == 2
