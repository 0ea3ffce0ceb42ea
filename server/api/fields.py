"""A field is honoured, ignored and reported, or refused: the rules, not the list.

Each endpoint declares what it honours as a pydantic schema, and beside it which other fields it refuses
because ignoring them would change the meaning of the answer. Whatever is left is ignored, and named in a
header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from server.errors import field_error, invalid

IGNORED_HEADER = "x-ignored-params"
MAX_NAME = 64
MAX_HEADER = 1024

Neutral = Mapping[str, tuple[Any, ...]]
"""Field → the values that ask for nothing, and so pass where any other is refused or reported."""


class Schema(BaseModel):
    """A JSON object of a request: types as JSON has them (true is no number), unknown fields kept."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


S = TypeVar("S", bound=Schema)


def parse(schema: type[S], body: dict[str, Any]) -> S:
    """The body as `schema`.

    Raises:
        ApiError: 400 with the first field that is wrong.
    """
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise field_error(error) from None


def refuse_unbuilt(fields: Schema, unbuilt: Neutral, path: str = "") -> None:
    """Raise a 400 for the first field that asks for something in `unbuilt` that this server does not do."""
    for name, value in (fields.model_extra or {}).items():
        if name in unbuilt and not _asks_nothing(value, unbuilt[name]):
            raise invalid(
                f"{path}{name} is not supported by this server", path + name, "unsupported_parameter"
            )


def ignored(fields: Schema, neutral: Neutral, path: str = "") -> Iterator[str]:
    """Names of the fields nobody looked at, nested ones with their path: messages[].name."""
    for name, value in (fields.model_extra or {}).items():
        if not _asks_nothing(value, neutral.get(path + name, ())):
            yield path + name
    for name in type(fields).model_fields:
        for inner, place in _schemas(getattr(fields, name), path + name):
            yield from ignored(inner, neutral, f"{place}.")


def _schemas(value: Any, place: str) -> Iterator[tuple[Schema, str]]:
    """A field's value, or what its lists hold, where those are objects of ours."""
    if isinstance(value, Schema):
        yield value, place
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Schema | list):  # not a million ids
                yield from _schemas(item, f"{place}[]")


def report(names: Iterator[str], *, strict: bool) -> dict[str, str]:
    """The header that names what was ignored: sorted, safe, bounded; empty when nothing was.

    Raises:
        ApiError: 400, when the operator wants such requests refused.
    """
    unique = sorted({_safe(name) for name in names})
    if not unique:
        return {}
    text, shortened = "", False
    for name in unique:
        if len(text) + len(name) > MAX_HEADER - 8:
            shortened = True
            break
        text += f",{name}" if text else name
    text += ",..." if shortened else ""
    if strict:
        raise invalid(
            f"this server ignores, and --strict refuses: {text}", unique[0], "unsupported_parameter"
        )
    return {IGNORED_HEADER: text}


def _asks_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """null is not sent; otherwise one of the neutral values, of the same type (0 is not false)."""
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.\-\[\]]", "?", name[:MAX_NAME]) or "?"


def describe(schema: type[Schema]) -> dict[str, Any]:
    """The schema as an OpenAPI request body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": component(schema)}}}}


def component(schema: type[BaseModel]) -> dict[str, Any]:
    """JSON schema whose definitions are inlined: it stands alone anywhere in a document."""
    document = schema.model_json_schema()
    definitions = document.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return inline(definitions[node["$ref"].rpartition("/")[2]])
            closed = (
                {"additionalProperties": False} if "patternProperties" in node else {}
            )  # keys are checked
            return {key: inline(value) for key, value in node.items() if key != "discriminator"} | closed
        return [inline(item) for item in node] if isinstance(node, list) else node

    inlined = inline(document)
    assert isinstance(inlined, dict)
    return inlined
