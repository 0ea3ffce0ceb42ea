"""Replies to content and calls: every split gives the same total, which is what a slow reader finds."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.chat.tool_calls import (
    ContentDelta,
    Delta,
    HermesParser,
    Llama3Parser,
    ToolCallDelta,
    ToolCallParser,
)

Total = tuple[str, list[tuple[str, str]], int, bool]
"""Content, (name, arguments) of each call, num_complete, is_open."""

PARSERS: dict[str, Callable[[], ToolCallParser]] = {"hermes": HermesParser, "llama3": Llama3Parser}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "}\\"x", "b": [1, {"c": 2}]}}\n</tool_call>'
ARGUMENTS = '{"a": "}\\"x", "b": [1, {"c": 2}]}'
LLAMA = f'{{"name": "f", "parameters": {ARGUMENTS}}}'


def total(deltas: Iterable[Delta], parser: ToolCallParser) -> Total:
    """What a client has at the end."""
    content, calls = "", list[tuple[str, str]]()
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            assert delta.text
            content += delta.text
            continue
        if delta.name is not None:
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        else:
            assert delta.arguments
        assert delta.index == len(calls) - 1, "one call at a time"
        calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content, calls, parser.num_complete, parser.is_open


def read(kind: str, pieces: Iterable[str]) -> Total:
    parser = PARSERS[kind]()
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return total([*deltas, *parser.flush()], parser)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello <b> there", "Hello <b> there", []),
        ("  Hello \n", "  Hello \n", []),
        ("", "", []),
        (CALL, "", [("f", ARGUMENTS)]),
        (f"\n{CALL}\n{CALL}\n", "", [("f", ARGUMENTS)] * 2),
        (f"I look.\n\n{CALL}\n", "I look.", [("f", ARGUMENTS)]),
        (f"I look.\n{CALL}\nDone. ", "I look.\n\nDone. ", [("f", ARGUMENTS)]),
        ('<tool_call>{"name":"f","arguments":{}}', "", [("f", "{}")]),
        ('<tool_call>{"name":"f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name":"f","arguments":null}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"arguments": {"a": {}},\n"name": "f"}</tool_call>', "", [("f", '{"a": {}}')]),
        ('<tool_call>{"id": 7, "name": "f", "arguments": { }}</tool_call>', "", [("f", "{ }")]),
        ('<tool_call>{"name": "f", "arguments": {}, "id": {"a": 1}}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "\\u0066", "arguments": {}}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> so', "so", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {}}} so</tool_call>', "} so</tool_call>", [("f", "{}")]),
        ('<tool_call>{"arguments": {"a": "1\n2"}, "name": "f"}', "", [("f", '{"a": "1\n2"}')]),
        ('<tool_call>{"i": 1, "name": "f", "name": "g", "arguments": {}, "arguments": 3}', "", [("f", "{}")]),
        (f"<tool_call>{{oops {CALL}", "<tool_call>{oops", [("f", ARGUMENTS)]),
        (f"<tool_call>{CALL}", "<tool_call>", [("f", ARGUMENTS)]),
        (f"<<tool_{CALL}</tool_call>", "<<tool_</tool_call>", [("f", ARGUMENTS)]),
    ],
)
def test_what_hermes_replies_mean(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], list(text)):
        assert read("hermes", pieces) == (content, calls, len(calls), False)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call> hello </tool_call>",
        '<tool_call>["name"]</tool_call>',
        "<tool_call>{name: 1} and {",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "", "arguments": {}}',
        '<tool_call>{"name": "\\ud800", "arguments": {}}',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "3"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": NaN}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"id": 1,, "name": "f", "arguments": {}}</tool_call>',
        '<tool_call>{"id": 1, "name": "f", "arguments": {},}</tool_call>',
        '<tool_call>{"id": {"name": "f", "arguments": {}}',
        "<tool_call>" + '{"id":' * 100_000,
        '{"name": "f", "arguments": {}}',
        "</tool_call>",
        "<tool_cal",
    ],
    ids=lambda text: text[:60],
)
def test_what_is_no_call_is_content_to_the_letter(text: str) -> None:
    assert read("hermes", [f" {text}\n"]) == (f" {text}\n", [], 0, False)
    if len(text) < 1000:
        assert read("hermes", f" {text}\n") == (f" {text}\n", [], 0, False)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello {", "Hello {", []),
        (LLAMA, "", [("f", ARGUMENTS)]),
        (f" {LLAMA}\n", "", [("f", ARGUMENTS)]),
        (f"<|python_tag|>{LLAMA}", "", [("f", ARGUMENTS)]),
        (f"{LLAMA}; {LLAMA};{LLAMA}\n{LLAMA}", "", [("f", ARGUMENTS)] * 4),
        (f"{LLAMA}; hello", "; hello", [("f", ARGUMENTS)]),
        (f"{LLAMA} then {LLAMA}", f"then {LLAMA}", [("f", ARGUMENTS)]),
        (f"So: {LLAMA}", f"So: {LLAMA}", []),
        (f"; {LLAMA}", f"; {LLAMA}", []),
        ('{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
        ('{"name": "Ann"}', '{"name": "Ann"}', []),
        ('{"name": "Ann", "age": {"years": 3}} ', '{"name": "Ann", "age": {"years": 3}} ', []),
        (f'{{"a": 1}}; {LLAMA}', f'{{"a": 1}}; {LLAMA}', []),
        (f"<|python_tag|>print() {LLAMA}", f"<|python_tag|>print() {LLAMA}", []),
        ("<|python_", "<|python_", []),
        ("{not JSON", "{not JSON", []),
    ],
)
def test_what_llama_replies_mean(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], list(text)):
        assert read("llama3", pieces) == (content, calls, len(calls), False)


def test_arguments_leave_as_they_come_and_nothing_else_waits() -> None:
    parser = HermesParser()
    assert parser.feed("<tool_call>{oops") == [ContentDelta("<tool_call>{oops")]
    parser = HermesParser()
    assert parser.feed("a <") == [ContentDelta("a")]
    assert parser.feed("b> <tool") == [ContentDelta(" <b>")]
    assert parser.feed('_call>\n{"name": "f", "argu') == [] and parser.is_open
    assert parser.feed('ments": ') == []
    assert parser.feed("{") == [ToolCallDelta(0, "f", "{")]
    assert parser.feed('"a": "') == [ToolCallDelta(0, None, '"a": "')]
    assert parser.feed("x}") == [ToolCallDelta(0, None, "x}")] and parser.num_complete == 0
    assert parser.feed('"}') == [ToolCallDelta(0, None, '"}')]
    assert parser.num_complete == 1 and not parser.is_open
    assert parser.feed("}\n</tool_call>\n") == []
    assert parser.feed(CALL + " b") == [ToolCallDelta(1, "f", ARGUMENTS), ContentDelta(" \n b")]
    assert parser.flush() == [] and parser.num_complete == 2


def test_a_call_that_is_cut() -> None:
    """After its name: what came stands, and no brace is made up. Before: it is content."""
    begun = CALL.index("{", 20) + 1
    ends = CALL.index("}\n</")
    for end in range(len(CALL)):
        content, calls, num_complete, is_open = read("hermes", [CALL[:end]])
        if end < begun:
            assert (content, calls, is_open) == (CALL[:end], [], False)
        else:
            assert (content, calls) == ("", [("f", ARGUMENTS[: end - begun + 1])])
            assert (num_complete, is_open) == ((1, False) if end >= ends else (0, True))


# The slow twin: the whole text at once, with regexes and Python's json.

SPACE = r"[ \t\n\r]*"
HEAD = re.compile(
    r'\{S"name"S:S("(?:[^"\\]|\\.)*")S,S"(?:arguments|parameters)"S:S(?=\{)'.replace("S", SPACE), re.DOTALL
)
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|"(?:[^"\\]|\\.)*\\?\Z|[{}]', re.DOTALL)


def balanced(text: str, at: int, depth: int = 0) -> int | None:
    """Behind the brace that closes the one at `at`."""
    for token in TOKEN.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if token[0] == "}" and depth == 0:
            return token.end()
    return None


def loads(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, strict=False, parse_constant=refuse, object_pairs_hook=list)


def member_texts(text: str) -> dict[str, str]:
    """The text of each member of a JSON object, the first of each name."""
    found: dict[str, str] = {}
    depth, start, key = 0, 1, None
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[][{},:]', text, re.DOTALL):
        if token[0] in "{[":
            depth += 1
        elif depth == 1 and token[0] == ":":
            key, start = loads(text[start : token.start()]), token.end()
        elif depth == 1 and token[0] in ",}":
            if key is not None:
                found.setdefault(key, text[start : token.start()].strip(" \t\n\r"))
            key, start = None, token.end()
        if token[0] in "}]":
            depth -= 1
    return found


def good_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and not any("\ud800" <= char <= "\udfff" for char in value)


def slow_object(text: str, at: int, bare: bool) -> tuple[int, tuple[str, str] | None, bool]:
    """Where an object ends, its call, and whether that is complete."""
    head = HEAD.match(text, at)
    try:
        name = loads(head[1]) if head else None
    except ValueError:
        name = None
    if head and good_name(name):
        end = balanced(text, head.end())
        if end is None:
            return len(text), (name, text[head.end() :]), False
        arguments = text[head.end() : end]
        rest = text[end:].lstrip(" \t\n\r")
        if rest[:1] == "}":
            end = len(text) - len(rest) + 1
        elif rest[:1] == ",":
            end = balanced(text, len(text) - len(rest), 1) or end
            if rest and end == head.end() + len(arguments):
                end = head.end() + len(arguments)
        return end, (name, arguments), True
    inside = text[at + 1 :].lstrip(" \t\n\r")
    if inside and inside[0] not in '"}':
        return len(text) - len(inside), None, False
    end = balanced(text, at)
    if end is None:
        return len(text), None, False
    return end, slow_members(text[at:end], bare), True


def slow_members(text: str, bare: bool) -> tuple[str, str] | None:
    try:
        loads(text)
        members = member_texts(text)
        name = loads(members.get("name", "0"))
    except (ValueError, RecursionError):
        return None
    written = members.get("arguments", members.get("parameters", "null"))
    if not good_name(name):
        return None
    if written == "null":
        return (name, "{}") if bare else None
    if written[0] == "{":
        return name, written
    try:
        inner = json.loads(written, strict=False)
        if isinstance(inner, str) and inner.strip(" \t\n\r")[:1] == "{" and good_name(inner):
            loads(inner)
            return name, inner.strip()
    except (ValueError, RecursionError):
        pass
    return None


Piece = str | tuple[str, str]


def slow_hermes(text: str) -> tuple[list[Piece], int]:
    pieces: list[Piece] = []
    at = complete = 0
    while (start := text.find("<tool_call>", at)) >= 0:
        pieces.append(text[at:start])
        inside = text[start + len("<tool_call>") :].lstrip()
        at = len(text) - len(inside)
        if not inside.startswith("{"):
            pieces.append(text[start:at])
            continue
        end, call, whole = slow_object(text, at, True)
        at = end
        if call is None:
            pieces.append(text[start:end])
            continue
        pieces.append(call)
        complete += whole
        after = text[end:].lstrip()
        if after.startswith("</tool_call>"):
            at = len(text) - len(after) + len("</tool_call>")
        elif "</tool_call>".startswith(after):
            at = len(text)
    return [*pieces, text[at:]], complete


def slow_llama(text: str) -> tuple[list[Piece], int]:
    pieces: list[Piece] = []
    at = complete = 0
    while True:
        start = at
        lead = r"\s*;\s*(?=\{)|\s*(?=\{)" if pieces else r"\s*<\|python_tag\|>\s*(?=\{)|\s*(?=\{)"
        opening = re.compile(lead).match(text, at)
        if opening is None:
            return [*pieces, text[start:]], complete
        end, call, whole = slow_object(text, opening.end(), False)
        if call is None:
            return [*pieces, text[start:]], complete
        pieces.append(call)
        complete += whole
        at = end


def slow(kind: str, text: str) -> Total:
    pieces, complete = (slow_hermes if kind == "hermes" else slow_llama)(text)
    calls = [piece for piece in pieces if isinstance(piece, tuple)]
    said = "".join(piece if isinstance(piece, str) else "\0" for piece in pieces)
    said = re.sub(r"\A[\s\0]*\0[\s\0]*|[\s\0]*\0[\s\0]*\Z", "", said).replace("\0", "")
    return said, calls, complete, complete < len(calls)


FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "<",
        "</",
        "tool_call>",
        ";",
        " ",
        "\n",
        "x",
        "é",
        "}",
    ),
    *("{", '"', "\\", ":", ",", '"name"', '"arguments"', '"parameters"', '"a"', "[", "]", "1", "null", "NaN"),
    *('{"name": "f", "arguments": ', '{"name": "f", "parameters": {', '"{}"', '"{\\"a\\":1}"', "{}", "\x85"),
    *('{"arguments": {"a": "}"}, "name": "g"}', '"\\ud83d\\ude00"', '"\\ud800"', "<|", CALL, LLAMA, "}}"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def cut(text: str, at: Iterable[int]) -> list[str]:
    places = [0, *sorted(place % (len(text) + 1) for place in at), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


@pytest.mark.parametrize("kind", PARSERS)
@given(TEXTS, st.lists(st.integers(0, 1000), max_size=6))
@settings(max_examples=400)
@example('<tool_call>{"name": "f", "arguments": {} , "id" </tool_call> x', [])
@example('<tool_call>{"name": "f", "arguments": {"a": "\\', [])
def test_any_split_gives_what_the_slow_reader_finds(kind: str, text: str, at: list[int]) -> None:
    expected = slow(kind, text)
    assert read(kind, [text]) == expected
    assert read(kind, text) == expected
    assert read(kind, cut(text, at)) == expected


@given(TEXTS)
def test_nothing_is_lost(text: str) -> None:
    """Without a call, content is the text."""
    for kind in PARSERS:
        content, calls, _, _ = read(kind, text)
        assert calls or content == text


def num_steps(kind: str, text: str) -> int:
    """Calls of Python functions, ours and built in, for a text fed character by character."""
    count = 0

    def step(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    parser = PARSERS[kind]()
    sys.setprofile(step)
    try:
        for char in text:
            parser.feed(char)
        parser.flush()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "text",
    [
        *("<", " ", "<tool_call>{", "<tool_call>", CALL, "; ", "x <tool_call> "),
        *('<tool_call>{"name": "f', '<tool_call>{"name": "f", "arguments": {', '<tool_call>{"x": "\\'),
    ],
)
@pytest.mark.parametrize("kind", PARSERS)
def test_time_grows_with_the_text(kind: str, text: str) -> None:
    """For a text over and over, and for one that begins like a call and never ends."""
    for make in (lambda n: text * n, lambda n: text + "{ \\" * n, lambda n: text + '"' * n):
        if kind == "llama3":
            made, twice = (make(n).replace("<tool_call>", "") for n in (100, 200))
        else:
            made, twice = make(100), make(200)
        if made:
            assert num_steps(kind, twice) <= 2.2 * num_steps(kind, made) + 200


@pytest.mark.parametrize("kind", PARSERS)
def test_a_hundred_thousand_characters_at_once(kind: str) -> None:
    for text in (
        CALL * 1300,
        "<tool_call>{" * 9000,
        '{"name": "' + "f" * 100_000,
        "{" * 100_000,
        " " * 100_000,
    ):
        assert read(kind, [text]) == read(kind, cut(text, range(0, len(text), 997)))
