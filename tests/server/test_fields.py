"""Honoured, refused, or ignored and reported: never silence."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.fields import IGNORED_HEADER, report
from server.errors import ApiError
from tests.server.wire import CHAT, HELLO, app_of, call


def ask(**fields: Any) -> Any:
    return call(app_of(), CHAT, {**HELLO, **fields})


@given(st.lists(st.text(max_size=80), max_size=200))
def test_any_names_make_a_safe_bounded_header(names: list[str]) -> None:
    headers = report(iter(names), strict=False)
    assert bool(headers) == bool(names)
    for value in headers.values():
        assert re.fullmatch(r"[A-Za-z0-9_.\-\[\],?]{1,1024}", value)


def test_unknown_and_unused_fields_are_named_sorted_with_their_path() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": 1}], "name": "ann"}
    answer = ask(zebra=1, verbosity="low", messages=[message, message])
    assert answer.status == 200
    expected = "messages[].content[].cache_control,verbosity,zebra"
    assert answer.headers[IGNORED_HEADER] == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"zebra": None},
        {"grammar": "", "json_schema": {}, "regex": "", "ebnf": "", "use_beam_search": False},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1, "store": False},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logprobs": False},
        {"tools": None, "logit_bias": {}, "modalities": ["text"], "top_logprobs": 0, "user": "ann"},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [], "refusal": None}]},
    ],
)
def test_fields_that_ask_for_nothing_are_not_reported(fields: dict[str, Any]) -> None:
    answer = ask(**fields)
    assert answer.status == 200, answer.body
    assert IGNORED_HEADER not in answer.headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"ebnf": 'root ::= "a"'}, "ebnf"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    answer = ask(**fields)
    assert answer.status == 400
    assert (answer.error["param"], answer.error["code"]) == (param, "unsupported_parameter")


def test_strict_refuses_what_would_be_ignored() -> None:
    app = app_of(strict=True)
    answer = call(app, CHAT, {**HELLO, "zebra": 1, "apple": 2})
    assert (answer.status, answer.error["param"]) == (400, "apple")
    assert "apple,zebra" in answer.error["message"]
    assert call(app, CHAT, HELLO).status == 200


def test_strict_says_which_fields_even_when_they_are_many() -> None:
    with pytest.raises(ApiError, match=r"f00,f01.*\.\.\.$"):
        report((f"f{i:02}" * 8 if i > 1 else f"f{i:02}" for i in range(99)), strict=True)
