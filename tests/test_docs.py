"""What the documents say is what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from server.api import adapters, chat, completions, embeddings, score
from server.api.adapters import LoadAdapterRequest, UnloadAdapterRequest
from server.api.chat import ChatRequest
from server.api.completions import CompletionRequest
from server.api.conversation import UNBUILT_MESSAGE
from server.api.embeddings import EmbeddingRequest
from server.api.fields import Schema
from server.api.score import ScoreRequest
from server.api.tokenize import TokenizeChatRequest, TokenizeRequest
from server.app import create_app
from server.settings import Settings
from tests.server.wire import CHAT, HELLO, app_of, call

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs/api.md").read_text()


def rows(section: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    body = API.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def fields_of(schema: type[Schema], path: str = "") -> Iterator[str]:
    """Every field of a request by its path in the document: messages[].content[].text."""
    for own_name, field in schema.model_fields.items():
        name = field.alias or own_name
        yield path + name
        for inner, is_list in nested(field.annotation):
            yield from fields_of(inner, f"{path}{name}{'[]' if is_list else ''}.")


def nested(annotation: object, in_list: bool = False) -> Iterator[tuple[type[Schema], bool]]:
    """Schemas inside an annotation, and whether they are items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        yield annotation, in_list
    for inner in get_args(annotation):
        yield from nested(inner, in_list or getattr(annotation, "__origin__", None) is list)


@dataclass(frozen=True)
class Fates:
    """What an endpoint's code says of its fields."""

    honoured: set[str]
    refused: set[str]
    ignored: set[str]


FATES = {
    "/v1/chat/completions": Fates(
        set(fields_of(ChatRequest)),
        {*chat.UNBUILT, *(f"messages[].{name}" for name in UNBUILT_MESSAGE)},
        set(chat.IGNORED),
    ),
    "/v1/completions": Fates(
        set(fields_of(CompletionRequest)), set(completions.UNBUILT), set(completions.IGNORED)
    ),
    "/v1/embeddings": Fates(set(fields_of(EmbeddingRequest)), set(embeddings.UNBUILT), set()),
    "/v1/score": Fates(set(ScoreRequest.model_fields), set(score.UNBUILT), set()),
    "/tokenize": Fates({*TokenizeRequest.model_fields, *TokenizeChatRequest.model_fields}, set(), set()),
}


def documented(path: str) -> list[tuple[str, str]]:
    """Every field with its fate, in order; a row may hold several."""
    table = rows(f"Fields of {path}")
    return [(name, row[1]) for row in table for name in re.findall("`([^`]+)`", row[0])]


@pytest.mark.parametrize("path", FATES)
def test_every_field_has_its_fate(path: str) -> None:
    for fate in ("honoured", "refused", "ignored"):
        assert {name for name, told in documented(path) if told == fate} == getattr(FATES[path], fate), fate


@pytest.mark.parametrize("path", FATES)
def test_no_field_has_two_fates(path: str) -> None:
    names = [name for name, _ in documented(path)]
    assert len(names) == len(set(names))
    assert {row[1] for row in rows(f"Fields of {path}")} <= {"honoured", "refused", "ignored"}
    assert rows(f"Fields of {path}")[-1][:2] == ["anything else", "ignored"]


def test_every_field_of_an_adapters_coming_has_its_fate() -> None:
    told = [(name, row[1]) for row in rows("Adapters") for name in re.findall("`([^`]+)`", row[0])]
    honoured = {name for name, fate in told if fate == "honoured"}
    assert honoured == {*LoadAdapterRequest.model_fields, *UnloadAdapterRequest.model_fields}
    assert [name for name, fate in told if fate == "refused"] == [*adapters.UNBUILT]


def test_routes() -> None:
    listed = {tuple(row[0].strip("`").split(" ", 1)) for row in rows("Routes")}
    document = call(app_of(), "/openapi.json").json
    built = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    renamed = {(method, path.replace("{id}", "{model_id}")) for method, path in listed}
    assert renamed == built | {("GET", "/openapi.json")}


def test_headers() -> None:
    listed = {row[0].strip("`") for row in rows("Headers")}
    source = "".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    ours = set(re.findall(r'"(x-[a-z-]+)"', source)) | {"retry-after"}
    not_the_apis = {"x-accel-buffering", "x-chunk", "x-content-type-options"}  # a key of OpenAPI; the page's
    assert listed == ours - not_the_apis


def test_flags_named_in_the_document_exist() -> None:
    known = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    switches = {name for name, field in Settings.model_fields.items() if field.annotation is bool}
    known |= {f"--no-{name.replace('_', '-')}" for name in switches}
    assert set(re.findall(r"--[a-z][a-z-]+", API)) <= known


def test_the_example_of_the_module_works() -> None:
    assert create_app(Settings(), None) is not None
    assert call(app_of(), CHAT, {**HELLO, "stream": True}).status == 200
