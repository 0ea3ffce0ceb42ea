"""What a person sees of an example before training: the text, control tokens, and what is learned."""

from __future__ import annotations

import numpy as np

from llm.chat.template import Message
from llm.train.data import Chat, encode_examples
from llm.train.shown import MAX_TOKENS, TAUGHT, marked
from tests.llm.test_replies import MARKED, TEMPLATES

CHAT = Chat("c.jsonl:1", (Message("user", "hé\x1b[2J"), Message("assistant", "yes\nno")))


def test_replies_are_in_brackets_with_the_marker_that_ends_them() -> None:
    (example,) = encode_examples(MARKED, TEMPLATES["chatml"], CHAT)
    assert marked(MARKED, example).plain == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhé?[2J<|im_end|>\n"
        "<|im_start|>assistant\n[[yes\nno<|im_end|>]]\n"
    )


def test_or_in_colour() -> None:
    (example,) = encode_examples(MARKED, TEMPLATES["chatml"], CHAT)
    text = marked(MARKED, example, colour=True)
    assert "[[" not in text.plain
    assert [text.plain[s.start : s.end] for s in text.spans if s.style == TAUGHT] == ["yes\nno<|im_end|>"]


def test_of_a_long_one_the_end() -> None:
    chat = Chat("c.jsonl:1", (Message("user", "a" * MAX_TOKENS), Message("assistant", "end")))
    (example,) = encode_examples(MARKED, TEMPLATES["plain"], chat)
    shown = marked(MARKED, example).plain
    assert shown.startswith("…aaa") and shown.endswith("\nAssistant:[[ end\n]]")
    assert len(shown) < MAX_TOKENS + 10 < int(np.size(example.ids))
