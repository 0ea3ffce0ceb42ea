"""Fields that say what form a reply has → a compiled grammar. Shared by chat and completions.

One form a request: `response_format` (OpenAI's), `structured_outputs` (vLLM's) or its older `guided_*`
fields. A grammar is compiled in a worker thread before anything is computed for the request; the model keeps
what it compiled last.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from llm.grammar import Grammar, Grammars, GrammarSpec
from server.api.fields import Neutral, Schema
from server.errors import invalid

MAX_SOURCE_CHARS = 64 << 10
MAX_CHOICES = 1024
COMPILE_SECONDS = 10.0

UNBUILT_FORMS: Neutral = {"grammar": ("",), "json_schema": ({},), "regex": ("",), "ebnf": ("",)}
"""Other servers' names for a form: a reply without it would be taken for one that has it."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Source = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_CHARS)]


def _kind_of_schema(value: Any) -> str:
    return f"<{type(value).__name__}>"


JsonSchema = Annotated[
    Annotated[dict[str, Any], Tag("<dict>")] | Annotated[bool, Tag("<bool>")],
    Discriminator(
        _kind_of_schema,
        custom_error_type="schema_type",
        custom_error_message="must be a JSON schema: an object, true or false",
    ),
]
SchemaText = Annotated[
    Annotated[dict[str, Any], Tag("<dict>")]
    | Annotated[bool, Tag("<bool>")]
    | Annotated[Source, Tag("<str>")],
    Discriminator(
        _kind_of_schema,
        custom_error_type="schema_type",
        custom_error_message="must be a JSON schema, or its text",
    ),
]
Choices = Annotated[list[Source], Field(min_length=1, max_length=MAX_CHOICES)]


class JsonSchemaFormat(Schema):
    """A schema under a name; `strict` or not, replies match it."""

    model_config = ConfigDict(validate_by_name=False)

    name: Name
    schema_: JsonSchema | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Schema):
    """OpenAI's way to ask for JSON; `schema` beside `json_object` is llama.cpp's."""

    model_config = ConfigDict(validate_by_name=False)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")


class StructuredOutputs(Schema):
    """vLLM's way; exactly one of these."""

    model_config = ConfigDict(validate_by_name=False)

    json_: SchemaText | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = None


class StructuredFields(Schema):
    """What every generating endpoint takes."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaText | None = None
    guided_regex: Source | None = None
    guided_choice: Choices | None = None
    guided_grammar: Source | None = None


def grammar_spec(fields: StructuredFields) -> GrammarSpec | None:
    """What the reply has to match, or None for text.

    Raises:
        ApiError: two forms at once, or one that is not whole.
    """
    specs = [spec for spec in (_of_format(fields), *_of_outputs(fields), *_of_guided(fields)) if spec]
    if len(specs) > 1:
        names = " and ".join(spec.param for spec in specs[:2])
        raise invalid(f"{names} are given: a reply can have one form only", specs[1].param)
    return specs[0] if specs else None


async def compile_grammar(grammars: Grammars, find_spec: Callable[[], GrammarSpec], param: str) -> Grammar:
    """The form, ready to be followed. All of the work is done in a worker thread.

    Args:
        grammars: the model's.
        find_spec: says what the form is; the schemas of 64 tools alone take a tenth of a second.
        param: the field that asks for it.

    Raises:
        ApiError, RequestError: it cannot be compiled, or not in time.
    """
    try:
        async with asyncio.timeout(COMPILE_SECONDS):
            return await asyncio.to_thread(lambda: grammars.compile(find_spec()))
    except TimeoutError:
        message = f"{param} takes longer than {COMPILE_SECONDS:g} s to compile; make it simpler"
        raise invalid(message, param) from None


def _of_format(fields: StructuredFields) -> GrammarSpec | None:
    wanted = fields.response_format
    if wanted is not None and wanted.schema_ is not None and wanted.type != "json_object":
        raise invalid("response_format.schema is only for type json_object", "response_format.schema")
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        if wanted.schema_ is not None:
            return _json_spec(wanted.schema_, "response_format.schema")
        return GrammarSpec("json_object", "", "response_format")
    path = "response_format.json_schema"
    if wanted.json_schema is None:
        raise invalid(f"{path} is required for type json_schema", path, "missing_required_parameter")
    if wanted.json_schema.schema_ is None:
        raise invalid(f"{path}.schema is required", f"{path}.schema", "missing_required_parameter")
    return _json_spec(wanted.json_schema.schema_, f"{path}.schema")


def _of_outputs(fields: StructuredFields) -> list[GrammarSpec]:
    wanted, path = fields.structured_outputs, "structured_outputs"
    if wanted is None:
        return []
    specs = _specs(wanted.json_, wanted.regex, wanted.choice, wanted.grammar, f"{path}.")
    if wanted.json_object:
        specs.append(GrammarSpec("json_object", "", f"{path}.json_object"))
    if not specs:
        raise invalid(f"{path} must have one of json, json_object, regex, choice and grammar", path)
    return specs


def _of_guided(fields: StructuredFields) -> list[GrammarSpec]:
    return _specs(
        fields.guided_json, fields.guided_regex, fields.guided_choice, fields.guided_grammar, "guided_"
    )


def _specs(
    schema: JsonSchema | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
    path: str,
) -> list[GrammarSpec]:
    specs: list[GrammarSpec] = []
    if schema is not None:
        specs.append(_json_spec(schema, f"{path}json"))
    if regex is not None:
        specs.append(GrammarSpec("regex", regex, f"{path}regex"))
    if choice is not None:
        specs.append(GrammarSpec("choice", _dump(choice), f"{path}choice"))
    if grammar is not None:
        specs.append(GrammarSpec("grammar", grammar, f"{path}grammar"))
    return specs


def _json_spec(schema: JsonSchema | str, path: str) -> GrammarSpec:
    source = schema if isinstance(schema, str) else _dump(schema)
    if len(source.encode()) > MAX_SOURCE_CHARS:
        raise invalid(f"{path} must be at most {MAX_SOURCE_CHARS} bytes of JSON, got {len(source)}", path)
    return GrammarSpec("json_schema", source, path)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
