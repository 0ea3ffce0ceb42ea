"""Conversations with tools rewritten: nothing said is lost, and turns alternate again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.chat.template import Message, ToolCall
from llm.chat.tools import HERMES, LLAMA3, PLAIN, ToolFormat
from llm.chat.turns import (
    check_calls,
    check_final,
    fields_of,
    instruct,
    named_results,
    one_call_each,
    results_as_user,
    spell_calls,
    with_system,
)
from llm.errors import RequestError
from tests.llm.tool_templates import CALLS, CHAT, TIME

ASK = Message("user", "?")


def test_a_system_message_only_where_there_is_none() -> None:
    assert with_system([ASK], "s") == [Message("system", "s"), ASK]
    assert with_system([ASK, Message("system", "x")], "s") == [ASK, Message("system", "x")]
    assert with_system([ASK], None) == [ASK]


@pytest.mark.parametrize("form", [HERMES, LLAMA3, PLAIN])
def test_instructions_join_the_system_message(form: ToolFormat) -> None:
    text = form.instructions([TIME])
    system = Message("system", "s")
    assert instruct([ASK], form, [TIME]) == [Message("system", text), ASK]
    assert instruct([ASK, system, system], form, [TIME]) == [ASK, Message("system", f"s\n\n{text}"), system]
    assert instruct([Message("system", "")], form, [TIME]) == [Message("system", text)]
    reply = Message("assistant", "hi")
    asked = Message("user", f"{text}\n\n?")
    assert instruct([reply, ASK, ASK], form, [TIME], system=False) == [reply, asked, ASK]
    assert instruct([reply], form, [TIME], system=False) == [Message("user", text), reply]
    assert instruct([system], form, [TIME], between=" ")[0].content == f"s {text}"


def test_calls_become_text() -> None:
    spelled = spell_calls(CHAT, HERMES)
    calls = f"{HERMES.write_call(CALLS[0])}\n{HERMES.write_call(CALLS[1])}"
    assert spelled[1] == Message("assistant", f"I look.\n{calls}")
    assert [*spelled[:1], *spelled[2:]] == [*CHAT[:1], *CHAT[2:]]
    silent = [Message("assistant", "", CALLS)]
    assert spell_calls(silent, LLAMA3)[0].content == "; ".join(map(LLAMA3.write_call, CALLS))


def test_results_become_one_turn_of_the_users() -> None:
    turns = results_as_user(CHAT, HERMES)
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert turns[2].content == f"{HERMES.write_result('rain')}\n{HERMES.write_result('noon')}"
    spelled = results_as_user(spell_calls(CHAT, HERMES), HERMES)
    assert not any(message.tool_calls or message.role == "tool" for message in spelled)


def test_one_call_each() -> None:
    first, second = CALLS
    assert one_call_each(CHAT) == [
        CHAT[0],
        Message("assistant", "I look.", (first,)),
        CHAT[2],
        Message("assistant", "", (second,)),
        CHAT[3],
        *CHAT[4:],
    ]
    swapped = [*CHAT[:2], CHAT[3], CHAT[2], *CHAT[4:]]
    assert one_call_each(swapped) == one_call_each(CHAT), "results find their calls"
    orphan = Message("tool", "lost", (), "call_9")
    assert one_call_each([CHAT[1], orphan])[-1] == orphan


CALL = st.builds(ToolCall, st.sampled_from("abc"), st.just("f"), st.just("{}"))
MESSAGES = st.lists(
    st.builds(Message, st.just("assistant"), st.text(max_size=3), st.lists(CALL, max_size=3).map(tuple))
    | st.builds(
        Message, st.just("tool"), st.text(max_size=3), st.just(()), st.sampled_from("abc") | st.none()
    )
    | st.builds(Message, st.sampled_from(["user", "system"]), st.text(max_size=3)),
    max_size=8,
)


@given(MESSAGES)
def test_splitting_calls_loses_nothing(messages: list[Message]) -> None:
    turns = one_call_each(messages)
    assert all(len(turn.tool_calls) <= 1 for turn in turns)
    for each in (
        lambda turn: [(turn.content, turn.tool_call_id)] if turn.role == "tool" else [],
        lambda turn: list(turn.tool_calls),
        lambda turn: [turn.content] if turn.role != "tool" and turn.content else [],
    ):
        before, after = ([x for turn in some for x in each(turn)] for some in (messages, turns))
        assert sorted(map(repr, after)) == sorted(map(repr, before))


def test_results_get_their_functions_names() -> None:
    named = named_results(CHAT)
    assert [turn.name for turn in named] == [None, None, "weather", "time", None, None]
    own = Message("tool", "x", (), "call_1", "mine")
    assert named_results([CHAT[1], own])[1] is own
    assert named_results([Message("tool", "x")])[0].name is None


def test_a_message_as_templates_know_it() -> None:
    assert fields_of(ASK) == {"role": "user", "content": "?"}
    assert fields_of(Message("tool", "x", (), "call_1", "f")) == {
        "role": "tool",
        "content": "x",
        "tool_call_id": "call_1",
        "name": "f",
    }
    calls = fields_of(CHAT[1])["tool_calls"]
    assert isinstance(calls, list) and calls[0] == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": {"place": "Oslo"}},
    }


def test_calls_are_checked_by_their_place() -> None:
    check_calls(CHAT)
    bad = Message("assistant", "", (CALLS[0], ToolCall("x", "f", '"text"')))
    with pytest.raises(RequestError) as caught:
        check_calls([ASK, ASK, bad])
    assert caught.value.param == "messages[2].tool_calls[1].function.arguments"


def test_what_can_be_continued() -> None:
    assert check_final([ASK, Message("assistant", " a")]) and not check_final([Message("assistant", "\n ")])
    for messages in ([], [ASK], CHAT[:2], CHAT[:3]):
        with pytest.raises(RequestError) as caught:
            check_final(messages)
        assert caught.value.param == "continue_final_message"
