"""Which template a checkpoint of somebody else's gets, and what ends a reply in it."""

from __future__ import annotations

import pytest

from llm.chat.template import Message
from llm.checkpoint.dialogue import read_dialogue
from llm.config import GenerationDefaults
from llm.errors import CheckpointError
from llm.tokenizer import TiktokenTokenizer

CONTROL = {"<s>": 256, "</s>": 257, "<|im_end|>": 258}
CHATML = "{% for m in messages %}{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tokenizer(**words: int | None) -> TiktokenTokenizer:
    return TiktokenTokenizer({bytes([value]): value for value in range(256)}, control=CONTROL, **words)


def test_without_a_template_it_is_the_plain_one_and_says_so() -> None:
    dialogue = read_dialogue("x", None, tokenizer(begin_of_text=256, end_of_text=257), end_ids=[3, 99999, -1])
    assert [segment.text for segment in dialogue.template.render([Message("user", "hi")])] == [
        "<s>",
        "User: hi\n",
        "Assistant:",
    ]
    assert dialogue.template.render([Message("user", "hi")])[0].control
    assert dialogue.stop == ("\nUser:", "\nSystem:", "\n")
    assert dialogue.stop_token_ids == {3, 257}
    assert "no chat template" in dialogue.warnings[0]


def test_a_control_token_after_a_reply_ends_replies() -> None:
    dialogue = read_dialogue("x", CHATML, tokenizer(end_of_text=257))
    assert (dialogue.stop, dialogue.stop_token_ids) == ((), {257, 258})
    assert dialogue.notes == ["template: the checkpoint's own, a reply ends with '<|im_end|>'"]
    assert not dialogue.warnings


def test_a_marker_that_is_only_text_is_a_stop_string() -> None:
    dialogue = read_dialogue("x", CHATML.replace("<|im_end|>", "<|end|>"), tokenizer())
    assert (dialogue.stop, dialogue.stop_token_ids) == (("<|end|>",), frozenset())
    policy = dialogue.over(GenerationDefaults(temperature=0.5, stop=("own",)))
    assert (policy.temperature, policy.stop, policy.stop_token_ids) == (0.5, ("<|end|>", "own"), frozenset())


@pytest.mark.parametrize("end", ["", "\n"])
def test_white_space_after_a_reply_ends_nothing(end: str) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
    dialogue = read_dialogue("x", source, tokenizer(end_of_text=257))
    assert (dialogue.stop, dialogue.stop_token_ids) == ((), {257})


def test_a_template_that_refuses_replies_may_still_ask() -> None:
    refuses = (
        "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}"
    )
    assert read_dialogue("x", refuses, tokenizer(end_of_text=257)).stop_token_ids == {257}


def test_a_template_that_cannot_be_used_names_its_file() -> None:
    with pytest.raises(CheckpointError, match="^somewhere: chat template: "):
        read_dialogue("somewhere", "{% for %}", tokenizer())
