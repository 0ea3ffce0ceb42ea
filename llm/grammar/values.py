"""What values a schema has: whether there are any finite ones, and whether two schemas share one.

Both questions follow `$ref`s, which llguidance does not do for them: it lets `{"$ref": "#"}` nest for ever,
and takes no `oneOf` of references. Refuses to know keywords' syntax (keywords.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

Node = dict[str, Any] | bool
Resolve = Callable[[str], Node]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_SCALARS = {"null", "boolean", "integer", "number", "string"}
MAX_OPTIONS = 128
"""Of a oneOf: each is compared with each."""
_MAX_KEY_DEPTH = 4


def types_of(node: dict[str, Any]) -> set[str]:
    """The types a schema names, or all."""
    named = node.get("type", TYPES)
    return {named} if isinstance(named, str) else set(named)


def endless(nodes: Iterable[Node], resolve: Resolve) -> set[int]:
    """`id` of the schemas, among nodes, whose every value would be infinitely deep.

    A least fixed point: a schema has a finite value once what it requires has one.
    """
    todo = [node for node in nodes if isinstance(node, dict)]
    finite: set[int] = set()
    while True:
        found = [node for node in todo if _is_finite(node, finite, resolve)]
        if not found:
            return {id(node) for node in todo}
        finite |= {id(node) for node in found}
        todo = [node for node in todo if id(node) not in finite]


def _is_finite(node: dict[str, Any], finite: set[int], resolve: Resolve) -> bool:
    def known(part: Node) -> bool:
        return isinstance(part, bool) or id(part) in finite

    if "$ref" in node and not known(resolve(node["$ref"])):
        return False
    if not all(map(known, node.get("allOf", ()))):
        return False
    if not all(any(map(known, node[name])) for name in ("anyOf", "oneOf") if name in node):
        return False
    types = types_of(node)
    if types & _SCALARS or "enum" in node or "const" in node:
        return True
    return ("array" in types and all(map(known, _least_items(node)))) or (
        "object" in types and all(known(property_of(node, name)) for name in node.get("required", ()))
    )


def _least_items(node: dict[str, Any]) -> list[Node]:
    """Schemas of the items an array cannot do without; those of a long tail once."""
    count, prefix = node.get("minItems", 0), node.get("prefixItems", [])
    return [*prefix[:count], *([node.get("items", True)] if count > len(prefix) else [])]


def property_of(node: dict[str, Any], name: str) -> Node:
    """The schema of one property, by name or as an additional one."""
    others = True if "patternProperties" in node else node.get("additionalProperties", True)
    found: Node = node.get("properties", {}).get(name, others)
    return found


def first_overlap(options: list[Node], resolve: Resolve) -> tuple[int, int] | None:
    """Two options of a oneOf that may share a value, by index, or None when no two can."""
    for (first, a), (second, b) in combinations(enumerate(options[:MAX_OPTIONS]), 2):
        if not _are_disjoint(a, b, resolve, _MAX_KEY_DEPTH):
            return first, second
    return None


def _are_disjoint(a: Node, b: Node, resolve: Resolve, depth: int) -> bool:
    a, b = _target(a, resolve), _target(b, resolve)
    if a is False or b is False:
        return True
    if isinstance(a, bool) or isinstance(b, bool) or depth == 0:
        return False
    if (few := _constants(a)) is not None and (others := _constants(b)) is not None:
        return not few & others
    shared = _json_types(a) & _json_types(b)
    if shared != {"object"}:
        return not shared
    keys = {*a.get("required", ()), *b.get("required", ())}
    return any(
        _are_disjoint(property_of(a, key), property_of(b, key), resolve, depth - 1)
        for key in keys
        if key in a.get("required", ()) and key in b.get("required", ())
    )


def _target(node: Node, resolve: Resolve) -> Node:
    """What a schema that is a reference refers to; a cycle of references stays one."""
    for _ in range(_MAX_KEY_DEPTH):
        if isinstance(node, bool) or "$ref" not in node:
            break
        node = resolve(node["$ref"])
    return node


def _constants(node: dict[str, Any]) -> set[str] | None:
    values = [node["const"]] if "const" in node else node.get("enum")
    return None if values is None else {json.dumps(value, sort_keys=True) for value in values}


def _json_types(node: dict[str, Any]) -> set[str]:
    """Types of JSON's grammar: every integer is a number."""
    if (values := [node["const"]] if "const" in node else node.get("enum")) is not None:
        return {_type_of(value) for value in values}
    return {"number" if name == "integer" else name for name in types_of(node)}


def _type_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds = ((str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")
