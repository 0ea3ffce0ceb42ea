"""What templates know of tools, found out by trying them."""

from __future__ import annotations

import pytest

from llm.chat.habits import Habits, read_habits
from llm.chat.jinja import JinjaTemplate
from llm.chat.template import Message
from llm.chat.tools import HERMES, LLAMA3
from tests.llm.tool_templates import BRACKETS, LLAMA_31, NO_SYSTEM, QWEN_25, TEACHES, XML

TEXT = Habits(HERMES, tools=False, calls=False, several=False, system=True)
"""Everything has to be told in text."""
REVERSED = QWEN_25.replace(
    """{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}""",
    """{{- '\\n<tool_call>\\n{"arguments": ' }}""",
).replace("""{{- '}\\n</tool_call>' }}""", """{{- ', "name": "' + call.name + '"}\\n</tool_call>' }}""")


def habits(source: str) -> Habits:
    return JinjaTemplate(source, bos_token="<s>", eos_token="</s>")._habits


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (QWEN_25, Habits(HERMES, tools=True, calls=True, several=True, system=True)),
        (LLAMA_31, Habits(LLAMA3, tools=True, calls=True, several=False, system=True)),
        (TEACHES, Habits(HERMES, tools=True, calls=False, several=False, system=True)),
        (TEACHES.replace("<tool_call>", "<|python_tag|>"), Habits(LLAMA3, True, False, False, True)),
        (TEACHES.replace("<tool_call>", "an action"), TEXT),
        (BRACKETS, TEXT),
        (BRACKETS.replace('"arguments"', '"parameters"'), TEXT),
        (XML, TEXT),
        (NO_SYSTEM, Habits(HERMES, tools=False, calls=False, several=False, system=False)),
        (LLAMA_31.replace('"parameters": ', '"arguments": '), TEXT),
        (QWEN_25.replace("call.arguments | tojson", "'{}'"), Habits(HERMES, True, False, False, True)),
    ],
    ids=[
        "Qwen",
        "Llama",
        "teaches Hermes",
        "teaches Llama",
        "own",
        "brackets",
        "in brackets",
        "XML",
        "Gemma",
        "no",
        "loses",
    ],
)
def test_habits(source: str, expected: Habits) -> None:
    assert habits(source) == expected


def test_an_object_in_another_order_is_still_a_call() -> None:
    assert REVERSED != QWEN_25 and habits(REVERSED) == habits(QWEN_25)


def test_a_template_that_fails_at_every_try_is_told_everything() -> None:
    assert read_habits("<b>", lambda messages, tools: None) == Habits(HERMES, False, False, False, False)


def test_a_template_that_does_not_end_when_it_sees_a_call() -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = "{% for m in messages %}{{ m.content }}{% if m.tool_calls %}" + loop + "{% endif %}{% endfor %}"
    template = JinjaTemplate(source)
    assert template.tool_format is HERMES
    assert template.text([Message("user", "hi")]) == "hi"
