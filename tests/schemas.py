"""JSON schemas of every kind that is enforced, as people write them, and those that are refused by name.

Names say what a schema is about; grammar tests sample texts from each, and others may ask a real model.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: list[str] | None = None, /, **properties: Any) -> Schema:
    """A closed object; every property is required unless said otherwise."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _array(items: Any, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


STR: Schema = {"type": "string", "maxLength": 12}
INT: Schema = {"type": "integer", "minimum": -99, "maximum": 99}
NUM: Schema = {"type": "number"}
BOOL: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}


def _format(name: str) -> Schema:
    return {"type": "string", "format": name}


def _pattern(pattern: str, **more: Any) -> Schema:
    return {"type": "string", "pattern": pattern, **more}


_TREE = _object(["value"], value=INT, children=_array({"$ref": "#/$defs/node"}, maxItems=2))
_LINKED = _object(["value"], value=INT, next={"anyOf": [{"$ref": "#"}, NULL]})
_ADDRESS = _object(street=STR, zip=_pattern("^[0-9]{5}$"), city={"enum": ["Lyon", "Paris", "Nîmes"]})
_CIRCLE = _object(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0})
_SQUARE = _object(kind={"const": "square"}, side={"type": "number", "exclusiveMinimum": 0})
_EXPR: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": 9},
        _object(op={"enum": ["+", "-", "*"]}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"}),
    ]
}

_SCALARS: list[tuple[str, Schema]] = [
    ("null", NULL),
    ("boolean", BOOL),
    ("integer", {"type": "integer"}),
    ("number", NUM),
    ("string short", STR),
    ("string exact", {"type": "string", "minLength": 4, "maxLength": 4}),
    ("string at least", {"type": "string", "minLength": 3, "maxLength": 9}),
    ("string empty", {"type": "string", "maxLength": 0}),
    ("integer bounds", {"type": "integer", "minimum": 18, "maximum": 120}),
    ("integer exclusive", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 5}),
    ("integer negative", {"type": "integer", "minimum": -30, "maximum": -3}),
    ("integer fractional bounds", {"type": "integer", "minimum": 0.5, "maximum": 3.5}),
    ("integer multiple", {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700}),
    ("integer multiple of both", {"allOf": [{"type": "integer", "multipleOf": 4}, {"multipleOf": 6}]}),
    ("number bounds", {"type": "number", "minimum": 0, "maximum": 1}),
    ("number exclusive", {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 1}),
    ("number quarter", {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 8}),
    ("number one side", {"type": "number", "minimum": 2.5}),
    ("two types", {"type": ["string", "null"], "maxLength": 5}),
    ("three types", {"type": ["integer", "boolean", "null"], "minimum": 3, "maximum": 8}),
    ("bounds of other types", {"type": "boolean", "minimum": 3, "maxLength": 2}),
]

_FIXED: list[tuple[str, Schema]] = [
    ("const string", {"const": "yes"}),
    ("const number", {"const": -2.5}),
    ("const null", {"const": None}),
    ("const true", {"const": True}),
    ("const object", {"const": {"a": [1, "x", None], "b": {}}}),
    ("const quotes", {"const": 'a "quoted" \\ line\nand é 漢 😀'}),
    ("enum strings", {"enum": ["red", "green", "blue"]}),
    ("enum prefixes", {"enum": ["a", "ab", "abc"]}),
    ("enum mixed", {"enum": [1, "1", None, True, [1], {"one": 1}]}),
    ("enum unicode", {"enum": ["été", "冬", "🙂"]}),
    ("enum of a type", {"type": "integer", "enum": [1, "two", 3]}),
    ("enum bounded", {"enum": [1, 5, 9], "minimum": 4}),
    ("enum large", {"enum": [f"item {n}" for n in range(500)]}),
]

_STRINGS: list[tuple[str, Schema]] = [
    *((name, _format(name)) for name in ("date", "time", "date-time", "duration", "uuid")),
    *((name, _format(name)) for name in ("ipv4", "ipv6", "email", "hostname", "uri")),
    ("format of a number", {"type": "integer", "format": "int32", "minimum": 0, "maximum": 9}),
    ("pattern anchored", _pattern("^[A-Z]{2}-[0-9]{3}$")),
    ("pattern inside", _pattern("[0-9]", maxLength=6)),
    ("pattern prefix", _pattern("^ab", maxLength=6)),
    ("pattern suffix", _pattern("yz$", maxLength=6)),
    ("pattern alternatives", _pattern("^(cat|dog|bird)s?$")),
    ("pattern escapes", _pattern(r"^\d{2}:\d{2}\.\w$")),
    ("pattern quote", _pattern('^"[a-z]\\\\$')),
    ("pattern unicode", _pattern("^[éàü]{1,3}$")),
    ("pattern optional", _pattern("^-?(0|[1-9][0-9]{0,3})(\\.[0-9]{2})?$")),
    ("pattern and length", _pattern("^a*b*$", minLength=3, maxLength=5)),
    ("two patterns", {"allOf": [_pattern("^a[a-c]{0,5}$"), _pattern("c$")]}),
]

_ARRAYS: list[tuple[str, Schema]] = [
    ("array of integers", _array(INT, maxItems=5)),
    ("array exact", _array(BOOL, minItems=3, maxItems=3)),
    ("array at least", _array(INT, minItems=2, maxItems=4)),
    ("array empty", _array(INT, maxItems=0)),
    ("array nested", _array(_array(INT, maxItems=2), maxItems=3)),
    ("array of enum", _array({"enum": ["a", "b"]}, minItems=1, maxItems=6)),
    ("array of objects", _array(_object(x=INT, y=INT), minItems=1, maxItems=3)),
    ("array of anything", _array(True, maxItems=2)),
    ("tuple", {"type": "array", "prefixItems": [STR, INT, BOOL], "items": False, "minItems": 3}),
    ("tuple short", {"type": "array", "prefixItems": [INT, INT], "items": False}),
    ("tuple and rest", {"type": "array", "prefixItems": [STR], "items": INT, "minItems": 1, "maxItems": 4}),
    ("tuple of older drafts", {"type": "array", "items": [INT, BOOL], "additionalItems": False}),
    ("not unique", _array(INT, maxItems=4, uniqueItems=False)),
]

_OBJECTS: list[tuple[str, Schema]] = [
    ("object closed", _object(name=STR, age=INT)),
    ("object optional", _object(["name"], name=STR, age=INT, admin=BOOL)),
    ("object all optional", _object([], a=INT, b=INT, c=INT)),
    ("object empty", _object()),
    ("object open", {"type": "object", "properties": {"id": INT}, "required": ["id"]}),
    ("object of integers", {"type": "object", "additionalProperties": INT}),
    ("object extra typed", {**_object(id=INT), "additionalProperties": BOOL}),
    ("object required unnamed", {"type": "object", "required": ["x"], "additionalProperties": INT}),
    ("object nested", _object(user=_object(name=STR, address=_ADDRESS))),
    ("object deep", _object(a=_object(b=_object(c=_object(d=_object(e=INT)))))),
    ("object with arrays", _object(tags=_array(STR, maxItems=3), scores=_array(NUM, maxItems=3))),
    ("object at least one", {"type": "object", "additionalProperties": INT, "minProperties": 1}),
    ("object at most two", {"type": "object", "additionalProperties": INT, "maxProperties": 2}),
    ("object required counts", {**_object(a=INT, b=INT), "minProperties": 2}),
    ("object patterns", {"type": "object", "patternProperties": {"^n_[a-z]{1,3}$": INT}}),
    (
        "object patterns closed",
        {"type": "object", "patternProperties": {"^[a-c]$": BOOL, "^x-": STR}, "additionalProperties": False},
    ),
    ("object never", {**_object([], a=INT), "properties": {"a": INT, "b": False}}),
    ("keys unicode", _object(**{"prénom": STR, "年齢": INT, "🙂": BOOL})),
    ("keys odd", _object(**{"": INT, 'a"b': INT, "c\\d": INT, "e/f~g": INT, "h i": INT, "\n": INT})),
    ("keys like keywords", _object(type=STR, enum=INT, properties=BOOL, **{"$ref": NULL})),
    ("many properties", _object([], **{f"field_{n}": INT for n in range(40)})),
    ("many required", _object(**{f"f{n}": BOOL for n in range(20)})),
]

_CHOICES: list[tuple[str, Schema]] = [
    ("anyOf types", {"anyOf": [INT, STR, NULL]}),
    ("anyOf objects", {"anyOf": [_object(a=INT), _object(b=STR)]}),
    ("anyOf overlapping", {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 99}, INT]}),
    ("anyOf and siblings", {"type": "integer", "anyOf": [{"minimum": 90}, {"maximum": 10}], "maximum": 99}),
    ("oneOf types", {"oneOf": [STR, INT]}),
    ("oneOf tagged", {"oneOf": [_CIRCLE, _SQUARE]}),
    (
        "oneOf tagged references",
        {
            "oneOf": [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Square"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {"Circle": _CIRCLE, "Square": _SQUARE},
        },
    ),
    ("oneOf constants", {"oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]}),
    ("oneOf and anyOf", {"oneOf": [STR, INT], "anyOf": [{"type": "string"}, NULL]}),
    ("allOf bounds", {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 50}]}),
    (
        "allOf objects",
        {
            "allOf": [
                {"type": "object", "properties": {"a": INT}, "required": ["a"]},
                {"type": "object", "properties": {"b": STR}, "required": ["b"]},
            ]
        },
    ),
    ("allOf one", {"allOf": [{"$ref": "#/$defs/x"}], "title": "X", "$defs": {"x": _object(x=INT)}}),
    ("optional field", _object(name={"anyOf": [STR, NULL], "default": None, "title": "Name"})),
]

_REFERENCES: list[tuple[str, Schema]] = [
    (
        "reference",
        {**_object(home={"$ref": "#/$defs/a"}, work={"$ref": "#/$defs/a"}), "$defs": {"a": _ADDRESS}},
    ),
    ("reference in definitions", {"$ref": "#/definitions/n", "definitions": {"n": _object(n=INT)}}),
    ("reference with siblings", {"$ref": "#/$defs/n", "maximum": 5, "$defs": {"n": INT}}),
    ("reference chain", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": BOOL}}),
    ("reference into properties", _object(a=INT, b={"$ref": "#/properties/a"})),
    ("reference escaped", {"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": BOOL}}),
    ("recursive tree", {"$ref": "#/$defs/node", "$defs": {"node": _TREE}}),
    ("recursive list", _LINKED),
    ("recursive expression", {"$ref": "#/$defs/e", "$defs": {"e": _EXPR}}),
    (
        "recursive mutual",
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": _object([], b={"$ref": "#/$defs/b"}),
                "b": _array({"$ref": "#/$defs/a"}, maxItems=1),
            },
        },
    ),
]

_REAL: list[tuple[str, Schema]] = [
    ("anything", {}),
    ("any object", {"type": "object"}),
    (
        "annotations",
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://x.test/s",
            "title": "T",
            "description": "D",
            "examples": [1],
            "$comment": "c",
            "deprecated": True,
            "readOnly": True,
            "x-order": 3,
            **INT,
        },
    ),  # fmt: skip
    (
        "calendar event",
        _object(name=STR, date=_format("date"), participants=_array(STR, minItems=1, maxItems=4)),
    ),
    (
        "math steps",
        _object(steps=_array(_object(explanation=STR, output=STR), minItems=1, maxItems=3), final_answer=STR),
    ),
    (
        "weather arguments",
        _object(["location"], location=STR, unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
    ),
    (
        "sentiment",
        _object(
            label={"enum": ["positive", "neutral", "negative"]},
            score={"type": "number", "minimum": 0, "maximum": 1},
        ),
    ),
    (
        "user record",
        _object(
            ["name", "age", "role"],
            name=STR,
            age={"type": "integer", "minimum": 0, "maximum": 150},
            emails=_array(_format("email"), maxItems=2),
            role={"enum": ["admin", "user", "guest"]},
            address=_ADDRESS,
        ),
    ),
    (
        "interface element",
        {
            "$ref": "#/$defs/element",
            "$defs": {
                "element": _object(
                    type={"enum": ["div", "button"]},
                    label=STR,
                    children=_array({"$ref": "#/$defs/element"}, maxItems=2),
                )
            },
        },
    ),
    (
        "moderation",
        _object(
            flagged=BOOL,
            categories=_array({"enum": ["violence", "self_harm"]}, maxItems=2),
            note={"type": ["string", "null"], "maxLength": 20},
        ),
    ),
    (
        "sql query",
        _object(
            ["table", "columns"],
            table={"enum": ["orders", "users"]},
            columns=_array({"enum": ["id", "status", "total"]}, minItems=1, maxItems=3),
            where=_array(
                _object(column=STR, operator={"enum": ["=", "<", ">"]}, value={"anyOf": [STR, NUM]}),
                maxItems=2,
            ),
            limit={"type": "integer", "minimum": 1, "maximum": 1000},
        ),
    ),
]

SCHEMAS: list[tuple[str, Schema]] = [
    *_SCALARS, *_FIXED, *_STRINGS, *_ARRAYS, *_OBJECTS, *_CHOICES, *_REFERENCES, *_REAL,
]  # fmt: skip
"""(name, schema): all enforced."""

REFUSED: list[tuple[Schema, str]] = [
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"),
    ({"then": {"minLength": 2}}, "then"),
    (_array(INT, uniqueItems=True), "uniqueItems"),
    (_array(INT, contains={"const": 3}), "contains"),
    (_array(INT, minContains=1), "minContains"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    (_array(INT, unevaluatedItems=False), "unevaluatedItems"),
    ({"$dynamicRef": "#a"}, "$dynamicRef"),
    ({"$recursiveRef": "#"}, "$recursiveRef"),
    ({"type": "string", "contentEncoding": "base64"}, "contentEncoding"),
    ({"type": "string", "contentMediaType": "application/json"}, "contentMediaType"),
    ({"type": "string", "nullable": True}, "nullable"),
    ({"type": "string", "format": "iri"}, "format"),
    ({"type": "string", "format": "unknown"}, "format"),
    ({"format": "idn-email"}, "format"),
    ({"$ref": "https://example.com/schema.json"}, "$ref"),
    ({"$ref": "#/$defs/missing"}, "$ref"),
    ({"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor"}}}, "$ref"),
    ({"x-guidance": {"lenient": True}}, "x-guidance"),
    ({"type": "string", "minLenght": 3}, "minLenght"),
    ({"type": "text"}, "type"),
    ({"type": []}, "type"),
    ({"enum": []}, "enum"),
    ({"anyOf": []}, "anyOf"),
    ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, "exclusiveMinimum"),
    ({"type": "string", "minLength": -1}, "minLength"),
    ({"type": "integer", "multipleOf": 0}, "multipleOf"),
    ({"type": "object", "required": "a"}, "required"),
    ({"type": "object", "properties": {"a": 3}}, "properties"),
    (_pattern("(?=a)b"), "pattern"),
    (_pattern(r"(a)\1"), "pattern"),
    (_pattern(r"\bword\b"), "pattern"),
    ({"oneOf": [INT, NUM]}, "oneOf"),
    ({"oneOf": [_object([], a=INT), _object([], b=INT)]}, "oneOf"),
    ({"type": "array", "prefixItems": [{"$id": "https://x.test/inner"}]}, "$id"),
]
"""(schema, the keyword its refusal names)."""

IMPOSSIBLE: list[Schema] = [
    {"type": "integer", "minimum": 3, "maximum": 1},
    {"type": "string", "minLength": 3, "maxLength": 1},
    _array(INT, minItems=3, maxItems=1),
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    _object(a=False),
    _pattern("^a$", minLength=3),
    {"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 13},
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    _object(self={"$ref": "#"}),
    _array({"$ref": "#"}, minItems=1),
    _object([], child={"$ref": "#/$defs/a"}) | {"$defs": {"a": _object(a={"$ref": "#/$defs/a"})}},
]
"""No value fits, or only an endless one."""
