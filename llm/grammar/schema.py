"""JSON schemas, draft 2020-12: what is enforced passes, annotations are dropped, all else is refused by name.

llguidance ignores keywords it does not know, and some that it does. `prepare_schema` also rewrites the little
that means the same in other words (`items` as a list, a `oneOf` whose options exclude each other) and bounds
what the compiler cannot bear. An object that lists its properties gets no others unless its schema says so:
a small model would go on inventing them. Two departures from the standard, both of llguidance's: properties
come in the schema's order, and every year has a 29th of February. Refuses to know tokens and grammars.

    >>> prepare_schema({"type": "array", "uniqueItems": True}, "response_format")
    RequestError: response_format: keyword 'uniqueItems' at # is not supported
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import lcm
from typing import Any
from urllib.parse import unquote

from llguidance import LLMatcher

from llm.errors import RequestError
from llm.grammar.keywords import ANNOTATIONS, CHECKS, FORMATS, HARMLESS, HINTS, PLACES, REFUSED, is_node
from llm.grammar.matcher import one_line
from llm.grammar.values import MAX_OPTIONS, Node, endless, first_overlap, types_of

MAX_SOURCE_BYTES = 64 << 10
MAX_DEPTH = 64
"""Levels of nested objects and lists in the JSON text."""
MAX_NESTING = 512
"""Levels of the schema and of all it refers to, in sum: Rust's recursion follows, and fails at some 1,500."""
MAX_OPTIONAL = 200
"""Optional properties of one object: each costs the parser four items of every row it might come in."""
MAX_MULTIPLE = 10_000
"""Least common multiple of all multipleOf, decimal points aside: each remainder is a state."""
MAX_PATTERN_BYTES = 8 << 10
MAX_PATTERN_PROPERTIES = 16
"""Of one object: each pattern is intersected with each."""
MAX_INTERSECTED = 12
"""Different patterns and formats in reach of an allOf or the like: n automata make 2^n states."""

_INTERSECTING = frozenset(("$ref", "anyOf", "oneOf", "allOf"))
_NOT_REGULAR = re.compile(r"\\(?P<escape>.)|(?P<look>\(\?<?[=!])", re.DOTALL)


def check_schema(schema: Mapping[str, object], param: str) -> None:
    """Refuse now what a grammar that embeds this schema would be refused for.

    Raises:
        RequestError: in one line, with `param` as its field.
    """
    prepared = prepare_schema(json.loads(_dump(schema, param)), param)
    error = LLMatcher.validate_grammar(json.dumps({"grammars": [{"json_schema": prepared}]}))
    if error:
        raise RequestError(f"{param}: this JSON schema cannot be enforced: {one_line(error)}", param=param)


def _dump(schema: Mapping[str, object], param: str) -> str:
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{param}: not a JSON schema", param=param) from None
    parse_json(text, param)
    return text


def parse_json(text: str, param: str) -> Any:
    """JSON within the bounds of size and depth.

    Raises:
        RequestError: not JSON (NaN and Infinity are not), too large or too deep.
    """
    if len(text) > MAX_SOURCE_BYTES or len(text.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise RequestError(f"{param}: over {MAX_SOURCE_BYTES} bytes of JSON", param=param)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError, a lone surrogate, is a ValueError
        why = "too deep" if isinstance(error, RecursionError) else str(error)[:100]
        raise RequestError(f"{param}: not JSON: {why}", param=param) from None
    level, depth = [value], 0
    while level := [part for item in level for part in _parts(item)]:
        if (depth := depth + 1) > MAX_DEPTH:
            raise RequestError(f"{param}: JSON nested deeper than {MAX_DEPTH} levels", param=param)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _parts(item: object) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []


def prepare_schema(schema: Node, param: str) -> Any:
    """The schema to compile: `schema` itself, changed in place.

    Raises:
        RequestError: a keyword that is unknown, malformed or not enforced, with its JSON pointer; a bound.
    """
    return _Preparation(schema, param).run()


class _Preparation:
    """One schema, checked node by node; what a `$ref` names is checked when it is named."""

    def __init__(self, root: Node, param: str) -> None:
        self._root, self._param = root, param
        self._places: dict[int, str] = {}
        """`id` of each schema reached → where it was first reached."""
        self._nodes: list[dict[str, Any]] = []
        self._targets: dict[str, Node] = {"#": root}

    def run(self) -> Node:
        if not is_node(self._root):
            raise self._refusal("a schema must be an object or a boolean", "#")
        if self._root is False:
            raise self._refusal("false allows no value", "#")
        todo: list[tuple[str, Node]] = [("#", self._root)]
        while todo:
            place, node = todo.pop()
            if isinstance(node, dict) and id(node) not in self._places:
                self._places[id(node)] = place
                self._nodes.append(node)
                self._check(node, place)
                if "$ref" in node:
                    todo.append((node["$ref"], self.resolve(node["$ref"], place)))
                todo += [(f"{place}/{step}", child) for step, child in _children(node)]
        self._check_whole()
        return self._root

    def resolve(self, ref: str, place: str = "#") -> Node:
        """The schema at a pointer."""
        if ref not in self._targets:
            found: Any = self._root
            for step in ref.split("/")[1:]:
                key = unquote(step).replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and key.isdecimal() and len(key) < 6 and int(key) < len(found):
                    found = found[int(key)]
                else:
                    found = found.get(key) if isinstance(found, dict) else None
            if not is_node(found):
                raise self._refusal(f"$ref {ref[:100]!r} names no schema", place)
            self._targets[ref] = found
        return self._targets[ref]

    def _refusal(self, why: str, place: str) -> RequestError:
        return RequestError(f"{self._param}: {why} (at {place[:200]})", param=self._param)

    def _check(self, node: dict[str, Any], place: str) -> None:
        """One schema's own keywords; annotations are dropped."""
        for keyword in list(node):
            value = node[keyword]
            if keyword in ANNOTATIONS or (keyword.startswith("x-") and keyword != "x-guidance"):
                del node[keyword]
            elif keyword in HARMLESS and value is HARMLESS[keyword]:
                del node[keyword]
            elif keyword in REFUSED:
                hint = HINTS.get(keyword, "")
                raise self._refusal(f"keyword {keyword!r} is not supported{hint}", place)
        self._rewrite_items(node)
        for keyword, value in node.items():
            if keyword in PLACES and (keyword != "$id" or place == "#"):
                continue
            if keyword not in CHECKS:
                raise self._refusal(f"unknown keyword {keyword[:64]!r}", place)
            fits, expected = CHECKS[keyword]
            if not fits(value):
                got = json.dumps(value)[:64]
                raise self._refusal(f"keyword {keyword!r} must be {expected}, got {got}", place)
        node.pop("$id", None)
        self._check_text(node, place)
        self._check_object(node, place)

    @staticmethod
    def _rewrite_items(node: dict[str, Any]) -> None:
        """Older drafts' tuple: `items` a list, `additionalItems` what follows."""
        rest = node.pop("additionalItems", None)
        if isinstance(node.get("items"), list) and "prefixItems" not in node:
            node["prefixItems"] = node.pop("items")
            if rest is not None:
                node["items"] = rest

    def _check_text(self, node: dict[str, Any], place: str) -> None:
        form = node.get("format")
        if form is not None and "string" not in types_of(node):
            del node["format"]  # such as int32: a format says nothing of other types
        elif form is not None and form not in FORMATS:
            known = ", ".join(FORMATS)
            raise self._refusal(f"keyword 'format' {form[:64]!r} is not supported; these are: {known}", place)
        for pattern in (node.get("pattern", ""), *node.get("patternProperties", ())):
            if len(pattern.encode()) > MAX_PATTERN_BYTES:
                raise self._refusal(f"keyword 'pattern' is over {MAX_PATTERN_BYTES} bytes", place)
            for match in _NOT_REGULAR.finditer(pattern):
                if match["look"] or match["escape"] in "123456789kbB":
                    part = match[0]
                    raise self._refusal(f"keyword 'pattern' with {part!r} is not supported", place)

    def _check_object(self, node: dict[str, Any], place: str) -> None:
        optional = node.get("properties", {}).keys() - set(node.get("required", ()))
        patterns = node.get("patternProperties", ())
        for name, count, limit in (
            ("optional properties", len(optional), MAX_OPTIONAL),
            ("patternProperties", len(patterns), MAX_PATTERN_PROPERTIES),
        ):
            if count > limit:
                raise self._refusal(f"{count} {name}, the limit is {limit}", place)
        least = node.get("minProperties", 0)
        if least > max(1, len(set(node.get("required", ())))):
            # An additional key may be written twice and counts once.
            raise self._refusal(
                "keyword 'minProperties' above 1 and above the required ones is not supported", place
            )

    def _check_whole(self) -> None:
        """What only the schema as a whole shows."""
        nesting = sum(_depth(target) for target in {id(t): t for t in self._targets.values()}.values())
        if nesting > MAX_NESTING:
            limit = f"nested {nesting} levels with all it refers to, the limit is {MAX_NESTING}"
            raise self._refusal(limit, "#")
        names = ("pattern", "format")
        texts = {node[name] for node in self._intersected() for name in names if name in node}
        if (count := len(texts)) > MAX_INTERSECTED:
            limit = f"{count} different patterns and formats are intersected, the limit is {MAX_INTERSECTED}"
            raise self._refusal(limit, "#")
        multiples = (_digits(node["multipleOf"]) for node in self._nodes if "multipleOf" in node)
        if lcm(*multiples) > MAX_MULTIPLE:
            raise self._refusal(f"the least common multiple of all 'multipleOf' is over {MAX_MULTIPLE}", "#")
        if stuck := endless(self._nodes, self.resolve):
            place = next(place for key, place in self._places.items() if key in stuck)
            raise self._refusal("no finite value fits: what this requires refers to itself", place)
        for node in self._nodes:
            if "oneOf" in node:
                self._rewrite_one_of(node)
        shared = {id(node) for node in self._intersected()}
        for node in self._nodes:
            if id(node) not in shared and _is_open(node):
                node["additionalProperties"] = False

    def _intersected(self) -> list[dict[str, Any]]:
        """All in reach of schemas that more than one part constrains."""
        todo: list[Node] = [node for node in self._nodes if _intersects(node)]
        found: dict[int, dict[str, Any]] = {}
        while todo:
            node = todo.pop()
            if isinstance(node, bool) or id(node) in found:
                continue
            found[id(node)] = node
            todo += [child for _, child in _children(node)]
            todo += [self.resolve(node["$ref"])] if "$ref" in node else []
        return list(found.values())

    def _rewrite_one_of(self, node: dict[str, Any]) -> None:
        """Options that exclude each other are an anyOf; llguidance sees this only without references."""
        options, place = node["oneOf"], self._places[id(node)]
        if len(options) > MAX_OPTIONS:
            raise self._refusal(
                f"keyword 'oneOf' with {len(options)} options, the limit is {MAX_OPTIONS}", place
            )
        if (pair := first_overlap(options, self.resolve)) is not None:
            both = f"options {pair[0]} and {pair[1]} may allow one value; use anyOf"
            raise self._refusal(
                f"keyword 'oneOf' is supported if its options exclude each other: {both}", place
            )
        del node["oneOf"]
        if "anyOf" in node:
            node["allOf"] = [*node.get("allOf", ()), {"anyOf": options}]
        else:
            node["anyOf"] = options


def _children(node: dict[str, Any]) -> Iterator[tuple[str, Node]]:
    """The schemas right inside one, and the steps to them; not its definitions."""
    for name in ("items", "additionalProperties"):
        if name in node:
            yield name, node[name]
    for name in ("prefixItems", "anyOf", "oneOf", "allOf"):
        yield from ((f"{name}/{index}", child) for index, child in enumerate(node.get(name, ())))
    for name in ("properties", "patternProperties"):
        for key, child in node.get(name, {}).items():
            yield f"{name}/{key.replace('~', '~0').replace('/', '~1')}", child


def _digits(number: int | float) -> int:
    """A number without its decimal point and the zeros at its end: 0.25 and 250 are 25."""
    digits = "".join(map(str, Decimal(str(number)).as_tuple().digits))
    return int(digits.strip("0"))


def _depth(node: Node) -> int:
    return (
        1 if isinstance(node, bool) else 1 + max((_depth(child) for _, child in _children(node)), default=0)
    )


def _intersects(node: dict[str, Any]) -> bool:
    """Whether two parts of a schema may constrain the same value."""
    parts = len(_INTERSECTING & node.keys()) + bool(node.keys() - _INTERSECTING - PLACES)
    return parts > 1 or len(node.get("allOf", ())) > 1


def _is_open(node: dict[str, Any]) -> bool:
    """Whether an object lists its properties and only forgets to say that there are no others. A model takes
    that for leave to invent some, one after another; without them its object is one of the schema's all the
    same.
    """
    says_more = {"additionalProperties", "patternProperties", "minProperties"} & node.keys()
    listed = node.get("properties")
    return listed is not None and not says_more and listed.keys() >= set(node.get("required", ()))
