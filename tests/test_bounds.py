"""Every bound of the API holds before any work is done: just inside is answered, just outside is a 400.

Half of the bounds are read from the OpenAPI document, so a field without them fails here; the other half are
the promises of docs/api.md, by their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, Answer, app_of, call
from tests.test_errors_table import BASE, COMPLETIONS, DETOKENIZE, EMBEDDINGS, GENERATING, SCORE, named

Leaf = tuple[str, tuple[str | int, ...], dict[str, Any]]
"""Route, where in a body, and the schema of a value there."""


def document() -> dict[str, Any]:
    found = call(app_of(), "/openapi.json").json
    assert isinstance(found, dict)
    return found


def leaves(schema: Any, path: str, place: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Everything in a request's schema that is no object of named fields."""
    for option in schema.get("anyOf", ()) or schema.get("oneOf", ()):
        yield from leaves(option, path, place)
    kind = schema.get("type")
    if kind == "object":
        for name, inner in schema.get("properties", {}).items():
            yield from leaves(inner, path, (*place, name))
        for inner in schema.get("patternProperties", {}).values():
            yield from leaves(inner, path, (*place, "97"))
    if kind == "array":
        yield from leaves(schema["items"], path, (*place, 0))
    if kind in ("array", "string", "integer", "number") or "maxProperties" in schema:
        yield path, place, schema


def requests() -> Iterator[Leaf]:
    for path, methods in DOCUMENT["paths"].items():
        if "post" in methods:
            body = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            yield from leaves(resolved(body), path)


def resolved(node: Any) -> Any:
    """A schema with the document's components written out."""
    if isinstance(node, dict):
        if "$ref" in node:
            return resolved(DOCUMENT["components"]["schemas"][node["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in node.items()}
    return [resolved(item) for item in node] if isinstance(node, list) else node


DOCUMENT = document()
LEAVES = list(requests())
NUMBERS = [leaf for leaf in LEAVES if leaf[2].get("type") in ("integer", "number")]


def test_every_number_has_a_minimum_and_a_maximum() -> None:
    assert len(NUMBERS) > 30
    for path, place, schema in NUMBERS:
        assert any(key in schema for key in ("minimum", "exclusiveMinimum")), (path, place)
        assert any(key in schema for key in ("maximum", "exclusiveMaximum")), (path, place)


UNBOUNDED = {"model", "prompt", "input", "content", "text", "arguments", "description", "tokens"}
"""Strings and lists whose bound is the body's, or the model's context."""


def test_every_string_and_list_has_a_bound_or_a_reason() -> None:
    limits = ("maxLength", "pattern", "enum", "const", "maxItems", "maxProperties")
    for path, place, schema in LEAVES:
        if schema.get("type") in ("string", "array") and not any(key in schema for key in limits):
            assert UNBOUNDED & set(place), (path, place)


def outside(schema: dict[str, Any]) -> Iterator[Any]:
    """Values just beyond the bounds."""
    step = 1 if schema["type"] == "integer" else 0.001
    for key, sign in (("minimum", -1), ("maximum", 1)):
        exclusive = "exclusive" + key.capitalize()
        if key in schema:
            yield _exact(schema[key]) + sign * step
        if exclusive in schema:
            yield _exact(schema[exclusive])
    yield from (10**30, -(10**30), 10**400, 1e308, -1e308)


def _exact(bound: float) -> int | float:
    return int(bound) if float(bound).is_integer() else bound


def put(value: Any, place: tuple[str | int, ...]) -> dict[str, Any]:
    """{"logit_bias": {"97": 1}} for ("logit_bias", "97")."""
    for step in reversed(place):
        value = [value] if isinstance(step, int) else {step: value}
    assert isinstance(value, dict)
    return value


def name_of(place: tuple[str | int, ...]) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


@pytest.mark.parametrize(("path", "place", "schema"), NUMBERS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_number_outside_its_bounds_is_refused_by_name(
    path: str, place: tuple[str | int, ...], schema: dict[str, Any]
) -> None:
    model = ScriptedModel()
    app = app_of(model)
    for value in outside(schema):
        answer = call(app, path, BASE[path] | put(value, place))
        assert answer.status == 400, (value, answer.body)
        assert answer.error["param"] == name_of(place), (value, answer.body)
    assert model.prompts == []


TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def parts(count: int) -> dict[str, Any]:
    return {"messages": [user([{"type": "text", "text": ""}] * count)]}


def tools(count: int) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(count)]}


def schema_of(size: int) -> dict[str, Any]:
    """A schema whose JSON text has so many bytes."""
    empty = {"type": "object", "title": ""}
    return {**empty, "title": "x" * (size - len(json.dumps(empty, separators=(",", ":"))))}


def ids(count: int) -> dict[str, int]:
    return {str(i): 1 for i in range(count)}


KIB64 = 64 << 10
COUNTED: list[tuple[str, Any, int, str]] = [
    # where, count → fields, the largest count, the field
    (CHAT, lambda n: {"messages": [user("")] * n}, 1024, "messages"),
    (CHAT, parts, 1024, "messages[0].content"),
    (CHAT, lambda n: {"messages": [user("a") | {"name": "n" * n}]}, 256, "messages[0].name"),
    (
        CHAT,
        lambda n: {"messages": [{"role": "assistant", "tool_calls": [CALL] * n}]},
        64,
        "messages[0].tool_calls",
    ),
    (CHAT, tools, 64, "tools"),
    (CHAT, lambda n: {"logprobs": True, "top_logprobs": n}, 20, "top_logprobs"),
    (COMPLETIONS, lambda n: {"logprobs": n}, 20, "logprobs"),
    (COMPLETIONS, lambda n: {"prompt": ["a"] * n}, 64, "prompt"),
    (COMPLETIONS, lambda n: {"prompt": [[97]] * n}, 64, "prompt"),
    (EMBEDDINGS, lambda n: {"input": ["a"] * n}, 64, "input"),
    (EMBEDDINGS, lambda n: {"input": [[97]] * n}, 64, "input"),
    (SCORE, lambda n: {"input": ["ab"] * n}, 64, "input"),
    *((path, lambda n: {"stop": ["a"] * n}, 4, "stop") for path in GENERATING),
    *((path, lambda n: {"stop": "a" * n}, 256, "stop[0]") for path in GENERATING),
    *((path, lambda n: {"stop": ["a", "é" * n]}, 256, "stop[1]") for path in GENERATING),
    *((path, lambda n: {"n": n}, 8, "n") for path in GENERATING),
    *((path, lambda n: {"prompt_logprobs": n}, 20, "prompt_logprobs") for path in GENERATING),
    *((path, lambda n: {"stop_token_ids": [1] * n}, 64, "stop_token_ids") for path in GENERATING),
    *((path, lambda n: {"user": "u" * n}, 1024, "user") for path in (*GENERATING, EMBEDDINGS, SCORE)),
    *((path, lambda n: {"cache_salt": "s" * n}, 256, "cache_salt") for path in (*GENERATING, SCORE)),
    *(
        (path, lambda n: {"guided_choice": list(map(str, range(n)))}, 1024, "guided_choice")
        for path in GENERATING
    ),
    *((path, lambda n: {"guided_json": schema_of(n)}, KIB64, "guided_json") for path in GENERATING),
    *(
        (
            path,
            lambda n: {"response_format": named(schema_of(n))},
            KIB64,
            "response_format.json_schema.schema",
        )
        for path in GENERATING
    ),
    # ids of a vocabulary of 257, the largest one inside
    (COMPLETIONS, lambda n: {"prompt": [1, n]}, 256, "prompt[1]"),
    (EMBEDDINGS, lambda n: {"input": [1, n]}, 256, "input[1]"),
    (DETOKENIZE, lambda n: {"tokens": [1, n]}, 256, "tokens[1]"),
    *((path, lambda n: {"logit_bias": {str(n): 1}}, 256, "logit_bias") for path in GENERATING),
    *((path, lambda n: {"stop_token_ids": [n]}, 256, "stop_token_ids") for path in GENERATING),
    *((path, lambda n: {"top_k": n}, 257, "top_k") for path in GENERATING),
]


@pytest.mark.parametrize(
    ("path", "fields", "largest", "param"), COUNTED, ids=lambda x: x if isinstance(x, str) else ""
)
def test_the_largest_is_answered_and_one_more_is_refused(
    path: str, fields: Any, largest: int, param: str
) -> None:
    model = ScriptedModel(max_model_len=1 << 17)
    app = app_of(model)
    more = call(app, path, BASE[path] | fields(largest + 1))
    assert (more.status, more.error["param"]) == (400, param), more.body
    assert model.prompts == []
    most = call(app, path, BASE[path] | fields(largest))
    assert most.status == 200, most.body


@pytest.mark.parametrize("path", GENERATING)
def test_biases_are_counted(path: str) -> None:
    """More than the test's vocabulary has ids: the count is checked first."""
    assert "at most 1024" in call(app_of(), path, BASE[path] | {"logit_bias": ids(1025)}).error["message"]
    assert "below 257" in call(app_of(), path, BASE[path] | {"logit_bias": ids(1024)}).error["message"]


def test_template_options_are_counted() -> None:
    """The plain template knows none: the count is checked first."""
    for count, said in ((17, "at most 16"), (16, "option")):
        options = dict.fromkeys(map(str, range(count)))
        answer = call(app_of(), CHAT, HELLO | {"chat_template_kwargs": options})
        assert answer.status == 400 and said in answer.error["message"], answer.body


@pytest.mark.parametrize("path", BASE)
def test_a_body_has_two_mebibytes_and_sixty_four_levels(path: str) -> None:
    model = ScriptedModel()
    app = app_of(model)

    def padded(size: int) -> Answer:
        body = json.dumps(BASE[path]).encode()
        return call(app, path, body + b" " * (size - len(body)))

    def nested(levels: int) -> Answer:
        inner = "[" * (levels - 1) + "]" * (levels - 1)
        return call(app, path, f'{json.dumps(BASE[path])[:-1]},"x":{inner}}}'.encode())

    assert padded((2 << 20) + 1).error["code"] == "request_too_large"
    assert nested(65).error["code"] == "invalid_json"
    assert model.prompts == []
    assert padded(2 << 20).status == nested(64).status == 200


def test_a_body_may_be_bounded_otherwise() -> None:
    app = app_of(max_body_bytes=1024)
    assert call(app, CHAT, HELLO).status == 200
    assert call(app, CHAT, HELLO | {"user": "u" * 1024}).status == 413
