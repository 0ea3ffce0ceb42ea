"""Tools through HTTP: what is refused, what the model is shown, and calls as deltas that equal the whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from llm.chat.tools import Choice, Hermes, Tool
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, app_of, call

RAIN: dict[str, Any] = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}
SNOW: dict[str, Any] = {"type": "function", "function": {"name": "snow"}}
TOOLS: dict[str, Any] = {**HELLO, "tools": [RAIN, SNOW]}


def scripted(*script: str, finish: Any = None) -> Any:
    return app_of(ScriptedModel(*script, **({"finish": finish} if finish else {})))


def function(**fields: Any) -> dict[str, Any]:
    """A tool as a client may send it."""
    return {"type": "function", "function": fields}


def turn(role: str, arguments: str) -> dict[str, Any]:
    """A message that calls."""
    return {
        "role": role,
        "content": "x",
        "tool_calls": [{"id": "a", **function(name="f", arguments=arguments)}],
    }


NOT = {"type": "object", "not": {}}
MISSING = "missing_required_parameter"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tools": [RAIN, SNOW, RAIN]}, "tools[2].function.name", "invalid_value"),
        ({"tools": [RAIN] * 65}, "tools", "invalid_value"),
        ({"tools": [{"type": "web"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING),
        ({"tools": [function()]}, "tools[0].function.name", MISSING),
        ({"tools": [function(name="a b")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [RAIN], "tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tools": [RAIN], "tool_choice": 5}, "tool_choice", "invalid_type"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [], "tool_choice": function(name="rain")}, "tool_choice", "invalid_value"),
        (
            {"tools": [RAIN], "tool_choice": function(name="hail")},
            "tool_choice.function.name",
            "invalid_value",
        ),
        (
            {"tools": [function(name="f", strict=True, parameters=NOT)]},
            "tools[0].function.parameters",
            "invalid_value",
        ),
        (
            {"tools": [function(name="f", parameters={"type": "array"})], "tool_choice": "required"},
            "tools[0].function.parameters.type",
            "invalid_value",
        ),
        ({"tools": [RAIN], "guided_regex": "a+"}, "guided_regex", "invalid_value"),
        ({"tools": [RAIN], "guided_json": True}, "guided_json", "invalid_value"),
        ({"messages": [turn("user", "")]}, "messages[0].tool_calls", "invalid_value"),
        (
            {"messages": [turn("assistant", "[1")]},
            "messages[0].tool_calls[0].function.arguments",
            "invalid_value",
        ),
    ],
)
def test_what_cannot_be_called_is_refused_by_path(body: dict[str, Any], param: str, code: str) -> None:
    answer = call(app_of(), CHAT, {**HELLO, **body})
    assert answer.status == 400, answer.body
    assert (str(answer.error["param"])[: len(param)], answer.error["code"]) == (param, code)


def test_calls_are_read_back() -> None:
    rain = ["Let me see. <tool", '_call>{"name": "rain", "arg', 'uments": {"a":', " 1}}</tool_call>"]
    script = [*rain, " <tool_call>", '{"name": "snow", "arguments": {}}</tool_call>']
    whole = call(scripted(*script), CHAT, TOOLS).json["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "Let me see."
    calls = whole["message"]["tool_calls"]
    assert [c["function"] for c in calls] == [
        {"name": "rain", "arguments": '{"a": 1}'},
        {"name": "snow", "arguments": "{}"},
    ]
    assert len({c["id"] for c in calls}) == 2 and all(c["type"] == "function" for c in calls)
    chunks = call(scripted(*script), CHAT, {**TOOLS, "stream": True}).chunks
    deltas = [d for c in chunks for d in c["choices"][0]["delta"].get("tool_calls", [])]
    assert all(isinstance(d["index"], int) for d in deltas)
    for index in (0, 1):
        mine = [d for d in deltas if d["index"] == index]
        assert mine[0]["id"].startswith("call_") and mine[0]["type"] == "function"
        assert all(set(d) == {"index", "function"} and set(d["function"]) == {"arguments"} for d in mine[1:])
        arguments = "".join(d["function"]["arguments"] for d in mine)
        assert (mine[0]["function"]["name"], arguments) == tuple(calls[index]["function"].values())
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "Let me see."
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_was_cut_is_not_complete() -> None:
    script = ['<tool_call>{"name": "rain", "arguments": {"a": ', '"lo', "ng"]
    choice = call(scripted(*script), CHAT, {**TOOLS, "max_tokens": 2}).json["choices"][0]
    assert choice["finish_reason"] == "length"
    ended = call(scripted(*script[:2]), CHAT, TOOLS).json["choices"][0]
    assert ended["finish_reason"] == "stop", "the model ended inside a call"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "rain"}}])
@pytest.mark.parametrize("cut", ["<to", "<tool_call>", '<tool_call>{"name": "ra'])
def test_a_reply_that_must_call_shows_nothing_of_a_call_cut_too_early(choice: Any, cut: str) -> None:
    first = '<tool_call>{"name": "rain", "arguments": {}}</tool_call>'
    for script in ([cut], [first, cut]):
        body = {**TOOLS, "tool_choice": choice, "max_tokens": len(script)}
        whole = call(scripted(*script, "..."), CHAT, body).json["choices"][0]
        assert whole["finish_reason"] == "length" and not whole["message"]["content"]
        assert len(whole["message"].get("tool_calls", [])) == len(script) - 1
        chunks = call(scripted(*script, "..."), CHAT, {**body, "stream": True}).chunks
        assert not any(c["choices"][0]["delta"].get("content") for c in chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_that_was_cut_before_its_arguments_is_no_content(stream: bool) -> None:
    script = ["Hi ", '<tool_call>{"name": "ra', "in"]
    answer = call(scripted(*script), CHAT, {**TOOLS, "max_tokens": 2, "stream": stream})
    if stream:
        content = "".join(c["choices"][0]["delta"].get("content", "") for c in answer.chunks)
        assert answer.chunks[-1]["choices"][0]["finish_reason"] == "length"
    else:
        content = answer.json["choices"][0]["message"]["content"]
    assert content == "Hi"


def test_without_tools_a_call_is_text() -> None:
    text = '<tool_call>{"name": "rain", "arguments": {}}</tool_call>'
    for body in (HELLO, {**TOOLS, "tool_choice": "none"}):
        message = call(scripted(text), CHAT, body).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": text, "refusal": None}


def test_the_model_is_shown_tools_calls_and_results() -> None:
    made = {"id": "call_1", "type": "function", "function": {"name": "rain", "arguments": '{"a":1}'}}
    turns = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": "dry"},
    ]
    prompt = call(app_of(), "/apply-template", {"messages": turns, "tools": [RAIN]}).json["prompt"]
    lines = prompt.splitlines()
    assert lines[0].startswith("System: ") and json.dumps(RAIN["function"]["name"]) in lines[0]
    assert lines[1:] == [
        "User: Rain?",
        'Assistant: <tool_call>{"name": "rain", "arguments": {"a": 1}}</tool_call>',
        "Tool: dry",
        "Assistant:",
    ]
    hidden = call(
        app_of(), "/apply-template", {"messages": turns[:1], "tools": [RAIN], "tool_choice": "none"}
    )
    assert "rain" not in hidden.json["prompt"]


def test_the_grammar_of_calls_is_made_beside_the_event_loop() -> None:
    """The schemas of many tools take a tenth of a second: nobody else's stream waits for that."""
    threads = []

    class Watched(Hermes):
        def grammar(self, tools: Sequence[Tool], choice: Choice = "auto", parallel: bool = True) -> str:
            threads.append(threading.current_thread())
            return super().grammar(tools, choice, parallel)

    model = ScriptedModel("Hi")
    model.template.tool_format = Watched(line=True)  # type: ignore[misc, assignment]
    assert call(app_of(model), CHAT, TOOLS).status == 200
    assert threads and threading.main_thread() not in threads
