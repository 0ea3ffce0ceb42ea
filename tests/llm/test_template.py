"""Messages to prompts: the course's lines, one role per line, and training ids equal to serving ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.chat.template import (
    Message,
    PlainTemplate,
    Segment,
    drop_oldest,
    encode_prompt,
    encode_segments,
    get_template,
    text_bytes,
)
from llm.errors import CheckpointError, RequestError
from llm.tokenizer import ByteTokenizer

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


def test_plain_knows_neither_tools_nor_options() -> None:
    with pytest.raises(RequestError, match="knows no tools") as caught:
        PlainTemplate().render([], tools=[{"type": "function"}])
    assert caught.value.param == "tools"
    with pytest.raises(RequestError, match="chat_template_kwargs.enable_thinking: ") as caught:
        PlainTemplate().render([], options={"enable_thinking": True})
    assert caught.value.param == "chat_template_kwargs.enable_thinking"
    assert PlainTemplate().render([], options={}, generate=False) == []
