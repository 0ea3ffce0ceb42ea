"""Every row of the table of errors, on every route it can apply to: status, code, field, and the shape.

What is wrong with a body, that is, and none of these requests reaches the model. Routes, methods, keys and
engines that fail are in tests/test_error_shape.py, which also holds both against the rows of docs/api.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import ScriptedModel
from tests.schemas import REFUSED
from tests.server.wire import CHAT, HELLO, Answer, app_of, call

COMPLETIONS, EMBEDDINGS, SCORE = "/v1/completions", "/v1/embeddings", "/v1/score"
TOKENIZE, DETOKENIZE, TEMPLATE = "/tokenize", "/detokenize", "/apply-template"
BASE: dict[str, dict[str, Any]] = {
    CHAT: HELLO,
    COMPLETIONS: {"prompt": "hello"},
    EMBEDDINGS: {"input": "hello"},
    SCORE: {"input": "hello"},
    TOKENIZE: {"prompt": "hello"},
    DETOKENIZE: {"tokens": [104]},
    TEMPLATE: HELLO,
}
"""A request that each POST route answers."""
GENERATING = (CHAT, COMPLETIONS)
COMPUTING = (CHAT, COMPLETIONS, EMBEDDINGS, SCORE)
CONVERSING = (CHAT, TOKENIZE, TEMPLATE)
READING = ("/v1/models", "/v1/models/scripted", "/version", "/openapi.json")

JSON, TYPE, VALUE = "invalid_json", "invalid_type", "invalid_value"
MISSING, UNSUPPORTED, TOO_LONG = (
    "missing_required_parameter",
    "unsupported_parameter",
    "context_length_exceeded",
)

Row = tuple[str, bytes | dict[str, Any], int, str, str | None]
"""Path, body, status, code, param."""


def refused(path: str, code: str, param: str | None, **fields: Any) -> Row:
    """The route's own request with these fields, and a 400."""
    return path, BASE[path] | fields, 400, code, param


def bodies() -> Iterator[Row]:
    """What is wrong with the bytes, on every route that reads any."""
    for path, base in BASE.items():
        good = json.dumps(base).encode()
        open_end = good[:-1] + b","
        deep = b"[" * 64 + b"]" * 64
        for bad in (
            b"",
            b"\0",
            b"{",
            good[:-1],
            good + b"x",
            b"[1]",
            b"null",
            b"1",
            b'"a"',
            b"\xff",
            good + good,
        ):
            yield path, bad, 400, JSON, None
        for value in (
            b"NaN",
            b"-Infinity",
            b"1e309",
            b"-1e999",
            b"1" * 5000,
            b"01",
            b"'a'",
            b'"\t"',
            b'"\xff"',
            deep,
        ):
            yield path, open_end + b'"x":' + value + b"}", 400, JSON, None
        first = next(iter(base))
        yield path, open_end + f'"{first}":1}}'.encode(), 400, JSON, None
        yield path, open_end + b'"x":{"a":1,"a":1}}', 400, JSON, None
        yield path, good.decode().encode("utf-16"), 400, JSON, None
        yield path, open_end + rb'"x":[{"a":"\udead"}]}', 400, VALUE, "x[0].a"
        yield path, open_end + rb'"x":{"\ud83d":1}}', 400, VALUE, "x"
        yield path, open_end + rb'"a\nb":"\ud83d"}', 400, VALUE, "a?b"
        yield path, open_end + b'"x":"' + b"y" * (2 << 20) + b'"}', 413, "request_too_large", None


def models_and_inputs() -> Iterator[Row]:
    """Which model, and what it is to read."""
    wrong: Any
    for path in BASE:
        yield path, BASE[path] | {"model": "gpt-9"}, 404, "model_not_found", "model"
        yield path, BASE[path] | {"model": ""}, 404, "model_not_found", "model"
        for wrong in (4, True, ["scripted"], {}):
            yield refused(path, TYPE, "model", model=wrong)
        yield path, {}, 400, MISSING, next(iter(BASE[path])) if path != TOKENIZE else "prompt"
        if path not in (TOKENIZE, DETOKENIZE, TEMPLATE):
            field = next(iter(BASE[path]))
            long: Any = [{"role": "user", "content": "x" * 3000}] if path == CHAT else "x" * 3000
            yield refused(path, TOO_LONG, field, **{field: long})
            huge: Any = [{"role": "user", "content": "x" * 99_999}] if path == CHAT else "x" * 99_999
            yield refused(path, TOO_LONG, field, **{field: huge})
    for path, field in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
        for wrong in (4, True, {}, 0.5, {"a": 1}):
            yield refused(path, TYPE, field, **{field: wrong})
        yield refused(path, VALUE, field, **{field: []})
        yield refused(path, TYPE, f"{field}[1]", **{field: ["a", 1]})
        yield refused(path, TYPE, f"{field}[1]", **{field: [1, "a"]})
        yield refused(path, TYPE, f"{field}[1]", **{field: [1, True]})
        yield refused(path, VALUE, f"{field}[1]", **{field: [1, 257]})
        yield refused(path, VALUE, f"{field}[0]", **{field: [-1]})
        yield refused(path, VALUE, f"{field}[1][0]", **{field: [[1], [257]]})
        yield refused(path, VALUE, f"{field}[1]", **{field: [[1], []]})
        yield refused(path, TOO_LONG, f"{field}[1]", **{field: ["a", "x" * 3000]})
        yield refused(path, TOO_LONG, field, **{field: [1] * 3000})
    for wrong in (4, True, {}, 0.5):
        yield refused(SCORE, TYPE, "input", input=wrong)
        yield refused(SCORE, TYPE, "input[1]", input=["ab", wrong])
    yield refused(SCORE, VALUE, "input", messages=HELLO["messages"])
    yield refused(SCORE, VALUE, "messages", input=None, messages=HELLO["messages"])
    yield refused(DETOKENIZE, VALUE, "tokens[1]", tokens=[1, 257])
    yield refused(DETOKENIZE, VALUE, "tokens[0]", tokens=[-1])
    yield refused(DETOKENIZE, TYPE, "tokens", tokens="a")
    yield refused(DETOKENIZE, TYPE, "tokens[0]", tokens=[1.5])
    yield refused(TOKENIZE, VALUE, "prompt", messages=HELLO["messages"])
    yield refused(TOKENIZE, TYPE, "prompt", prompt=[1])
    yield refused(EMBEDDINGS, UNSUPPORTED, "dimensions", dimensions=8)
    yield refused(EMBEDDINGS, VALUE, "encoding_format", encoding_format="int8")
    yield refused(COMPLETIONS, UNSUPPORTED, "suffix", suffix="a")
    yield refused(CHAT, UNSUPPORTED, "functions", functions=[{"name": "f"}])
    yield refused(CHAT, UNSUPPORTED, "chat_template", chat_template="{{ messages }}")


def sampling() -> Iterator[Row]:
    """Fields of generating routes: types as JSON has them, contradictions."""
    wrong: Any
    for path in GENERATING:
        for name in (
            "temperature",
            "top_p",
            "max_tokens",
            "n",
            "seed",
            "top_k",
            "min_tokens",
            "frequency_penalty",
        ):
            for wrong in (True, "1", [], {}):
                yield refused(path, TYPE, name, **{name: wrong})
        for name in ("max_tokens", "n", "seed", "top_k", "prompt_logprobs", "priority"):
            yield refused(path, TYPE, name, **{name: 1.5})
        for name in ("stream", "ignore_eos", "return_token_ids", "timings"):
            for wrong in (1, "true", "false", []):
                yield refused(path, TYPE, name, **{name: wrong})
        yield refused(path, TYPE, "stop", stop=1)
        yield refused(path, TYPE, "stop[1]", stop=["a", None])
        yield refused(path, VALUE, "stop[0]", stop=[""])
        yield refused(path, TYPE, "logit_bias", logit_bias=[1])
        yield refused(path, VALUE, "logit_bias.01", logit_bias={"01": 1})
        yield refused(path, VALUE, "logit_bias", logit_bias={"257": 1})
        yield refused(path, VALUE, "stop_token_ids", stop_token_ids=[257])
        yield refused(path, VALUE, "min_tokens", min_tokens=9, max_tokens=8)
        yield refused(path, VALUE, "stream_options", stream_options={"include_usage": True})
        yield refused(path, TYPE, "stream_options", stream=True, stream_options=[])
        yield refused(
            path, TYPE, "stream_options.include_usage", stream=True, stream_options={"include_usage": 1}
        )
        yield refused(path, VALUE, "prompt_logprobs", prompt_logprobs=1, stream=True)
    yield refused(CHAT, VALUE, "top_logprobs", top_logprobs=2)
    yield refused(CHAT, TYPE, "logprobs", logprobs=2)
    yield refused(COMPLETIONS, TYPE, "logprobs", logprobs=True)
    yield refused(COMPLETIONS, VALUE, "max_tokens", max_tokens=0)


def conversations() -> Iterator[Row]:
    """Messages, wherever they are read."""
    turns: list[tuple[Any, str, str]] = [
        (None, TYPE, "messages"),
        ("hello", TYPE, "messages"),
        ({}, TYPE, "messages"),
        ([], VALUE, "messages"),
        (["hello"], TYPE, "messages[0]"),
        ([{}], MISSING, "messages[0].role"),
        ([{"role": "user"}], MISSING, "messages[0].content"),
        ([{"role": "user", "content": None}], MISSING, "messages[0].content"),
        ([{"role": "king", "content": "a"}], VALUE, "messages[0].role"),
        ([{"role": 1, "content": "a"}], VALUE, "messages[0].role"),
        ([{"role": "user", "content": 1}], TYPE, "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], VALUE, "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], MISSING, "messages[0].content[0].text"),
        ([{"role": "user", "content": ["a"]}], TYPE, "messages[0].content[0]"),
        ([{"role": "user", "content": "a", "name": 1}], TYPE, "messages[0].name"),
        ([{"role": "tool", "content": "a"}], MISSING, "messages[0].tool_call_id"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], VALUE, "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [1]}], TYPE, "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{**CALL, "id": ""}]}], VALUE, "messages[0].tool_calls[0].id"),
    ]
    for path in CONVERSING:
        base = {} if path == TOKENIZE else BASE[path]
        for messages, code, param in turns:
            if path != TOKENIZE or messages is not None:  # there, null asks for a prompt
                yield path, base | {"messages": messages}, 400, code, param
        yield (
            path,
            base | HELLO | {"continue_final_message": True, "add_generation_prompt": True},
            400,
            VALUE,
            ("continue_final_message"),
        )
        yield path, base | HELLO | {"chat_template_kwargs": {"a": 1}}, 400, VALUE, "chat_template_kwargs.a"
        for tools, code, param in TOOLS:
            yield path, base | HELLO | {"tools": tools}, 400, code, param
        for choice, code, param in TOOL_CHOICES:
            yield path, base | HELLO | {"tools": [F], "tool_choice": choice}, 400, code, param
        yield path, base | HELLO | {"tool_choice": "required"}, 400, VALUE, "tool_choice"


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
F = {"type": "function", "function": {"name": "f"}}
TOOLS: list[tuple[Any, str, str]] = [
    ({}, TYPE, "tools"),
    ([1], TYPE, "tools[0]"),
    ([{"type": "function"}], MISSING, "tools[0].function"),
    ([{**F, "type": "retrieval"}], VALUE, "tools[0].type"),
    ([{"type": "function", "function": {}}], MISSING, "tools[0].function.name"),
    ([{"type": "function", "function": {"name": "a b"}}], VALUE, "tools[0].function.name"),
    (
        [{"type": "function", "function": {"name": "f", "parameters": []}}],
        TYPE,
        "tools[0].function.parameters",
    ),
    ([F, F], VALUE, "tools[1].function.name"),
]
TOOL_CHOICES: list[tuple[Any, str, str]] = [
    (1, TYPE, "tool_choice"),
    ("any", VALUE, "tool_choice"),
    ({"type": "function"}, MISSING, "tool_choice.function"),
    ({"type": "function", "function": {"name": "g"}}, VALUE, "tool_choice.function.name"),
]

BAD_REGEXES = ("(", "[", "a**b)", "(?=a)b", r"(a)\1", r"\bword\b")
BAD_GRAMMARS = ("start:", "start: missing", "start: /(/", "nonsense", 'root ::= "a')


def forms() -> Iterator[Row]:
    """Schemas, expressions and grammars that cannot be compiled, or say what cannot be enforced."""
    for path in GENERATING:
        for schema, _ in REFUSED:
            for fields, param in spellings(schema):
                yield refused(path, VALUE, param, **fields)
        for kind, sources in (("regex", BAD_REGEXES), ("grammar", BAD_GRAMMARS), ("json", ("{", "1", "NaN"))):
            for source in sources:
                yield refused(path, VALUE, f"guided_{kind}", **{f"guided_{kind}": source})
                yield refused(path, VALUE, f"structured_outputs.{kind}", structured_outputs={kind: source})
        yield refused(path, TYPE, "response_format.json_schema.schema", response_format=named("{}"))
        for kind in ("json", "regex", "choice", "grammar"):
            yield refused(path, TYPE, f"guided_{kind}", **{f"guided_{kind}": 1})
        yield refused(path, VALUE, "guided_choice", guided_choice=[])
        yield refused(path, VALUE, "structured_outputs", structured_outputs={})
        yield refused(path, VALUE, "guided_choice", guided_regex="a", guided_choice=["a"])
        yield refused(path, VALUE, "response_format.type", response_format={"type": "xml"})
        json_schema = "response_format.json_schema"
        yield refused(path, MISSING, json_schema, response_format={"type": "json_schema"})
        yield refused(path, MISSING, f"{json_schema}.schema", response_format=named(None))
    for schema, _ in REFUSED:
        function = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}
        tool, strict = ({"type": "function", "function": function | more} for more in ({}, {"strict": True}))
        parameters = "tools[0].function.parameters"
        yield refused(CHAT, VALUE, parameters, tools=[tool], tool_choice="required")
        yield refused(CHAT, VALUE, parameters, tools=[strict])
    yield refused(CHAT, VALUE, "guided_regex", tools=[F], guided_regex="a")


def named(schema: Any) -> dict[str, Any]:
    """OpenAI's way to send a schema."""
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def spellings(schema: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every way to ask for a schema, and the field a refusal names."""
    yield {"response_format": named(schema)}, "response_format.json_schema.schema"
    yield {"structured_outputs": {"json": schema}}, "structured_outputs.json"
    yield {"guided_json": schema}, "guided_json"
    yield {"guided_json": json.dumps(schema)}, "guided_json"


def check(answer: Answer, status: int, code: str, param: str | None) -> None:
    """The status, the code, the field, and a response in shape."""
    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    assert answer.error["param"] == param, answer.body
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    assert answer.error["type"] == kind
    assert answer.headers["x-request-id"] and answer.headers["content-type"] == "application/json"
    assert len(answer.error["message"]) < 1000 and answer.error["message"].isprintable()
    is_named = (
        param is None or code in ("model_not_found", TOO_LONG) or named_in(param, answer.error["message"])
    )
    assert is_named, answer.body


def named_in(param: str, message: str) -> bool:
    """Whether the message says which field, if only by its last name."""
    return param in message or param.rpartition(".")[2].partition("[")[0] in message


TABLES = (bodies, models_and_inputs, sampling, conversations, forms)


@pytest.mark.parametrize("table", TABLES)
def test_each_row_has_its_status_code_and_field_and_costs_the_model_nothing(table: Any) -> None:
    model = ScriptedModel(max_model_len=2048)
    app = app_of(model)
    wrong = []
    for row in table():
        path, body, status, code, param = row
        try:
            check(call(app, path, body), status, code, param)
        except AssertionError as error:
            wrong.append(f"{path} {str(body)[:300]}: {param} {str(error)[:600]}")
    assert not wrong, f"{len(wrong)} rows:\n" + "\n".join(wrong[:20])
    assert (model.prompts, model.num_open) == ([], 0)
