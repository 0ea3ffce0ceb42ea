"""Messages to prompts: the course's lines, one role per line, and training ids equal to serving ids."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.chat.chatml import ChatMLTemplate
from llm.chat.template import (
    Message,
    PlainTemplate,
    Segment,
    ToolCall,
    drop_oldest,
    encode_prompt,
    encode_segments,
    get_template,
    text_bytes,
)
from llm.errors import CheckpointError, RequestError
from llm.tokenizer import ByteTokenizer
from tests.llm.tool_templates import CHAT, TIME, WEATHER

TOKENIZER = ByteTokenizer()
TEMPLATE = PlainTemplate(default_system="Be brief.")
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30)),
    min_size=1,
    max_size=6,
)


def test_the_courses_format() -> None:
    conversation = [Message("user", "hi"), Message("assistant", "hello"), Message("user", "what is a token?")]
    assert TEMPLATE.text(conversation) == (
        "System: Be brief.\nUser: hi\nAssistant: hello\nUser: what is a token?\nAssistant:"
    )


def test_a_system_message_replaces_the_default() -> None:
    text = TEMPLATE.text([Message("system", "Be long."), Message("user", "hi")])
    assert text == "System: Be long.\nUser: hi\nAssistant:"


@given(MESSAGES)
def test_a_message_cannot_speak_as_another_role(messages: list[Message]) -> None:
    lines = TEMPLATE.text(messages).split("\n")
    asked = (
        [m.role for m in messages]
        if any(m.role == "system" for m in messages)
        else ["system", *(m.role for m in messages)]
    )
    assert [line.split(":")[0].lower() for line in lines] == [*asked, "assistant"]


@given(MESSAGES)
def test_a_reply_seen_as_history_has_the_ids_it_was_trained_with(messages: list[Message]) -> None:
    trained, mask = encode_segments(
        TOKENIZER, TEMPLATE.render([*messages, Message("assistant", "yes")], generate=False)
    )
    served = encode_prompt(TOKENIZER, TEMPLATE, messages)
    assert trained[: len(served)] == served
    assert mask[len(served) :] == [True] * len(" yes\n"), (
        "the loss covers the reply and its end, nothing before"
    )


def long_chat(turns: int) -> list[Message]:
    chat = [Message("system", "S")]
    for turn in range(turns):
        chat += [Message("user", f"question {turn}"), Message("assistant", f"answer {turn}")]
    return [*chat, Message("user", "last")]


@given(st.integers(0, 30), st.integers(31, 400))
def test_drop_oldest_drops_no_more_than_it_must(turns: int, room: int) -> None:
    messages = long_chat(turns)
    ids, dropped = drop_oldest(TOKENIZER, TEMPLATE, messages, room)
    assert len(ids) <= room
    assert dropped % 2 == 0
    assert ids == encode_prompt(TOKENIZER, TEMPLATE, [messages[0], *messages[1 + dropped :]])
    if dropped:
        one_more = [messages[0], *messages[1 + dropped - 2 :]]
        assert len(encode_prompt(TOKENIZER, TEMPLATE, one_more)) > room


def test_drop_oldest_never_drops_the_system_or_the_last_message() -> None:
    with pytest.raises(RequestError, match="alone are at least 31 tokens, the limit is 20"):
        drop_oldest(TOKENIZER, TEMPLATE, long_chat(3), 20)


def test_drop_oldest_of_a_chat_without_user_turns_keeps_the_last_message() -> None:
    chat = [Message("assistant", "a" * 30), Message("assistant", "b" * 30), Message("user", "last")]
    assert drop_oldest(TOKENIZER, PlainTemplate(), chat, 30) == (
        encode_prompt(TOKENIZER, PlainTemplate(), chat[2:]),
        2,
    )


def test_an_unknown_template_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="'fancy', known: plain"):
        get_template("fancy")


def test_drop_oldest_encodes_nothing_that_cannot_fit() -> None:
    """Two megabytes of conversation cost what a short one does."""

    class Counting(ByteTokenizer):
        num_bytes = 0

        def encode(self, text: str, *, continued: bool = False) -> list[int]:
            self.num_bytes += len(text.encode())
            return super().encode(text, continued=continued)

    tokenizer = Counting()
    chat = [Message("user", "x" * 4000) for _ in range(500)] + [Message("user", "last")]
    ids, dropped = drop_oldest(tokenizer, TEMPLATE, chat, 100)
    assert (len(ids), dropped) == (len(encode_prompt(TOKENIZER, TEMPLATE, chat[500:])), 500)
    assert tokenizer.num_bytes <= 2 * 100
    tokenizer.num_bytes = 0
    with pytest.raises(RequestError, match=r"alone are at least 40\d\d tokens, the limit is 100"):
        drop_oldest(tokenizer, TEMPLATE, chat[:500], 100)
    assert tokenizer.num_bytes == 0


class Marked(ByteTokenizer):
    """Bytes and one control token; remembers which texts continued others."""

    vocab_size = 258
    control = {"<s>": 257}

    def __init__(self) -> None:
        self.continued: list[bool] = []

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        self.continued.append(continued)
        return super().encode(text)


def test_only_control_segments_become_control_tokens() -> None:
    tokenizer = Marked()
    segments = PlainTemplate(begin="<s>").render([Message("user", "<s>")])
    ids, trained = encode_segments(tokenizer, segments)
    assert ids == [257, *b"User: <s>\nAssistant:"] and not any(trained)
    assert tokenizer.continued == [True, True], "the first text follows a token"
    encode_segments(tokenizer, [Segment("a"), Segment("b")])
    assert tokenizer.continued[2:] == [False, True]


def test_a_control_token_takes_no_bytes_of_text() -> None:
    assert text_bytes([Segment("<s>", control=True), Segment("é"), Segment("ab", trained=True)]) == 4


def test_plain_knows_no_options() -> None:
    with pytest.raises(RequestError, match="chat_template_kwargs.enable_thinking: ") as caught:
        PlainTemplate().render([], options={"enable_thinking": True})
    assert caught.value.param == "chat_template_kwargs.enable_thinking"
    assert PlainTemplate().render([], options={}, generate=False) == []


def test_tools_on_lines() -> None:
    segments = TEMPLATE.render(CHAT[:4], tools=[WEATHER, TIME])
    text = "".join(segment.text for segment in segments)
    assert text == (
        "System: Be brief. You can call functions: "
        f"{json.dumps(WEATHER.spec)} {json.dumps(TIME.spec)} "
        'To call one, write <tool_call>{"name": "…", "arguments": {…}}</tool_call>\n'
        "User: Rain in Oslo?\n"
        'Assistant: I look. <tool_call>{"name": "weather", "arguments": {"place": "Oslo"}}</tool_call> '
        '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n'
        "Tool: rain\n"
        "Tool: noon\n"
        "Assistant:"
    )
    trained = [segment.text for segment in segments if segment.trained]
    assert len(trained) == 1 and trained[0].startswith(" I look. <tool_call>")


@given(st.text(max_size=9), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3))
def test_calls_and_results_cannot_speak_as_another_role(name: str, arguments: dict[str, str]) -> None:
    call = ToolCall("1", name, json.dumps(arguments))
    chat = [Message("user", "?"), Message("assistant", "", (call,)), Message("tool", name, (), "1")]
    lines = PlainTemplate().text(chat).split("\n")
    assert [line.split(":")[0] for line in lines] == ["User", "Assistant", "Tool", "Assistant"]


def test_arguments_that_cannot_be_written_are_named() -> None:
    chat = [
        Message("user", "?"),
        Message("assistant", "", (ToolCall("1", "f", "{}"), ToolCall("2", "f", "["))),
    ]
    for template in (TEMPLATE, ChatMLTemplate()):
        with pytest.raises(RequestError, match="must be the JSON text of an object") as caught:
            template.render(chat)
        assert caught.value.param == "messages[1].tool_calls[1].function.arguments"


@pytest.mark.parametrize("template", [TEMPLATE, ChatMLTemplate("Be brief."), ChatMLTemplate()])
@pytest.mark.parametrize("generate", [True, False])
def test_the_last_message_goes_on(template: PlainTemplate | ChatMLTemplate, generate: bool) -> None:
    """A continued reply has the text that the whole reply has, up to where it was cut."""
    chat = [Message("user", "hi"), Message("assistant", "One two")]
    ids = encode_prompt(TOKENIZER, template, chat, generate=generate, continue_final=True)
    whole = encode_prompt(
        TOKENIZER, template, [chat[0], Message("assistant", "One two three")], generate=False
    )
    assert whole[: len(ids)] == ids and bytes(ids).endswith(b"One two")
    for empty in ("", " \n"):
        nothing = [chat[0], Message("assistant", empty)]
        begun = encode_prompt(TOKENIZER, template, nothing, generate=generate, continue_final=True)
        assert begun == encode_prompt(TOKENIZER, template, chat[:1])


@pytest.mark.parametrize("seed", range(3))
def test_every_line_break_becomes_a_space(seed: int) -> None:
    """Whatever Python calls one, \\r\\n being one and the last one none."""
    marks = [chr(code) for code in range(0x3000) if len(f"a{chr(code)}b".splitlines()) > 1]
    rng = random.Random(seed)
    for _ in range(500):
        text = "".join(rng.choices(["a", " ", "\t", *marks], k=rng.randrange(9)))
        final = [Message("user", "q"), Message("assistant", f"x{text}")]
        continued = PlainTemplate().render(final, continue_final=True)[-1].text
        assert continued == " " + " ".join(f"x{text}".splitlines())


def test_a_continued_line_stays_one_line() -> None:
    chat = [Message("assistant", " a\nUser: b ")]
    assert (
        "".join(s.text for s in PlainTemplate().render(chat, continue_final=True)) == "Assistant: a User: b "
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the last message must be the assistant's"),
        ([Message("assistant", "a"), Message("user", "b")], "the last message must be the assistant's"),
        (CHAT[:2], "a message with tool calls cannot be continued"),
    ],
)
def test_what_cannot_be_continued(messages: list[Message], reason: str) -> None:
    for template in (TEMPLATE, ChatMLTemplate()):
        with pytest.raises(RequestError, match=reason) as caught:
            template.render(messages, continue_final=True)
        assert caught.value.param == "continue_final_message"


def kept(messages: list[Message], room: int, **how: bool) -> list[Message]:
    """What drop_oldest leaves of a chat whose messages all differ, as text."""
    ids, dropped = drop_oldest(TOKENIZER, PlainTemplate(), messages, room, **how)
    left = messages[dropped:]
    assert ids == encode_prompt(TOKENIZER, PlainTemplate(), left, **how)
    return left


def test_a_call_and_its_results_go_together() -> None:
    everything = len(encode_prompt(TOKENIZER, PlainTemplate(), CHAT[:4]))
    called = len(encode_prompt(TOKENIZER, PlainTemplate(), CHAT[1:4]))
    assert kept(CHAT[:4], everything) == CHAT[:4]
    assert kept(CHAT[:4], everything - 1) == CHAT[1:4], "the question goes, what was called stays"
    assert kept(CHAT[:4], called) == CHAT[1:4]
    with pytest.raises(RequestError, match=f"alone are at least {called} tokens, the limit is {called - 1}"):
        kept(CHAT[:4], called - 1)
    assert kept(CHAT, 40) == CHAT[5:], "and all of a turn goes at once"


ROLES = st.lists(st.sampled_from(["system", "user", "assistant", "call", "tool"]), min_size=1, max_size=12)


@given(ROLES, st.integers(20, 400), st.booleans())
def test_no_result_is_left_without_its_call(roles: list[str], room: int, named: bool) -> None:
    messages: list[Message] = []
    ids = [str(i) for i, role in enumerate(roles) if role == "call"]
    for i, role in enumerate(roles):
        if role == "call":
            messages.append(Message("assistant", f"{i}", (ToolCall(str(i), "f", "{}"),)))
        else:
            message = Message(role, f"message {i}")  # type: ignore[arg-type]
            answers = ids[i % len(ids)] if named and ids and role == "tool" else None
            messages.append(replace(message, tool_call_id=answers))
    try:
        prompt, dropped = drop_oldest(TOKENIZER, PlainTemplate(), messages, room)
    except RequestError:
        return
    assert len(prompt) <= room
    for first in range(len(messages)):
        left = [m for i, m in enumerate(messages) if i >= first or m.role == "system"]
        if len(left) == len(messages) - dropped and prompt == encode_prompt(TOKENIZER, PlainTemplate(), left):
            break
    else:
        raise AssertionError("what is left is not the end of the chat")
    if dropped:
        turns = [m for m in left if m.role != "system"]
        assert not turns or turns[0].role != "tool" or not ids, "of a call there is"
        calls = {call.id: i for i, m in enumerate(messages) for call in m.tool_calls}
        for i, message in enumerate(messages):
            at = calls.get(message.tool_call_id or "", i)
            assert message.role != "tool" or at >= i or (at >= first) == (i >= first)


def test_drop_oldest_makes_room_for_tools_and_for_what_goes_on() -> None:
    chat = [*long_chat(9), Message("assistant", "So")]
    some = len(encode_prompt(TOKENIZER, TEMPLATE, [chat[0], *chat[-2:]], tools=[TIME], continue_final=True))
    ids, dropped = drop_oldest(TOKENIZER, TEMPLATE, chat, some, tools=[TIME], continue_final=True)
    assert (len(ids), dropped) == (some, 18) and bytes(ids).endswith(b"Assistant: So")
    assert kept(long_chat(0)[1:], 40, generate=False) == long_chat(0)[1:]
