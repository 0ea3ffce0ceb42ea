"""The keywords of JSON schema on three lists: enforced, dropped as annotations, refused.

A keyword on none of them is unknown and refused too: a misspelt one would constrain nothing. Refuses to know
schemas as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm.grammar.values import TYPES

FORMATS = "date-time time date duration email hostname ipv4 ipv6 uuid uri".split()
ANNOTATIONS = frozenset(
    "title description default examples example $comment deprecated readOnly writeOnly $schema $anchor "
    "strict discriminator externalDocs xml".split()
)
PLACES = frozenset(("$defs", "definitions", "$id"))
REFUSED = frozenset(
    "not if then else uniqueItems contains minContains maxContains propertyNames dependentSchemas "
    "dependentRequired dependencies unevaluatedProperties unevaluatedItems $dynamicRef $recursiveRef "
    "$dynamicAnchor $recursiveAnchor $vocabulary contentEncoding contentMediaType contentSchema "
    "nullable".split()
)
HARMLESS: dict[str, object] = {"uniqueItems": False, "nullable": False}
"""Refused, except with the value that constrains nothing."""
HINTS = {"nullable": '; write "null" into its type'}


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_node(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_types(value: object) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) and name in TYPES for name in names)


def _is_nodes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_node, value))


_NATURAL = (_is_natural, "an integer that is not negative")
_NUMBER = (_is_number, "a number")
_NODE = (is_node, "a schema")
_NODES = (_is_nodes, "a list of schemas, not empty")
_MAP = (lambda v: isinstance(v, dict) and all(map(is_node, v.values())), "an object of schemas")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_types, f"one or a list of {', '.join(TYPES)}"),
    "const": (lambda value: True, ""),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list, not empty"),
    "$ref": (
        lambda v: isinstance(v, str) and (v == "#" or v.startswith("#/")),
        '"#" or a path within, "#/..."',
    ),
    "required": (lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), "a list of strings"),
    "pattern": (lambda value: isinstance(value, str), "a string"),
    "format": (lambda value: isinstance(value, str), "a string"),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _NATURAL
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("items", "additionalProperties"), _NODE),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), _NODES),
    "prefixItems": (lambda v: isinstance(v, list) and all(map(is_node, v)), "a list of schemas"),
    **dict.fromkeys(("properties", "patternProperties"), _MAP),
}
