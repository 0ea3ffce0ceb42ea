"""Requests to throw at a server: valid, nearly valid, and hostile; every one made again from its seed.

A valid body is drawn from the route's own schema in the OpenAPI document, with forms and tools from the
tables of schemas. Then perhaps something is broken: a value replaced by a nasty one, a field gone or unknown,
the JSON itself cut or bent, the client gone before it has sent all. Refuses to know what the answer should
be.

    >>> Hostile(document).request(random.Random("7-0"))
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from tests.hard_text import HARD
from tests.schemas import IMPOSSIBLE, REFUSED, SCHEMAS

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1e-320, 0.1, -0.0, 1e308, -1e308, 1 << 31, -(1 << 31), 1 << 53),
    *((1 << 63) - 1, -(1 << 63), 1 << 63, 10**30, 10**400, 256, 257, 1 << 24),
    *("", " ", "\n", "\0", "a" * 257, "x" * 4096, "\x85\u2028\u2029", "\ufffd\ufeff", "é" * 300, "😀", "٣"),
    *(
        "NaN",
        "true",
        "null",
        "{",
        "[1]",
        "<|im_start|>system",
        "\nUser: ",
        "../../etc/passwd",
        "%s%n",
        "{{7*7}}",
    ),
    *(
        [],
        [[]],
        [None],
        {},
        {"": {}},
        {"type": "text"},
        [0] * 300,
        ["a"] * 70,
        {str(i): i for i in range(40)},
    ),
    *("user", "text", "function", "auto", "default", "json_schema", "stop", "__proto__", "$ref", "\ud800"),
]
"""Values that have broken some server somewhere."""

REGEXES = [
    *("[a-z]{3}", "(yes|no)", r"\d{4}-\d{2}-\d{2}", ".*", "(a|b)*c", "[^\\n]{0,9}", "é+", "", "a{0}", "x*"),
    *("(", "[", "(?=a)b", r"(a)\1", "(a+)+$", "(a|a)*" * 6, "a{1000}{1000}", "(?P<x>a)", "[z-a]", "\\", "\0"),
    *(
        "(.*)(.*)(.*)(.*)[ab]{200}",
        "((((((((((a?){9}){9}){9}){9}){9}){9}))))",
        "$^",
        r"\bword\b",
        "\\p{Greek}",
    ),
]
GRAMMARS = [
    *(
        'start: "yes" | "no"',
        'start: "a" start | "b"',
        "start: /[0-9]+/",
        'root ::= "x" [0-9]+',
        "start: WORD\nWORD: /a+/",
    ),
    *(
        "",
        "start:",
        "start: start",
        "start: missing",
        'root ::= root "a"',
        "start: /(/",
        "%json {}",
        "start: %json {}",
    ),
    *(
        "start: " + "(" * 600 + '"a"' + ")" * 600,
        'start: (a|a)*\na: "x"?',
        "start: /a/ & /b/",
        "%import common.INT",
    ),
    *(
        'start: %json {"type": "integer"}',
        "start: <|im_end|>",
        'start: "a"{0,99999}',
        "// nothing",
        "start: a\na: b\nb: a",
    ),
]
WORDS = ["hello", "what is a token?", "", " ", "\n", "word " * 12, "é漢😀", "<|endoftext|>", *HARD[3:9]]

ROUTES = {
    "/v1/chat/completions": 8,
    "/v1/completions": 5,
    "/v1/embeddings": 2,
    "/v1/score": 2,
    "/tokenize": 2,
    "/detokenize": 1,
    "/apply-template": 2,
}
"""With how often each is asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire, and when the client leaves.

    Attributes:
        sent: the share of the bytes that the client sends before it closes; None sends all.
        patience: bytes of the answer it reads before it closes; None reads all.
    """

    method: str
    path: str
    body: bytes
    headers: tuple[str, ...] = ()
    sent: float | None = None
    patience: int | None = None


class Hostile:
    """Draws requests for the POST routes of an OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._schemas = {path: _body_schema(document, path) for path in ROUTES}

    def request(self, chance: random.Random) -> Request:
        """Any of them."""
        (path,) = chance.choices(list(ROUTES), list(ROUTES.values()))
        body = self._valid(path, chance)
        for _ in range(chance.choice([0, 0, 0, 0, 1, 1, 1, 2, 4])):
            body = spoil(body, chance)
        data = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode("utf-8", errors="surrogatepass")
        method, headers = "POST", ["content-type: application/json"]
        if chance.random() < 0.08:
            data = bend(data, chance)
        if chance.random() < 0.03:
            method = chance.choice(["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "QUERY"])
        if chance.random() < 0.03:
            path = chance.choice(
                [path + "/", path.upper(), path + "?a=%00", "/v1", "//", "/v1/models/%2e%2e%2f"]
            )
        if chance.random() < 0.05:
            headers = [
                chance.choice(["x-request-id: a b", "x-request-id: " + "z" * 200, "authorization: Bearer"])
            ]
        leaves = chance.random()
        sent = chance.random() if leaves < 0.04 else None
        patience = chance.choice([0, 1, 200, 900, 2500]) if 0.04 <= leaves < 0.16 else None
        return Request(method, path, data, tuple(headers), sent, patience)

    def _valid(self, path: str, chance: random.Random) -> Any:
        """A body that fits the schema, with what a schema cannot say put right, mostly."""
        body = draw(self._schemas[path], chance, keep=chance.choice([0.0, 0.03, 0.1, 0.3]))
        if "messages" in body or path in ("/v1/chat/completions", "/apply-template"):
            body["messages"] = [_turn(chance) for _ in range(chance.choice([1, 1, 2, 3, 9]))]
            if chance.random() < 0.3:
                body["tools"] = [_tool(i, chance) for i in range(chance.choice([1, 1, 2, 5]))]
                body["tool_choice"] = chance.choice(
                    [*("auto", "required", "required", "none"), _named(chance)]
                )
        if path == "/v1/completions":
            body["prompt"] = chance.choice(
                [*([chance.choice(WORDS)] * 3), [1, 2, 3], ["a", "b"], [[1], [2, 3]]]
            )
        if path in ("/v1/chat/completions", "/v1/completions"):
            body |= {"model": None, "max_tokens": chance.choice([1, 2, 5, 12, 30, 60]), "min_tokens": None}
            body["stream"] = chance.random() < 0.5
            for name in ("response_format", "structured_outputs", *(f"guided_{kind}" for kind in _FORMS)):
                body.pop(name, None)
            if chance.random() < 0.35:
                body |= _form(chance)
        return body if chance.random() < 0.1 else agreeing(body)


def agreeing(body: dict[str, Any]) -> dict[str, Any]:
    """The same body without fields that contradict each other, which no schema says."""
    gone = set()
    if not body.get("tools"):
        gone.add("tool_choice")
    if body.get("stream"):
        gone.add("prompt_logprobs")
    else:
        gone.add("stream_options")
    if body.get("logprobs") in (None, False):
        gone.add("top_logprobs")
    if (body.get("top_k") or 0) > 257:
        gone.add("top_k")
    if body.get("messages"):
        gone |= {"prompt", "input", "continue_final_message"}
    return {name: value for name, value in body.items() if name not in gone}


_FORMS = ("json", "regex", "choice", "grammar")


def _form(chance: random.Random) -> dict[str, Any]:
    """One of the ways to ask for a form."""
    kind = chance.choice(_FORMS)
    value: Any
    if kind == "json":
        value = _schema(chance)
        if chance.random() < 0.5:
            named = {"name": "answer", "schema": value, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
    elif kind == "choice":
        value = chance.choice(
            [["yes", "no"], ["a"], ["é", "e\u0301", "😀"], ["a" * 400], [str(i) for i in range(500)]]
        )
    else:
        value = chance.choice(REGEXES if kind == "regex" else GRAMMARS)
    return {f"guided_{kind}": value} if chance.random() < 0.5 else {"structured_outputs": {kind: value}}


def _schema(chance: random.Random) -> Any:
    where = chance.random()
    if where < 0.7:
        return chance.choice(SCHEMAS)[1]
    return chance.choice(REFUSED)[0] if where < 0.9 else chance.choice(IMPOSSIBLE)


def _tool(number: int, chance: random.Random) -> dict[str, Any]:
    function: dict[str, Any] = {"name": f"f{number}", "description": chance.choice(WORDS)}
    if chance.random() < 0.8:
        function["parameters"] = _schema(chance) if chance.random() < 0.5 else {"type": "object"}
    if chance.random() < 0.2:
        function["strict"] = True
    return {"type": "function", "function": function}


def _named(chance: random.Random) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{chance.choice([0, 0, 0, 1, 9])}"}}


def _turn(chance: random.Random) -> dict[str, Any]:
    role = chance.choice(["user", "user", "user", "assistant", "system", "developer", "tool"])
    content: Any = chance.choice(WORDS)
    turn: dict[str, Any] = {"role": role, "content": content}
    if chance.random() < 0.2:
        turn["content"] = [{"type": "text", "text": content}] * chance.choice([0, 1, 3])
    if role == "tool":
        turn["tool_call_id"] = "call_1"
    if role == "assistant" and chance.random() < 0.5:
        arguments = chance.choice(
            [*("{}",) * 6, '{"a": 1}', '{"a": "é\\n"}', "{", "", "[]", '{"a":NaN}', "9" * 5000]
        )
        function = {"name": "f0", "arguments": arguments}
        turn |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
    return turn


def draw(schema: Any, chance: random.Random, keep: float) -> Any:
    """A value that a JSON schema of our document allows.

    Args:
        keep: the probability of each optional property.
    """
    if not isinstance(schema, dict):
        return chance.choice([1, "a", None, {"a": [1]}])
    if "anyOf" in schema or "oneOf" in schema:
        return draw(chance.choice(schema.get("anyOf") or schema["oneOf"]), chance, keep)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chance.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, chance, keep)
    if kind == "array":
        low, high = schema.get("minItems", 0), schema.get("maxItems", 4)
        count = chance.choice([low, min(high, low + 1), min(high, low + 3)])
        return [draw(schema.get("items"), chance, keep) for _ in range(count)]
    if kind == "string":
        text = "f0" if "pattern" in schema else chance.choice(WORDS)
        return text[: schema.get("maxLength")].ljust(schema.get("minLength", 0), "x")
    if kind in ("integer", "number"):
        return _number(schema, chance)
    return {"boolean": chance.random() < 0.5, "null": None}.get(str(kind), 1)


def _object(schema: dict[str, Any], chance: random.Random, keep: float) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    value = {
        name: draw(inner, chance, keep)
        for name, inner in schema.get("properties", {}).items()
        if name in required or chance.random() < keep
    }
    for inner in schema.get("patternProperties", {}).values():
        value |= {str(chance.randrange(257)): draw(inner, chance, keep) for _ in range(chance.randrange(3))}
    return value


def _number(schema: dict[str, Any], chance: random.Random) -> Any:
    is_whole = schema["type"] == "integer"
    low = schema.get("minimum", schema.get("exclusiveMinimum", -100))
    high = schema.get("maximum", schema.get("exclusiveMaximum", 100))
    if is_whole:
        low, high = int(low), int(high) - ("exclusiveMaximum" in schema)
        if high == (1 << 24) - 1:  # a token id
            return chance.choice([*range(97, 120), 0, 256, 257, high])
        return chance.choice([low, high, min(high, max(low, 1)), chance.randint(low, min(high, low + 256))])
    return chance.choice([chance.uniform(low, high), high, min(high, max(low, 1)), chance.uniform(low, high)])


def spoil(value: Any, chance: random.Random) -> Any:
    """The same value with one thing wrong somewhere inside."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        fate = chance.random()
        if fate < 0.1:
            return {key: item for key, item in value.items() if key != name}
        if fate < 0.2:
            return {
                **value,
                chance.choice(["extra", "", "é\n", "n" * 99, "suffix", "audio"]): chance.choice(NASTY),
            }
        return {**value, name: spoil(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        fate = chance.random()
        if fate < 0.1:
            return value[:at] + value[at + 1 :]
        if fate < 0.2 and len(value) < 50:
            return value * chance.choice([2, 30, 300])
        return [*value[:at], spoil(value[at], chance), *value[at + 1 :]]
    if isinstance(value, str) and len(value) < 100 and chance.random() < 0.3:
        return value * chance.choice([2, 50, 5000]) + chance.choice(["", "\0", "\ud83d", "\n"])
    return chance.choice(NASTY)


def bend(data: bytes, chance: random.Random) -> bytes:
    """The same bytes, no longer what they were."""
    at = chance.randrange(len(data) + 1)
    deep = chance.choice([63, 64, 65, 5000, 100_000])
    return chance.choice(
        [
            data[:at],
            data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :],
            data[:-1] + b',"n":1,"n":2}',
            data[:-1]
            + b',"seed":'
            + chance.choice([b"NaN", b"-Infinity", b"1e309", b"1" * 5000, b"01"])
            + b"}",
            data[:-1] + b',"x":' + b"[" * deep + b"]" * deep + b"}",
            data[:-1] + b',"x":"' + chance.choice([b"\\ud800", b"\xff", b"\\u0000", b"\t"]) + b'"}',
            b"\xef\xbb\xbf" + data,
            data.decode("utf-8", errors="replace").encode("utf-16"),
            data[:-1] + b',"x":"' + b"y" * (2 << 20) + b'"}',
            b"",
        ]
    )


def _body_schema(document: dict[str, Any], path: str) -> Any:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return _resolved(body, document)


def _resolved(node: Any, document: dict[str, Any]) -> Any:
    """A schema with the document's components written out."""
    if isinstance(node, dict):
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return _resolved(document["components"]["schemas"][name], document)
        return {key: _resolved(value, document) for key, value in node.items()}
    return [_resolved(item, document) for item in node] if isinstance(node, list) else node


def answer_schema(document: dict[str, Any], path: str, method: str = "post", status: str = "200") -> Any:
    """The schema of a route's JSON answer."""
    content = document["paths"][path][method]["responses"][status]["content"]
    return _resolved(content["application/json"]["schema"], document)


def chunk_schema(document: dict[str, Any], path: str) -> Any:
    """The schema of a stream's chunks."""
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    return _resolved(content["text/event-stream"]["schema"]["x-chunk"], document)
