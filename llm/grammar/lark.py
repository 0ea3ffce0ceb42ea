"""What a request wrote, checked and bounded, as the program llguidance compiles.

Its compiler runs in Rust and cannot be stopped; some short inputs take it minutes, gigabytes or the whole
stack. The bounds here were found by measuring such inputs (tests/llm/test_grammar_limits.py has them): what
passes compiles in two seconds at the very most, almost always in milliseconds. Refuses to know tokens.

    >>> program("regex", "[0-9]{4}", "structured_outputs.regex")
    '{"grammars": [{"name": "top", "lark_grammar": "start: /[0-9]{4}/..."}]}'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TypedDict

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from llm.errors import RequestError
from llm.grammar.schema import MAX_PATTERN_BYTES, MAX_SOURCE_BYTES, parse_json, prepare_schema

MAX_CHOICES = 1024
MAX_GRAMMAR_BYTES = 16 << 10
"""Of a Lark or GBNF text, its `%json` schemas apart: with them, four times a schema's limit."""
MAX_NESTING = 512
"""Rules and brackets of a grammar together: Rust's recursion follows both, and fails at some 3,000."""
MAX_INTERSECTIONS = 8
"""Of `&` in a grammar: the product of n automata has 2^n states before any limit of llguidance looks."""
JSON_OPTIONS: dict[str, str | bool] = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": 'nrbtf\\"',
}
"""JSON on one line: a space may follow a comma or a colon, so that no model spends its tokens on blanks.
Without \\u escapes nothing is spelled in two ways, so no additional property passes for a declared one."""
_EMBEDDED_OPTIONS = {*JSON_OPTIONS, "whitespace_pattern"}
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'

_TOKEN = re.compile(
    r'"(?:\\.|[^"\\\n])*"'  # a string
    r"|/(?![/*])(?:\\.|[^/\\\n])+/"  # a regex
    r"|(?://|#)[^\n]*"  # a comment
    r"|(?P<json>%json\b)|(?P<and>&)|(?P<nest>[(\[{:])|(?P<option>\b(?:stop|temperature)\s*=)"
    r"|(?P<special><[^<>\s\"]+>)"
)
_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


class Limits(TypedDict):
    """LLParserLimits' arguments; what is not here is left as llguidance has it."""

    max_items_in_row: int
    step_max_items: int
    step_lexer_fuel: int
    initial_lexer_fuel: int
    max_lexer_states: int
    verbose_errors: bool


LIMITS: Limits = {
    "max_items_in_row": 2000,  # four for each optional property of one object
    "step_max_items": 5000,
    "step_lexer_fuel": 200_000,  # some 20 ms
    "initial_lexer_fuel": 1_000_000,
    "max_lexer_states": 100_000,  # some 60 MB for one reply at the very most
    "verbose_errors": False,  # no text of the request's in a log
}
GRAMMAR_LIMITS: Limits = {**LIMITS, "max_items_in_row": 500}
"""An ambiguous grammar's step costs the square of its row: 10 ms at 500, 400 ms at 2,000."""


def program(kind: str, source: str, param: str) -> str:
    """llguidance's JSON for one of the kinds of GrammarSpec.

    Raises:
        RequestError: malformed, too large, or with a part that cannot be enforced, by name.
    """
    _check_bytes(source, MAX_SOURCE_BYTES * (4 if kind == "grammar" else 1), param)
    if kind in ("json_object", "json_schema"):
        given = {"type": "object"} if kind == "json_object" else parse_json(source, param)
        schema = prepare_schema(given, param)
        options = {"x-guidance": JSON_OPTIONS}
        schema = {"anyOf": [schema], **options} if isinstance(schema, bool) else {**schema, **options}
        return _grammars("start: @schema", {"name": "schema", "json_schema": schema})
    if kind == "regex":
        _check_bytes(source, MAX_PATTERN_BYTES, param)
        return _grammars(f"start: /{regex_to_lark(source, '')}/")
    if kind == "choice":
        return _grammars(_choices(source, param))
    assert kind == "grammar", kind
    return _grammars(_grammar(source, param))


def _grammars(lark: str, *others: dict[str, object]) -> str:
    top: dict[str, object] = {"name": "top", "lark_grammar": lark + _NO_FORCING}
    return json.dumps({"grammars": [top, *others]})


def _check_bytes(text: str, limit: int, param: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{param}: a lone surrogate is not text", param=param) from None
    if size > limit:
        raise RequestError(f"{param}: {size} bytes, the limit is {limit}", param=param)


def _choices(source: str, param: str) -> str:
    """One terminal: as rules, one choice that begins another would have to wait for it."""
    choices = parse_json(source, param)
    if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
        count = len(choices) if isinstance(choices, list) else type(choices).__name__
        raise RequestError(
            f"{param}: expected a list of 1 to {MAX_CHOICES} strings, got {count}", param=param
        )
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise RequestError(f"{param}[{index}]: expected a string that is not empty", param=param)
        _check_bytes(choice, MAX_SOURCE_BYTES, param)
    return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, choices))


def _grammar(source: str, param: str) -> str:
    """Lark within the bounds, each `%json` schema checked and bounded like a request's own."""
    if _GBNF.search(source):
        _check_bytes(source, MAX_GRAMMAR_BYTES, param)
        source = _from_gbnf(source, param)
    parts, size, nesting, num_and = [], 0, 0, 0
    for part, is_json in _parts(source, param):
        parts.append(part)
        if is_json:
            continue
        size += len(part.encode())
        found = [match.lastgroup for match in _TOKEN.finditer(part)]
        nesting, num_and = nesting + found.count("nest"), num_and + found.count("and")
        if "option" in found:
            raise RequestError(
                f"{param}: the options stop and temperature of a rule are not supported", param=param
            )
        if "special" in found or "<[" in part:  # the latter even where it looks like text: it names any id
            raise RequestError(f"{param}: special tokens, <...>, are not supported in a grammar", param=param)
    for name, value, limit in (
        ("bytes", size, MAX_GRAMMAR_BYTES),
        ("rules and brackets", nesting, MAX_NESTING),
        ("intersections (&)", num_and, MAX_INTERSECTIONS),
    ):
        if value > limit:
            raise RequestError(f"{param}: {value} {name} in the grammar, the limit is {limit}", param=param)
    return "".join(parts)


def _from_gbnf(source: str, param: str) -> str:
    nesting = sum(map(source.count, ("(", "[", "{", "::=")))
    if nesting > MAX_NESTING:
        limit = f"{nesting} rules and brackets in the grammar, the limit is {MAX_NESTING}"
        raise RequestError(f"{param}: {limit}", param=param)
    try:
        return gbnf_to_lark(source)
    except Exception as error:  # its parser raises bare Exceptions, and IndexError at the end of the text
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise RequestError(f"{param}: not a GBNF grammar: {line}", param=param) from None


def _parts(source: str, param: str) -> Iterator[tuple[str, bool]]:
    """The grammar in pieces, and whether a piece is the schema of a `%json`, prepared."""
    decoder, begin, at = json.JSONDecoder(), 0, 0
    while match := _TOKEN.search(source, at):
        at = match.end()
        if match.lastgroup != "json":
            continue
        yield source[begin:at], False
        start = at + len(source[at:]) - len(source[at:].lstrip())
        try:
            _, begin = decoder.raw_decode(source, start)
        except (ValueError, RecursionError):
            raise RequestError(f"{param}: %json is not followed by a JSON schema", param=param) from None
        yield " " + _embedded(source[start:begin], param), True
        at = begin
    yield source[begin:], False


def _embedded(text: str, param: str) -> str:
    schema, options = parse_json(text, param), {}
    if isinstance(schema, dict):
        options = schema.pop("x-guidance", {})
        if not isinstance(options, dict) or not set(options) <= _EMBEDDED_OPTIONS:
            known = ", ".join(sorted(_EMBEDDED_OPTIONS))
            raise RequestError(f"{param}: x-guidance of a %json takes {known}", param=param)
    prepared = prepare_schema(schema, param)
    if isinstance(prepared, bool):
        prepared = {"anyOf": [prepared]}
    flexible = {"whitespace_flexible": True} if "whitespace_pattern" in options else {}
    prepared["x-guidance"] = {**JSON_OPTIONS, **flexible, **options}
    return json.dumps(prepared)
