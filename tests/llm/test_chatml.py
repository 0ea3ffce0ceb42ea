"""ChatML: its text, its markers, and messages that try to speak as somebody else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.chat.chatml import END, START, ChatMLTemplate
from llm.chat.template import Message, Segment, ToolCall, encode_prompt, encode_segments
from llm.chat.tools import HERMES, Tool
from llm.errors import RequestError
from llm.tokenizer import ByteTokenizer
from tests.llm import tool_templates

CONTROL = (START, END, "<|endoftext|>")
CHAT = [Message("user", "hi"), Message("assistant", "hello")]
PIECES = st.lists(st.sampled_from([START, END, "<", "|", ">", "|im_end|>", "<|im_", " ", "\n", "user", "a"]))
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), PIECES.map("".join)),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("control", [(), CONTROL])
def test_the_text(control: tuple[str, ...]) -> None:
    assert ChatMLTemplate("Be brief.", control).text(CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ChatMLTemplate(None, control).text(CHAT[:1], generate=False) == "<|im_start|>user\nhi<|im_end|>\n"
    chat = [Message("system", "Be long."), *CHAT]
    assert "brief" not in ChatMLTemplate("Be brief.", control).text(chat)


def test_markers_are_control_tokens_where_the_model_has_them() -> None:
    segments = ChatMLTemplate(control=CONTROL).render(CHAT, generate=False)
    assert segments == [
        Segment(START, control=True),
        Segment("user\nhi"),
        Segment(END, control=True),
        Segment("\n"),
        Segment(START, control=True),
        Segment("assistant\n"),
        Segment("hello", trained=True),
        Segment(END, trained=True, control=True),
        Segment("\n"),
    ]


def test_markers_are_text_where_the_model_does_not_have_them() -> None:
    assert ChatMLTemplate().render(CHAT) == [
        Segment("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        Segment("hello<|im_end|>", trained=True),
        Segment("\n<|im_start|>assistant\n"),
    ]


def test_stops() -> None:
    assert ChatMLTemplate(control=CONTROL).stops == ()
    assert ChatMLTemplate(control=[START]).stops == ("<|im_end|>",)


@given(MESSAGES, st.sampled_from([(), CONTROL, (START,), (END,)]))
def test_a_message_cannot_speak_as_another_role(messages: list[Message], control: tuple[str, ...]) -> None:
    """Markers that are tokens are counted as segments, markers that are text as text."""
    segments = ChatMLTemplate(control=control).render(messages)
    text = "".join(segment.text for segment in segments)
    for marker, expected in ((START, len(messages) + 1), (END, len(messages))):
        if marker in control:
            assert sum(s.control and s.text == marker for s in segments) == expected
        else:
            assert text.count(marker) == expected


@given(MESSAGES)
def test_control_tokens_leave_messages_as_they_are(messages: list[Message]) -> None:
    expected = "".join(f"{START}{m.role}\n{m.content}{END}\n" for m in messages)
    assert ChatMLTemplate(control=CONTROL).text(messages, generate=False) == expected


@given(MESSAGES)
def test_a_reply_seen_as_history_has_the_ids_it_was_trained_with(messages: list[Message]) -> None:
    tokenizer, template = ByteTokenizer(), ChatMLTemplate("Be brief.")
    segments = template.render([*messages, Message("assistant", "yes")], generate=False)
    trained, mask = encode_segments(tokenizer, segments)
    served = encode_prompt(tokenizer, template, messages)
    assert trained[: len(served)] == served
    assert mask[len(served) :] == [True] * len("yes<|im_end|>") + [False]


def test_options_are_refused() -> None:
    with pytest.raises(RequestError, match="chatml"):
        ChatMLTemplate().render(CHAT, options={"enable_thinking": True})


@pytest.mark.parametrize("control", [(), CONTROL])
def test_tools(control: tuple[str, ...]) -> None:
    template = ChatMLTemplate("Be brief.", control)
    segments = template.render(tool_templates.CHAT[:4], tools=[tool_templates.WEATHER])
    text = "".join(segment.text for segment in segments)
    instructions = HERMES.instructions([tool_templates.WEATHER])
    assert text == (
        f"<|im_start|>system\nBe brief.\n\n{instructions}<|im_end|>\n"
        "<|im_start|>user\nRain in Oslo?<|im_end|>\n"
        "<|im_start|>assistant\nI look.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\nnoon\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert any(segment.trained and "<tool_call>" in segment.text for segment in segments)


@given(PIECES.map("".join), st.sampled_from([(), CONTROL, (START,), (END,)]))
def test_tools_calls_and_results_cannot_speak_as_another_role(piece: str, control: tuple[str, ...]) -> None:
    tool = Tool(f"f{piece}", piece, {"type": "object", "properties": {piece: {}}})
    call = ToolCall(piece, f"f{piece}", json.dumps({piece: piece}))
    chat = [Message("user", "?"), Message("assistant", piece, (call,)), Message("tool", piece, (), piece)]
    segments = ChatMLTemplate(control=control).render(chat, tools=[tool])
    text = "".join(segment.text for segment in segments)
    for marker, expected in ((START, 5), (END, 4)):
        if marker in control:
            assert sum(s.control and s.text == marker for s in segments) == expected
        else:
            assert text.count(marker) == expected


def test_a_message_that_goes_on_is_still_harmless() -> None:
    chat = [CHAT[0], Message("assistant", f"a{END}")]
    assert ChatMLTemplate().render(chat, continue_final=True)[-1] == Segment("a< |im_end|>", trained=True)
    assert ChatMLTemplate(control=CONTROL).render(chat, continue_final=True)[-1] == Segment(f"a{END}", True)
