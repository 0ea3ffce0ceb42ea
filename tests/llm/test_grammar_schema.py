"""JSON schemas: what is drawn under them validates, what is not enforced is refused by name."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.errors import RequestError
from llm.grammar import Grammars, GrammarSpec, check_schema
from llm.grammar.schema import prepare_schema
from llm.grammar.values import endless, first_overlap
from llm.sequence import Accepted
from llm.tokenizer import ByteTokenizer, Tokenizer, load_tiktoken
from tests.masks import forbid
from tests.schemas import IMPOSSIBLE, REFUSED, SCHEMAS, Schema

ROOT = Path(__file__).parent.parent.parent
BYTES = Grammars(ByteTokenizer(), 257, max_cached=len(SCHEMAS))
IDS = [name for name, _ in SCHEMAS]

CLOCK = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([zZ]|[+-]([01]\d|2[0-3]):[0-5]\d)"
DAY = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
SYNTAX = {
    "date": DAY,
    "time": CLOCK,
    "date-time": f"{DAY}[tT]{CLOCK}",
    "duration": r"P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)",
    "hostname": rf"{LABEL}(\.{LABEL})*",
    "uri": r"[a-zA-Z][a-zA-Z0-9+.-]*:[^\s<>\"{}|\\^`]*",
}
CHECKER = jsonschema.FormatChecker(formats=("email", "ipv4", "ipv6", "uuid"))
for name, syntax in SYNTAX.items():
    CHECKER.checks(name)(re.compile(f"(?:{syntax})", re.ASCII).fullmatch)


def validator(schema: Schema) -> Any:
    older = isinstance(schema.get("items"), list)
    kind = jsonschema.Draft7Validator if older else jsonschema.Draft202012Validator
    return kind(schema, format_checker=CHECKER)


@cache
def gpt2() -> tuple[Tokenizer, Grammars]:
    tokenizer = load_tiktoken(ROOT / "checkpoints/causette/tokenizer.tiktoken")
    return tokenizer, Grammars(tokenizer, tokenizer.vocab_size, max_cached=len(SCHEMAS))


def closing_bias(tokenizer: Tokenizer) -> Tensor:
    """Uniform, but for what ends a string, a list, an object or the reply: else random texts never end."""
    bias = torch.zeros(tokenizer.vocab_size)
    enders = [
        token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) in (b'"', b"}", b"]")
    ]
    bias[enders] = 2.5 if tokenizer.vocab_size < 1000 else 8.0
    bias[tokenizer.end_of_text] = bias[enders[0]] + 1
    return bias


def draw(tokenizer: Tokenizer, grammars: Grammars, schema: Schema, seed: int, limit: int = 400) -> str | None:
    """A text that uniformly random logits say under the schema, or None when it has not ended in time."""
    assert tokenizer.end_of_text is not None
    grammar = grammars.compile(GrammarSpec("json_schema", json.dumps(schema)))
    matcher = grammar.matcher(frozenset({tokenizer.end_of_text}))
    bias, generator = closing_bias_of(tokenizer), torch.Generator().manual_seed(seed)
    drawn = b""
    for _ in range(limit):
        noise = torch.rand(1, tokenizer.vocab_size, generator=generator)
        logits = bias - (-noise.log()).log()  # Gumbel's: the largest is a draw from the softmax of the bias
        forbid(logits, [matcher])
        token = int(logits.argmax())
        assert logits[0, token].isfinite(), matcher.error
        accepted = matcher.accept(token)
        assert accepted is not Accepted.REFUSED
        drawn += tokenizer.token_bytes(token)
        if accepted is not Accepted.GOES_ON:
            return drawn.decode()
    return None


@cache
def closing_bias_of(tokenizer: Tokenizer) -> Tensor:
    return closing_bias(tokenizer)


def num_valid(tokenizer: Tokenizer, grammars: Grammars, schema: Schema, seeds: int) -> int:
    """How many draws end; each that does is valid."""
    texts = [text for seed in range(seeds) if (text := draw(tokenizer, grammars, schema, seed)) is not None]
    for text in texts:
        validator(schema).validate(json.loads(text))
        assert "\n" not in text and "\t" not in text, "one line"
    return len(texts)


BYTE = ByteTokenizer()


@pytest.mark.parametrize("schema", [schema for _, schema in SCHEMAS], ids=IDS)
def test_what_is_drawn_validates(schema: Schema) -> None:
    assert num_valid(BYTE, BYTES, schema, seeds=2) == 2


@pytest.mark.slow
@pytest.mark.parametrize("schema", [schema for _, schema in SCHEMAS], ids=IDS)
def test_what_is_drawn_validates_often(schema: Schema) -> None:
    assert num_valid(BYTE, BYTES, schema, seeds=60) > 54


@pytest.mark.slow
def test_what_is_drawn_from_a_real_vocabulary_validates() -> None:
    counts = {name: num_valid(*gpt2(), schema, seeds=4) for name, schema in SCHEMAS}
    assert sum(counts.values()) > 0.9 * 4 * len(SCHEMAS), counts


def test_the_suite_is_what_it_says() -> None:
    assert len(SCHEMAS) >= 100 and len(set(IDS)) == len(SCHEMAS)
    for _, schema in SCHEMAS:
        validator(schema).check_schema(schema)


def accepts(schema: Schema | bool, value: object) -> bool:
    """Whether the schema's grammar takes a value written compactly."""
    matcher = BYTES.compile(GrammarSpec("json_schema", json.dumps(schema))).matcher(frozenset({256}))
    accepted = Accepted.GOES_ON
    for byte in json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode():
        accepted = matcher.accept(byte)
        if accepted is Accepted.REFUSED:
            return False
    return accepted is Accepted.COMPLETE or matcher.accept(256) is Accepted.END


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.text('ab0é😀"\\\n ', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('abé"', max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=30)
@given(value=JSON)
def test_any_json_fits_the_open_schemas_and_its_own_constant(value: Any) -> None:
    assert accepts(True, value) and accepts({}, value) and accepts({"const": value}, value)
    assert accepts({"enum": [value, "other"]}, value) and not accepts({"const": [value]}, value)
    assert accepts({"type": "object"}, value) == isinstance(value, dict)


@settings(max_examples=60)
@given(index=st.integers(0, len(SCHEMAS) - 1), value=JSON)
def test_nothing_invalid_fits(index: int, value: Any) -> None:
    """The other direction does not hold: properties come in one order."""
    schema = SCHEMAS[index][1]
    if accepts(schema, value):
        validator(schema).validate(value)


def test_no_escape_passes_for_a_declared_property() -> None:
    """`\\u0061` is an a: as the key of an additional property it would go round the schema of "a"."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    for key, accepted in (('"a":"', False), ('"\\u0061":"', False), ('"b":"', True), ('"a":1', True)):
        matcher = BYTES.compile(GrammarSpec("json_schema", json.dumps(schema))).matcher()
        assert (Accepted.REFUSED not in [matcher.accept(byte) for byte in f"{{{key}".encode()]) == accepted


# Refusals.


@pytest.mark.parametrize(("schema", "keyword"), REFUSED, ids=[f"{n}-{k}" for n, (_, k) in enumerate(REFUSED)])
def test_what_is_not_enforced_is_refused_by_name_and_place(schema: Schema, keyword: str) -> None:
    before = copy.deepcopy(schema)
    nested = {"type": "object", "properties": {"a/b": {"type": "array", "items": schema}}}
    for whole, place in ((schema, "#"), (nested, "#/properties/a~1b/items")):
        if "$id" in json.dumps(schema) or ("$ref" in schema and place != "#"):
            place = ""
        for refuse in (check_schema, compile_schema):
            with pytest.raises(RequestError, match=re.escape(keyword)) as caught:
                refuse(whole, "tools[0].function.parameters")
            assert caught.value.param == "tools[0].function.parameters"
            assert str(caught.value).startswith("tools[0].function.parameters: ")
            assert f"(at {place}" in str(caught.value)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert schema == before, "what was sent is left as it is"


def compile_schema(schema: Schema, param: str) -> None:
    BYTES.compile(GrammarSpec("json_schema", json.dumps(schema), param))


@pytest.mark.parametrize("schema", IMPOSSIBLE, ids=map(json.dumps, IMPOSSIBLE))
def test_what_no_finite_value_fits_is_refused(schema: Schema) -> None:
    for refuse in (check_schema, compile_schema):
        with pytest.raises(RequestError, match="^field: "):
            refuse(schema, "field")


def test_what_passes_is_checked_for_whoever_embeds_it() -> None:
    for _, schema in SCHEMAS:
        before = copy.deepcopy(schema)
        check_schema(schema, "field")
        assert schema == before


def test_definitions_nobody_refers_to_may_hold_anything() -> None:
    assert accepts({"type": "integer", "$defs": {"a": {"not": {}}}}, 3)
    with pytest.raises(RequestError, match=r"keyword 'not' .* \(at #/\$defs/a\)"):
        check_schema({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}, "field")


def test_values_are_not_read_as_schemas() -> None:
    assert accepts(
        {"enum": [{"not": {"$ref": 3}}], "default": {"if": 1}, "examples": [{"$ref": "x"}]},
        {"not": {"$ref": 3}},
    )
    assert accepts({"const": {"uniqueItems": True}}, {"uniqueItems": True})


def test_harmless_values_of_refused_keywords_pass() -> None:
    schema = {"type": "array", "uniqueItems": False, "items": {"type": "integer", "nullable": False}}
    assert accepts(schema, [1, 1])


def test_a_tuple_of_older_drafts() -> None:
    schema = {"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "boolean"}}
    assert accepts(schema, [1, True, False]) and accepts(schema, []) and not accepts(schema, [1, 2])
    assert not accepts(schema, [True])


def test_a_property_given_twice_does_not_make_two() -> None:
    with pytest.raises(RequestError, match="minProperties"):
        check_schema(
            {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2}, "field"
        )
    check_schema({"type": "object", "additionalProperties": True, "minProperties": 1}, "field")


def test_check_schema_refuses_what_is_no_json() -> None:
    loop: dict[str, object] = {}
    loop["properties"] = {"a": loop}
    for schema in (loop, {"const": {1, 2}}, {"const": float("nan")}, {"const": "\ud800"}, {1: 2}):
        with pytest.raises(RequestError, match="^field: "):
            check_schema(schema, "field")  # type: ignore[arg-type]


# What values a schema has.


def test_endless_schemas_are_found_wherever_they_are() -> None:
    leaf: Schema = {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}
    with pytest.raises(RequestError, match=r"no finite value fits.*\(at #/properties/x\)"):
        check_schema({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": leaf}}, "field")
    for finite in (
        {**leaf, "minItems": 0},
        {**leaf, "type": ["array", "null"]},
        {"anyOf": [leaf, {"type": "null"}]},
    ):
        check_schema({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": finite}}, "field")
    assert not endless([{"enum": [1]}, {"type": "object", "required": ["x"]}], lambda ref: True)


@pytest.mark.parametrize(
    ("options", "overlap"),
    [
        ([{"type": "string"}, {"type": "integer"}, {"type": "null"}], None),
        ([{"type": "integer"}, {"type": "number"}], (0, 1)),
        ([{"const": 1}, {"enum": [2, 3]}, {"const": 3}], (1, 2)),
        ([{"const": "a"}, {"type": "string"}], (0, 1)),
        ([{"const": "a"}, {"type": "integer"}], None),
        ([{"const": True}, {"const": 1}], None),
        ([True, {"type": "string"}], (0, 1)),
        ([False, {"type": "string"}], None),
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], None),
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/loop"}], (0, 1)),
        ([{"type": "object", "required": ["k"]}, {"type": "object", "required": ["k"]}], (0, 1)),
    ],
)
def test_options_that_share_a_value(options: list[Any], overlap: tuple[int, int] | None) -> None:
    definitions: dict[str, Any] = {
        kind: {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
        for kind in ("cat", "dog")
    }
    definitions["loop"] = {"$ref": "#/$defs/loop"}
    assert first_overlap(options, lambda ref: definitions[ref.rsplit("/", 1)[1]]) == overlap


@given(values=st.lists(JSON, min_size=2, max_size=4))
def test_options_said_to_exclude_each_other_do(values: list[Any]) -> None:
    options: list[Any] = [
        {"const": value} if n % 2 else {"type": _type(value)} for n, value in enumerate(values)
    ]
    if first_overlap(options, lambda ref: True) is None:
        for value in values:
            assert sum(jsonschema.Draft202012Validator(option).is_valid(value) for option in options) <= 1


def _type(value: object) -> str:
    names = {
        type(None): "null",
        bool: "boolean",
        int: "integer",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names[type(value)]


def test_a_one_of_is_rewritten_beside_an_any_of() -> None:
    schema = {
        "oneOf": [{"type": "string"}, {"type": "null"}],
        "anyOf": [{"type": "string"}, {"type": "integer"}],
    }
    prepared = prepare_schema(copy.deepcopy(schema), "field")
    assert prepared == {"anyOf": schema["anyOf"], "allOf": [{"anyOf": schema["oneOf"]}]}
    assert accepts(schema, "x") and not accepts(schema, None) and not accepts(schema, 1)
