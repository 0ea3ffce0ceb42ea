"""GET /openapi.json says what the server does: every kind of answer has the documented form, and no other.

The other direction, that what the document forbids is refused, is tests/test_bounds.py and, with a fuzzer of
its own, tests/frameworks/test_schemathesis.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llm.errors import EngineStopped, StepFailed
from tests.fakes import ScriptedModel
from tests.hostile import answer_schema, chunk_schema
from tests.server.wire import CHAT, HELLO, app_of, call
from tests.test_errors_table import BASE, COMPLETIONS, COMPUTING, EMBEDDINGS, SCORE, TOKENIZE, F

DOCUMENT: dict[str, Any] = call(app_of(), "/openapi.json").json
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]


def fits(value: Any, schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_route_says_what_it_takes_and_answers(path: str, method: str) -> None:
    operation = DOCUMENT["paths"][path][method]
    assert operation["summary"] and operation["description"]
    assert {"200", "4XX", "5XX"} <= set(operation["responses"]), "and no 422, which FastAPI would promise"
    assert "422" not in operation["responses"]
    assert ("requestBody" in operation) == (method == "post")
    assert [one["name"] for one in operation.get("parameters", ())] == (["model_id"] if "{" in path else [])
    for schema in schemas_of(operation):
        Draft202012Validator.check_schema(schema)
        assert schema, "never anything at all"


def schemas_of(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for response in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from (content["schema"] for content in response.get("content", {}).values())


def test_objects_of_a_request_are_open_and_all_that_is_optional_may_be_null() -> None:
    (body, *_) = schemas_of(DOCUMENT["paths"][CHAT]["post"])
    assert body["additionalProperties"] is True and body["required"] == ["messages"]
    for name in set(body["properties"]) - {"messages"}:
        assert {"type": "null"} in body["properties"][name]["anyOf"], name
        assert call(app_of(), CHAT, HELLO | {name: None}).status == 200, name


def test_keys_of_a_fixed_form_are_of_that_form() -> None:
    (body, *_) = schemas_of(DOCUMENT["paths"][CHAT]["post"])
    (bias, _) = body["properties"]["logit_bias"]["anyOf"]
    for key, good in (("97", True), ("0", True), ("097", False), ("a", False), ("-1", False)):
        assert Draft202012Validator(bias).is_valid({key: 1}) is good
        assert (call(app_of(), CHAT, HELLO | {"logit_bias": {key: 1}}).status == 200) is good


def test_numbers_survive_readers_whose_numbers_are_doubles() -> None:
    (body, *_) = schemas_of(DOCUMENT["paths"][CHAT]["post"])
    (seed, _) = body["properties"]["seed"]["anyOf"]
    assert (int(seed["minimum"]), int(seed["exclusiveMaximum"])) == (-(1 << 63), 1 << 63)
    assert call(app_of(), CHAT, HELLO | {"seed": (1 << 63) - 1}).headers["x-seed"] == str((1 << 63) - 1)


EXTRAS: list[dict[str, Any]] = [
    {},
    {"n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True, "timings_per_token": True},
    {"logprobs": True, "timings": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "return_token_ids": True},
    {"max_tokens": 1, "timings_per_token": True, "prompt_logprobs": 2},
    {"tools": [F]},
]
CALLS = ("Well. ", '<tool_call>{"name": "f", ', '"arguments": {"a": 1}}</tool_call>')


@pytest.mark.parametrize("script", [("Hel", "lo"), ("é", ""), CALLS], ids=["text", "empty", "calls"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_every_kind_of_reply_has_the_documented_form(
    path: str, extra: dict[str, Any], script: tuple[str, ...]
) -> None:
    if path == COMPLETIONS and "logprobs" in extra:
        extra = extra | {"logprobs": 2, "echo": True}
    app = app_of(ScriptedModel(*script, max_model_len=4096))
    whole = call(app, path, BASE[path] | extra | {"stream_options": None})
    assert whole.status == 200, whole.body
    fits(whole.json, answer_schema(DOCUMENT, path))
    streamed = call(app, path, BASE[path] | extra | {"stream": True, "prompt_logprobs": None})
    for chunk in streamed.chunks:
        fits(chunk, chunk_schema(DOCUMENT, path))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"input": ["a", "b"]}),
        (EMBEDDINGS, {"input": "a", "encoding_format": "base64"}),
        (TOKENIZE, {"prompt": "é", "return_token_strs": True}),
        (TOKENIZE, HELLO),
        (SCORE, {"input": ["ab", [{"role": "assistant", "content": "a"}]]}),
        (SCORE, {"input": "ab", "logprobs": True}),
        ("/detokenize", {"tokens": []}),
        ("/apply-template", HELLO),
        ("/v1/models", None),
        ("/health", None),
        ("/version", None),
    ],
)
def test_every_other_answer_has_the_documented_form(path: str, body: Any) -> None:
    answer = call(app_of(), path, body)
    assert answer.status == 200
    fits(answer.json, answer_schema(DOCUMENT, path, "get" if body is None else "post"))


def test_a_model_has_the_documented_form() -> None:
    card = call(app_of(), "/v1/models/scripted").json
    fits(card, answer_schema(DOCUMENT, "/v1/models/{model_id}", "get"))


def test_health_has_the_documented_form_when_it_is_bad() -> None:
    model = ScriptedModel()
    model.engine = replace(model.engine, alive=False)
    answer = call(app_of(model), "/health")
    assert answer.status == 503
    fits(answer.json, answer_schema(DOCUMENT, "/health", "get", "503"))


@pytest.mark.parametrize("path", BASE)
def test_errors_have_the_documented_form(path: str) -> None:
    refusal = call(app_of(), path, {"model": 1})
    fits(refusal.json, answer_schema(DOCUMENT, path, status="4XX"))
    if path in COMPUTING:
        for error in (StepFailed("x"), EngineStopped("x"), ValueError("x")):
            failure = call(app_of(ScriptedModel(error, "never")), path, BASE[path])
            assert failure.status >= 500
            fits(failure.json, answer_schema(DOCUMENT, path, status="5XX"))


def test_the_form_is_strict() -> None:
    """A field that is not documented, or lost, would be noticed."""
    schema = Draft202012Validator(answer_schema(DOCUMENT, CHAT))
    reply = call(app_of(), CHAT, HELLO).json
    assert schema.is_valid(reply)
    assert not schema.is_valid({**reply, "more": 1})
    assert not schema.is_valid({name: value for name, value in reply.items() if name != "usage"})
    assert not schema.is_valid(json.loads(json.dumps(reply).replace('"stop"', '"cut"')))
