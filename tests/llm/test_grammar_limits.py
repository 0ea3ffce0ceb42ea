"""What llguidance would take minutes, gigabytes or the whole stack for: refused, or harmless.

Each was measured to do so without the bound it meets here; a regression shows as a test that hangs, or as a
dead process.
"""

from __future__ import annotations

import json
import random
from threading import Thread
from typing import Any

import pytest
import torch

from llm.errors import RequestError
from llm.grammar import Grammars, GrammarSpec, Kind
from llm.sequence import Accepted
from llm.tokenizer import ByteTokenizer
from tests.masks import forbid

BYTES = Grammars(ByteTokenizer(), 257)
INT = {"type": "integer"}


def chain(length: int, link: Any, leaf: object = INT) -> str:
    """Definitions each of which refers to the next."""
    links = {f"a{n}": link(f"#/$defs/a{n + 1}") for n in range(length)}
    return json.dumps({"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": leaf}})


def rules(length: int, body: str) -> str:
    lines = [f"a{n}: " + body.format(f"a{n + 1}") for n in range(length)]
    return "\n".join(["start: a0", *lines, f'a{length}: "x"'])


def patterns(count: int, pattern: str = "x{}") -> list[dict[str, str]]:
    return [{"type": "string", "pattern": pattern.format(n)} for n in range(count)]


def deep(text: str, levels: int) -> str:
    return text * levels + "{}" + "}" * levels


REFUSED: list[tuple[Kind, str, str]] = [
    ("json_schema", chain(400, lambda ref: {"type": "array", "items": {"$ref": ref}}), "802 levels"),
    ("json_schema", chain(400, lambda ref: {"allOf": [{"$ref": ref}, INT]}), "levels"),
    ("json_schema", json.dumps({"allOf": patterns(40)}), "40 different patterns"),
    (
        "json_schema",
        json.dumps({"allOf": [{"properties": {"a": part}} for part in patterns(40)]}),
        "40 different",
    ),
    ("json_schema", chain(40, lambda ref: {"$ref": ref, "pattern": ref}), "40 different"),
    (
        "json_schema",
        json.dumps({"patternProperties": {f"^k{n}_[a-z]+$": INT for n in range(600)}}),
        "600 pattern",
    ),
    (
        "json_schema",
        json.dumps({"anyOf": [{**INT, "multipleOf": 9991 + 2 * n} for n in range(5)]}),
        "multipleOf",
    ),
    ("json_schema", json.dumps({"type": "number", "multipleOf": 9.9991}), "multipleOf"),
    (
        "json_schema",
        json.dumps({"properties": {f"p{n}": INT for n in range(201)}}),
        "201 optional properties",
    ),
    ("json_schema", json.dumps({"type": "string", "pattern": "a?" * 5000}), "over 8192 bytes"),
    ("json_schema", json.dumps({"title": "x" * 70_000}), "limit is 65536"),
    ("json_schema", deep('{"items":', 65), "deeper than 64"),
    ("json_schema", "[" * 60_000, "too deep"),
    ("json_schema", '{"const":' + "9" * 6000 + "}", "not JSON"),
    ("json_schema", json.dumps({"oneOf": [{"const": n} for n in range(200)]}), "200 options"),
    ("regex", "a" * 8193, "limit is 8192"),
    ("regex", "(" * 4000 + "a" + ")" * 4000, "nested"),
    ("choice", json.dumps([f"c{n}" for n in range(1025)]), "got 1025"),
    ("grammar", rules(600, "{}"), "rules and brackets"),
    ("grammar", "start: " + "(" * 600 + '"a"' + ")" * 600, "rules and brackets"),
    ("grammar", "start: A\nA: " + " & ".join(f"/(?s:.*)x{n}(?s:.*)/" for n in range(40)), "39 intersections"),
    ("grammar", "start: A\nA: " + '"a"? ' * 3300, "bytes in the grammar"),
    ("grammar", "root ::= " + "(" * 600 + '"a"' + ")" * 600, "rules and brackets"),
    ("grammar", "start: %json " + "[" * 50_000, "not followed by a JSON schema"),
]


@pytest.mark.parametrize(("kind", "source", "message"), REFUSED, ids=[f"{n}" for n in range(len(REFUSED))])
def test_what_is_beyond_a_bound_is_refused(kind: Kind, source: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        BYTES.compile(GrammarSpec(kind, source, "field"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


WITHIN: list[tuple[Kind, str]] = [
    ("json_schema", chain(250, lambda ref: {"$ref": ref})),
    (
        "json_schema",
        chain(150, lambda ref: {"type": "object", "properties": {"x": {"$ref": ref}}, "required": ["x"]}),
    ),
    ("json_schema", chain(150, lambda ref: {"allOf": [{"$ref": ref}, INT]})),
    ("json_schema", json.dumps({"allOf": patterns(4)})),
    ("json_schema", json.dumps({"patternProperties": {f"^(a|b)*a(a|b){{{n + 9}}}$": INT for n in range(1)}})),
    ("json_schema", json.dumps({**INT, "multipleOf": 9999})),
    ("json_schema", json.dumps({"type": "number", "multipleOf": 0.01})),
    ("json_schema", json.dumps({"type": "object", "properties": {f"p{n}": INT for n in range(200)}})),
    ("json_schema", json.dumps({"enum": [f"v{n}" for n in range(5000)]})),
    ("json_schema", json.dumps({"type": "object", "required": [f"p{n}" for n in range(3000)]})),
    ("json_schema", json.dumps({"type": "array", "items": INT, "minItems": 10**9})),
    ("json_schema", json.dumps({"type": "array", "items": INT, "maxItems": 10**18})),
    ("json_schema", json.dumps({"type": "string", "maxLength": 10**9})),
    ("json_schema", deep('{"items":', 60)),
    ("regex", "((a{1,100}){1,100}){1,100}"),
    ("regex", "a{1000000}"),
    ("regex", "a?" * 4096),
    ("regex", "(a+)+b"),
    ("regex", "[a-z ]*[aeiou][a-z ]{30}X"),
    ("choice", json.dumps([f"choice {n}" for n in range(1024)])),
    ("grammar", rules(400, "{}")),
    ("grammar", rules(20, "{0}? {0}?")),
    ("grammar", rules(100, "{0}? {0}?")),
    ("grammar", "start: A\nA: " + '"a"? ' * 3200),
    ("grammar", 'start: s\ns: s s s | s s | "a"'),
    ("grammar", 'start: x{1,1000}\nx: y{1,1000}\ny: "a" | "b"'),
    ("grammar", "start: A\nA: " + " & ".join(f"/(?s:.*)x{n}(?s:.*)/" for n in range(9))),
    ("grammar", 'start: "a" start'),
]


@pytest.mark.parametrize(("kind", "source"), WITHIN, ids=[f"{n}" for n in range(len(WITHIN))])
def test_what_is_within_the_bounds_goes_on_or_fails_cleanly(kind: Kind, source: str) -> None:
    """In a thread, whose stack is as small as a server's."""
    outcome: list[object] = []

    def work() -> None:
        grammar = BYTES.compile(GrammarSpec(kind, source, "field"))
        for seed in range(2):
            matcher, draw = grammar.matcher(frozenset({256})), random.Random(seed)
            for _ in range(150):
                logits = torch.zeros(1, 257)
                forbid(logits, [matcher])
                ids = logits[0].isfinite().nonzero().flatten().tolist()
                if not ids or matcher.accept(draw.choice(ids)) is not Accepted.GOES_ON:
                    break
            outcome.append(matcher.error)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert len(outcome) == 2
    assert all(error is None or (isinstance(error, str) and "\n" not in error) for error in outcome)
