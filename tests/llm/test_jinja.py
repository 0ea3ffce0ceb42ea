"""Chat templates of checkpoints: what Hugging Face's renderer writes, cut at the markers the template wrote.

The templates are written here in the manner of the families people hold. The oracle is transformers' own
renderer, on the same conversation.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.chat.jinja import ALLOWED_OPTIONS, ControlTokens, JinjaTemplate
from llm.chat.template import ChatTemplate, Message, PlainTemplate, Segment, ToolCall
from llm.chat.tools import HERMES, LLAMA3, Tool
from llm.chat.turns import fields_of
from llm.errors import CheckpointError, RequestError
from tests.llm.tool_templates import CHAT, LLAMA_31, NO_SYSTEM, QWEN_25, TIME, XML

LLAMA_2 = """{% if messages[0]['role'] == 'system' %}
    {% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate: user, assistant, user, assistant.') }}
    {% endif %}
    {% if loop.first and system %}
        {% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {% else %}
        {{- ' ' + content.strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}"""
LLAMA_3 = """{{- bos_token }}
{%- set date = strftime_now("%d %b") if strftime_now is defined else "1 Jan" %}
{%- if messages[0].role == "system" %}
    {%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today: " ~ date ~ "\\n\\n" + system }}
{%- if tools is not none %}
    {%- for tool in tools %}{{- "\\n" + tool|tojson(indent=4) }}{%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
QWEN_3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" -%}
    {%- set system = messages[0]["content"] -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set turns = messages -%}{%- endif -%}
{%- set user_turns = turns | selectattr("role", "equalto", "user") | list -%}
{{- bos_token -}}
{%- for m in turns -%}
    {%- if (m["role"] == "user") != (loop.index0 % 2 == 0) -%}
        {{- raise_exception("After the optional system message, roles must alternate") -}}
    {%- endif -%}
    {%- if m["role"] == "user" -%}
        {%- if tools is not none and m == user_turns[-1] -%}
            {{- "[AVAILABLE_TOOLS] [" -}}
            {%- for tool in tools -%}
                {{- '{"type": "function", ' -}}
                {%- for key, val in tool.function.items() if key != "return" -%}
                    {%- if val is string -%}{{- '"' + key + '": "' + val + '"' -}}
                    {%- else -%}{{- '"' + key + '": ' + val|tojson -}}{%- endif -%}
                    {%- if not loop.last -%}{{- ", " -}}{%- endif -%}
                {%- endfor -%}
                {{- "}" ~ ("" if loop.last else ", ") -}}
            {%- endfor -%}
            {{- "][/AVAILABLE_TOOLS]" -}}
        {%- endif -%}
        {%- if loop.last and system is defined -%}
            {{- "[INST] " + system + "\\n\\n" + m["content"] + "[/INST]" -}}
        {%- else -%}{{- "[INST] " + m["content"] + "[/INST]" -}}{%- endif -%}
    {%- else -%}{{- " " + m["content"]|trim + eos_token -}}{%- endif -%}
{%- endfor -%}"""
PHI_3 = """{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
MACROS = """{%- macro kind(schema) -%}
    {%- if schema.type == 'array' -%}{{ kind(schema['items']) }}[]
    {%- elif schema.type == 'object' -%}{
        {%- for name, inner in schema.properties|dictsort -%}
            {{ name }}{{ '' if name in schema.required|default([]) else '?' }}: {{ kind(inner) }}
            {%- if not loop.last %}, {% endif %}
        {%- endfor -%}}
    {%- else -%}{{ schema.type|default('any')|upper }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] %}{{ tool.function.name }}({{ kind(tool.function.parameters) }})
{% endfor -%}
{%- for group in [messages] %}{% for m in group %}
{%- set text %}{{ m.content | replace('\\t', ' ') }}{% endset -%}
<|{{ m.role }}|>{{ text | trim }}{% if m.role == 'assistant' %}<|end|>{% endif %}
{% endfor %}{% endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
GENERATION = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}
{{- m.content }}<|im_end|>{% endif %}

{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SMOLLM_2 = """{% for m in messages %}{% if loop.first and m['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are small.<|im_end|>\\n' }}{% endif %}
{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
FAMILIES = {
    "SmolLM 2": (SMOLLM_2, ["<|im_start|>", "<|im_end|>"]),
    "Llama 2": (LLAMA_2, ["<s>", "</s>"]),
    "Llama 3": (LLAMA_3, ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "Qwen 3": (QWEN_3, ["<|im_start|>", "<|im_end|>"]),
    "Mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]),
    "Phi 3": (PHI_3, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "</s>"]),
    "macros": (MACROS, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]),
    "generation": (GENERATION, ["<|im_start|>", "<|im_end|>"]),
    "Qwen 2.5": (QWEN_25, ["<|im_start|>", "<|im_end|>", "<tool_call>"]),
    "Llama 3.1": (LLAMA_31, ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "XML": (XML, ["<|im_start|>", "<|im_end|>", "<tool_call>"]),
}
OWN_TOOLS = ("Llama 3", "Qwen 2.5", "Llama 3.1")
"""Those whose way with tools is known, so that they describe tools themselves."""
TEMPLATES = {
    name: JinjaTemplate(source, control=control, bos_token="<s>", eos_token="</s>")
    for name, (source, control) in FAMILIES.items()
}
family = pytest.mark.parametrize("name", FAMILIES)
WEATHER = Tool(
    "weather",
    'of a "place" <|im_end|>',
    {
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "<|eot_id|>": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["place"],
    },
)


def conversations(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    """Alternating, ending with the user, with or without a system message."""

    def build(contents: list[str], system: str | None) -> list[Message]:
        contents = contents if len(contents) % 2 else contents[:-1]
        turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents)]
        return turns if system is None else [Message("system", system), *turns]

    return st.builds(build, st.lists(content, min_size=1, max_size=6), st.none() | content)


TEXT = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            ["<think>\n", "\n</think>\n\n", "a", " ", "\t", "\n", "<|im_end|>", "<|eot_id|>", "é", "{{ x }}"]
        ),
        max_size=8,
    ).map("".join),
)


def reference(
    source: str,
    messages: Sequence[Message],
    *,
    generate: bool = True,
    tools: Sequence[Tool] = (),
    options: Mapping[str, object] | None = None,
    continue_final: bool = False,
) -> str:
    """What transformers writes."""
    module = pytest.importorskip("transformers.utils.chat_template_utils")
    texts, _ = module.render_jinja_template(
        [[fields_of(message) for message in messages]],
        tools=[tool.spec for tool in tools] or None,
        chat_template=source,
        add_generation_prompt=generate and not continue_final,
        continue_final_message=continue_final,
        bos_token="<s>",
        eos_token="</s>",
        **(options or {}),
    )
    text: str = texts[0]
    return text


def joined(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


@family
@given(conversations(TEXT), st.booleans(), st.booleans(), st.sampled_from([{}, {"enable_thinking": False}]))
@settings(max_examples=40)
def test_the_text_is_what_transformers_writes(
    name: str, messages: list[Message], generate: bool, tools: bool, options: dict[str, object]
) -> None:
    given: dict[str, Any] = {
        "generate": generate,
        "tools": [WEATHER, TIME] if tools and name in OWN_TOOLS else [],
        "options": options if "enable_thinking" in FAMILIES[name][0] else {},
    }
    segments = TEMPLATES[name].render(messages, **given)
    assert joined(segments) == reference(FAMILIES[name][0], messages, **given)


ROLES = st.sampled_from(["system", "user", "assistant"])


@given(st.lists(st.builds(Message, ROLES, TEXT), min_size=1, max_size=6))
@settings(max_examples=100)
def test_roles_in_any_order(messages: list[Message]) -> None:
    assert TEMPLATES["SmolLM 2"].text(messages) == reference(SMOLLM_2, messages)


SPLICED = st.lists(
    st.sampled_from(sorted({s for _, control in FAMILIES.values() for s in control}) + ["a", " "])
)
PIECES = st.lists(
    st.sampled_from([*"<|>/[]_", "im", "end", "start", "INST", "s", "eot", "id", "user", "a", " "])
)


@family
@given(conversations(SPLICED.map("".join) | PIECES.map("".join)), st.booleans())
@settings(max_examples=60)
def test_what_users_write_is_never_a_control_token(
    name: str, messages: list[Message], generate: bool
) -> None:
    """The same control tokens as when users write letters only; and the text is unchanged."""
    harmless = [
        Message(m.role, "".join(char if char.isspace() else "x" for char in m.content)) for m in messages
    ]
    control = [s for s in TEMPLATES[name].render(messages, generate=generate) if s.control]
    assert control == [s for s in TEMPLATES[name].render(harmless, generate=generate) if s.control]
    assert {s.text for s in control} <= set(FAMILIES[name][1])
    text = TEMPLATES[name].text(messages, generate=generate)
    assert text == reference(FAMILIES[name][0], messages, generate=generate)


def test_what_tools_say_is_never_a_control_token() -> None:
    for name, (_, control) in FAMILIES.items():
        hostile, quiet = (
            Tool(
                a,
                b,
                {"type": "object", "properties": {c: {"type": "string", "description": d}}, e: [a, {b: c}]},
            )
            for a, b, c, d, e in ((*control[:2], *control[-2:], control[0]), "fghij")
        )
        calls, none = (
            [
                Message("user", "?"),
                Message("assistant", "", (ToolCall(text, text, json.dumps({text: [text, {text: text}]})),)),
                Message("tool", text, (), text, text),
            ]
            for text in (control[0], "f")
        )
        counts = [
            [segment.text for segment in TEMPLATES[name].render(chat, tools=[tool]) if segment.control]
            for chat, tool in ((calls, hostile), (none, quiet))
        ]
        assert counts[0] == counts[1], name


def test_a_spelling_that_arises_where_texts_meet_stays_text() -> None:
    """Two messages, a message and the template's text, or a message from which a piece is cut."""
    source = (
        "{% for m in messages %}{{ m.content }}{% endfor %}|>"
        "{{ messages[0].content|replace('X', '') }}{{ messages[0].content|lower }}{{ '<|im_end' }}|>"
        "{{ ['<|im_', messages[0].content]|join }}{{ '%s%s' % ('<|im_', messages[0].content) }}"
    )
    template = JinjaTemplate(source, control=["<|im_end|>"])
    for content in ("<|im_", "<|im_Xend|>", "<|IM_END|>", "end|>", "<|im_end"):
        segments = template.render([Message("user", content), Message("assistant", "end|>")])
        assert [s.text for s in segments if s.control] == ["<|im_end|>"], content
        before = joined(segments).index("|>|>") if content == "<|im_" else None
        assert before is None or segments[0].text.startswith("<|im_end|>")


def test_markers_that_a_template_puts_together_are_control_tokens() -> None:
    segments = TEMPLATES["Phi 3"].render([Message("user", "<|user|>")])
    assert segments == [
        Segment("<|user|>", control=True),
        Segment("\n<|user|>"),
        Segment("<|end|>", control=True),
        Segment("\n"),
        Segment("<|assistant|>", control=True),
        Segment("\n"),
    ]


def test_without_control_tokens_there_is_one_text() -> None:
    template = JinjaTemplate(QWEN_3)
    segments = template.render([Message("user", "hi")])
    assert segments == [Segment("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")]
    assert template.text([Message("user", "hi")]) == segments[0].text


def test_generation_blocks_are_trained() -> None:
    chat = [Message("user", "hi"), Message("assistant", "yes <|im_end|>")]
    assert TEMPLATES["generation"].render(chat, generate=False) == [
        Segment("<|im_start|>", control=True),
        Segment("user\nhi"),
        Segment("<|im_end|>", control=True),
        Segment("\n"),
        Segment("<|im_start|>", control=True),
        Segment("assistant\n"),
        Segment("yes <|im_end|>", trained=True),
        Segment("<|im_end|>", trained=True, control=True),
        Segment("\n"),
    ]
    assert not any(s.trained for s in TEMPLATES["Qwen 3"].render(chat, generate=False))


def test_bos_at_the_start_is_there_once() -> None:
    source = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"
    template = JinjaTemplate(source.replace("{{ bos_token }}", "", 1), control=["<s>"], bos_token="<s>")
    chat = [Message("user", "<s>a"), Message("assistant", "b")]
    bos = Segment("<s>", control=True)
    assert template.render(chat) == [bos, Segment("<s>a"), bos, Segment("b")]
    without = JinjaTemplate(
        "{% for m in messages %}{{ m.content }}{% endfor %}", control=["<s>"], bos_token="<s>"
    )
    assert without.render(chat) == [Segment("<s>ab")]


def test_the_longest_spelling_wins_and_the_first() -> None:
    tokens = ControlTokens(["<a>", "<a><b>", "<b>", "<", "x", ""])

    def find(text: str, users: Sequence[int] = ()) -> list[str]:
        flags = bytes(i in users for i in range(len(text)))
        return [text[start:end] for start, end in tokens.find(text, flags)]

    assert find("<a><b><b>q<ax") == ["<a><b>", "<b>", "<", "x"]
    assert find("<a><b>", users=[4]) == ["<a>", "<"]
    assert find("<a>", users=[0, 1, 2]) == []
    assert list(ControlTokens([]).find("<a>", bytes(3))) == []


def test_many_control_tokens() -> None:
    spellings = [f"<unused{i}>" for i in range(6000)]
    tokens = ControlTokens(spellings)
    text = "<unused5999><unused6000><unused1>" + "<" * 1000
    assert [text[a:b] for a, b in tokens.find(text, bytes(len(text)))] == ["<unused5999>", "<unused1>"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("foo", 1, "chat_template_kwargs.foo: this option is not known, known: enable_thinking, thinking, "),
        ("date_string", "1 May", "this option is not known"),
        ("messages", [], "this option is not known"),
        ("@meter", 1, "this option is not known"),
        ("enable_thinking", 1, "chat_template_kwargs.enable_thinking: expected true or false"),
        ("enable_thinking", None, "expected true or false"),
        ("reasoning_effort", "max", "expected 'low' or 'medium' or 'high'"),
        ("reasoning_effort", ["low"], "expected 'low' or 'medium' or 'high'"),
    ],
)
def test_options_are_of_a_list(option: str, value: object, message: str) -> None:
    with pytest.raises(RequestError) as error:
        TEMPLATES["Qwen 3"].render([Message("user", "hi")], options={option: value})
    assert message in str(error.value)
    assert error.value.param == f"chat_template_kwargs.{option}"


def test_an_option_the_template_does_not_know_is_refused() -> None:
    for options in ({"enable_thinking": False}, {"enable_thinking": True, "thinking": True}):
        with pytest.raises(RequestError, match="enable_thinking: this model's chat template knows no such"):
            TEMPLATES["SmolLM 2"].render([Message("user", "hi")], options=options)


@pytest.mark.parametrize("template", [TEMPLATES["SmolLM 2"], PlainTemplate()])
def test_an_options_name_cannot_break_the_line(template: ChatTemplate) -> None:
    with pytest.raises(RequestError) as error:
        template.render([Message("user", "hi")], options={"a\nERROR:\x1b\u2028" + "b" * 1000: 1})
    assert error.value.param == "chat_template_kwargs.a?ERROR:??" + "b" * 54
    assert str(error.value).isprintable() and len(str(error.value)) < 200


def test_every_allowed_option_reaches_the_template() -> None:
    template = JinjaTemplate(
        "{{ messages[0].content }}{{ enable_thinking }}{{ thinking }}{{ reasoning_effort }}"
    )
    for name, values in ALLOWED_OPTIONS.items():
        for value in values:
            assert template.render([Message("user", "hi")], options={name: value}) == [Segment(f"hi{value}")]


def test_a_default_system_message() -> None:
    template = JinjaTemplate(SMOLLM_2, default_system="Be brief.")
    assert template.text([Message("user", "hi")]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert "brief" not in template.text([Message("system", "Be long."), Message("user", "hi")])


def test_a_template_refuses_a_conversation_in_its_own_words() -> None:
    with pytest.raises(RequestError) as error:
        TEMPLATES["Llama 2"].render([Message("user", "a"), Message("user", "b")])
    assert str(error.value) == (
        "this model's chat template refuses this conversation: "
        "Roles must alternate: user, assistant, user, assistant."
    )
    assert (error.value.param, error.value.code) == ("messages", "invalid_value")


def test_a_template_that_fails_later_is_a_request_error() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if messages[0].content == 'loop' %}"
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
        "{% if messages[0].content == 'add' %}{{ 1 + messages[0].content }}{% endif %}"
        "{% if messages[0].content == 'long' %}{% for a in range(9999) %}"
        + "x" * 999
        + "{% endfor %}{% endif %}"
    )
    template = JinjaTemplate(source)
    for content, reason in (
        ("loop", "the template needs more than"),
        ("add", "TypeError: unsupported operand type"),
        ("long", "it writes 9,989,005 characters, the limit is"),
    ):
        with pytest.raises(RequestError, match=f"fails on this conversation: {reason}") as error:
            template.render([Message("user", content)])
        assert error.value.param == "messages" and "\n" not in str(error.value)
    assert template.text([Message("user", "hi")]) == "hi"


def test_tools_nested_without_end() -> None:
    schema: dict[str, object] = {}
    for _ in range(200):
        schema = {"a": schema}
    with pytest.raises(RequestError, match="nested more than 60 deep"):
        TEMPLATES["Qwen 2.5"].render([Message("user", "hi")], tools=[Tool("f", parameters=schema)])


# Tools, calls and results.


def test_the_forms_of_calls() -> None:
    forms = {name: template.tool_format for name, template in TEMPLATES.items()}
    assert {name for name, form in forms.items() if form is LLAMA3} == {"Llama 3", "Llama 3.1"}
    assert {form for name, form in forms.items() if not name.startswith("Llama 3")} == {HERMES}


ARGUMENTS = st.dictionaries(TEXT, TEXT | st.integers() | st.floats(-1e9, 1e9) | st.lists(TEXT), max_size=3)


@pytest.mark.parametrize("name", ["Qwen 2.5", "Llama 3.1"])
@given(st.lists(st.tuples(TEXT, TEXT, ARGUMENTS, TEXT), max_size=3), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_calls_and_results_are_what_transformers_writes(
    name: str, turns: list[tuple[str, str, dict[str, object], str]], tools: bool, generate: bool
) -> None:
    chat = [Message("user", "?")]
    for i, (content, function, arguments, result) in enumerate(turns):
        call = ToolCall(f"call_{i}", function, json.dumps(arguments))
        chat += [Message("assistant", content, (call,)), Message("tool", result, (), call.id, function)]
    given: dict[str, Any] = {"tools": [WEATHER, TIME] if tools else [], "generate": generate}
    text = joined(TEMPLATES[name].render(chat, **given))
    assert text == reference(FAMILIES[name][0], chat, **given)


def test_a_template_that_writes_one_call_at_a_time_gets_them_one_by_one() -> None:
    text = TEMPLATES["Llama 3.1"].text(CHAT)
    turns = [turn.split("<|end_header_id|>\n\n") for turn in text.split("<|start_header_id|>")][2:]
    assert [(role, said.removesuffix("<|eot_id|>")) for role, said in turns] == [
        ("user", "Rain in Oslo?"),
        ("assistant", '{"name": "weather", "parameters": {"place": "Oslo"}}'),
        ("ipython", '"rain"'),
        ("assistant", '{"name": "time", "parameters": {}}'),
        ("ipython", '"noon"'),
        ("assistant", "Yes, at noon."),
        ("user", "Thanks."),
        ("assistant", ""),
    ]


@pytest.mark.parametrize("name", ["SmolLM 2", "Qwen 3", "Mistral", "XML", "Llama 2", "Phi 3", "generation"])
def test_a_template_that_knows_no_calls_of_ours_gets_text(name: str) -> None:
    template = TEMPLATES[name]
    text = joined(template.render(CHAT, tools=[WEATHER, TIME]))
    assert HERMES.instructions([WEATHER, TIME]) in text
    asked = text[text.index("Rain in Oslo?") :]
    calls = "\n".join(map(HERMES.write_call, CHAT[1].tool_calls))
    assert f"I look.\n{calls}" in asked
    assert "<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response>" in asked
    assert "[AVAILABLE_TOOLS]" not in text and "<function=" not in text


def test_a_template_without_system_messages_tells_the_user() -> None:
    text = JinjaTemplate(NO_SYSTEM).text
    template = JinjaTemplate(NO_SYSTEM)
    said = joined(template.render(CHAT[:1], tools=[TIME]))
    assert said == f"<start>user\n{HERMES.instructions([TIME])}\n\nRain in Oslo?<end>\n<start>model\n"
    assert text(CHAT).count("<start>user") == 3, "the question, the results, and thanks"


def test_a_default_system_message_comes_before_the_tools() -> None:
    template = JinjaTemplate(SMOLLM_2, default_system="Be brief.")
    said = joined(template.render(CHAT[:1], tools=[TIME]))
    assert said.startswith(f"<|im_start|>system\nBe brief.\n\n{HERMES.instructions([TIME])}<|im_end|>")


@pytest.mark.parametrize("name", ["SmolLM 2", "Qwen 2.5", "Llama 3.1"])
def test_arguments_that_cannot_be_written_are_named(name: str) -> None:
    chat = [Message("user", "?"), Message("assistant", "", (ToolCall("1", "f", "oops"),))]
    with pytest.raises(RequestError, match="must be the JSON text of an object") as caught:
        TEMPLATES[name].render(chat)
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


def test_calls_are_part_of_the_budget() -> None:
    """A conversation of tool calls alone may be as long as one of text."""
    call = ToolCall("call_1", "f", json.dumps({"text": "x" * 4000}))
    chat = [
        Message("user", "?"),
        *[Message("assistant", "", (call,)), Message("tool", "y", (), "call_1")] * 300,
    ]
    for name in ("Qwen 2.5", "Llama 3.1", "SmolLM 2"):
        assert TEMPLATES[name].text(chat).count("x" * 4000) == 300


# The last message goes on.


@family
@given(
    conversations(TEXT),
    TEXT.filter(lambda text: text.strip() != "" and "think" not in text and "\t" not in text),
)
@settings(max_examples=20)
def test_what_goes_on_ends_like_what_transformers_writes(
    name: str, messages: list[Message], final: str
) -> None:
    chat = [*messages, Message("assistant", final)]
    text = joined(TEMPLATES[name].render(chat, continue_final=True))
    expected = reference(FAMILIES[name][0], chat, continue_final=True)
    if final != final.rstrip():  # what the template trims and then writes itself is not the message's here
        text, expected = text.rstrip(), expected.rstrip()
    assert text == expected
    assert text.rstrip().endswith(final.strip())


@family
def test_an_empty_message_goes_on_where_a_reply_begins(name: str) -> None:
    chat = [Message("user", "hi")]
    for empty in ("", " \n "):
        begun = TEMPLATES[name].render(
            [*chat, Message("assistant", empty)], continue_final=True, generate=False
        )
        assert begun == TEMPLATES[name].render(chat)


@family
@given(conversations(SPLICED.map("".join)), SPLICED.map(lambda parts: "".join(parts) + "x"))
@settings(max_examples=30)
def test_what_goes_on_holds_no_control_token_of_its_own(
    name: str, messages: list[Message], final: str
) -> None:
    counts = [
        sum(segment.control for segment in TEMPLATES[name].render(chat, continue_final=True))
        for chat in ([*messages, Message("assistant", text)] for text in (final, "x"))
    ]
    assert counts[0] == counts[1]


def test_the_last_place_of_a_text_is_not_enough() -> None:
    """The message that goes on is told from others, and from the template, that say the same."""
    source = "{% for m in messages %}{{ m.content }};{% endfor %}{{ messages[0].content }} yes"
    chat = [Message("user", "yes"), Message("assistant", "yes")]
    assert joined(JinjaTemplate(source).render(chat, continue_final=True)) == "yes;yes"


@pytest.mark.parametrize(
    "written",
    ["", "{{ m.content|upper }}", "{{ m.content|tojson }}", "{{ m.content[:-1] }}", "{{ m.content * 2 }}"],
)
def test_a_template_that_changes_the_last_message_cannot_go_on(written: str) -> None:
    source = "{% for m in messages %}{% if m.role == 'assistant' %}" + written
    template = JinjaTemplate(source + "{% else %}{{ m.content }}{% endif %};{% endfor %}")
    with pytest.raises(RequestError, match="does not write the last message as it is") as caught:
        template.render([Message("user", "hi"), Message("assistant", "so be it")], continue_final=True)
    assert caught.value.param == "continue_final_message"


def test_only_a_reply_goes_on() -> None:
    for chat in (CHAT, CHAT[:2], []):
        with pytest.raises(RequestError) as caught:
            TEMPLATES["Qwen 2.5"].render(chat, continue_final=True)
        assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].content", "chat template: line 1: "),
        ("{{ messages[0].content }}{% include 'x' %}", "chat template: line 1: {% include %} is not for"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "needs more than"),
        ("{{ raise_exception('no\nusers') }}", "chat template: no users"),
        ("{{ missing.a }}", "chat template: 'missing' is undefined"),
        ("nothing", "chat template: it does not write the user's message"),
        ("", "chat template: it does not write the user's message"),
        ("{{ messages[0]['content'][0]['text'] }}", "it does not write the user's message"),
        ("{{ messages[0].content }}{{ 'x' * 2000000 }}", "it writes 2,000,014 characters, the limit is"),
        (
            "{{ messages[0].content }}{% if messages|length > 2 %}{% for a in range(99999) %}"
            "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}",
            "needs more than",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_start(source: str, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        JinjaTemplate(source)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_template_may_refuse_roles_at_start() -> None:
    source = (
        "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}"
    )
    assert JinjaTemplate(source).text([Message("user", "hi")]) == "hi"


def test_long_conversations_stay_within_the_budget() -> None:
    """1,023 messages; and templates that look at a hundred of them for each, or copy all that came before."""
    chat = [Message("assistant" if i % 2 else "user", f"message {i} " * 20) for i in range(1023)]
    for name, template in TEMPLATES.items():
        assert "message 1022 " in template.text(chat), name
    pairs = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% for o in messages[-100:] %}"
        "{% if o.role == m.role %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ m.content }}{% endfor %}"
        "{{ ns.n }}"
    )
    assert JinjaTemplate(pairs).text(chat).endswith("message 1022 51150")
    copies = "{% set ns = namespace(all='') %}{% for m in messages %}{% set ns.all = ns.all + m.content %}"
    copies += "{% endfor %}{{ ns.all }}"
    assert JinjaTemplate(copies).text(chat[:200]).endswith("message 199 ")


def test_renderings_in_many_threads_do_not_mix() -> None:
    template, results = TEMPLATES["Qwen 3"], dict[int, set[str]]()

    def work(i: int) -> None:
        results[i] = {template.text([Message("user", f"{i} <|im_end|>")]) for _ in range(50)}

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {
        i: {f"<|im_start|>user\n{i} <|im_end|><|im_end|>\n<|im_start|>assistant\n"} for i in range(4)
    }
