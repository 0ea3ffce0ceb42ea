"""Text or ids as a client sends them: each named by its path, checked before it costs anything."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import RequestError
from llm.tokenizer import ByteTokenizer
from server.api.completions import UNBUILT, CompletionRequest
from server.api.embeddings import EmbeddingRequest
from server.api.fields import Schema, component, parse
from server.api.inputs import Input, each, encode_text, off_loop, to_ids
from server.api.tokenize import TokenizeChatRequest
from server.errors import ApiError
from tests.fakes import ScriptedModel
from tests.server.wire import app_of, ask, call


class Request(Schema):
    """Something with an input."""

    text: Input


@pytest.mark.parametrize(
    ("sent", "listed"),
    [
        ("", [("text", "")]),
        ("ab", [("text", "ab")]),
        (["ab"], [("text[0]", "ab")]),
        (["ab", ""], [("text[0]", "ab"), ("text[1]", "")]),
        ([0, 1], [("text", [0, 1])]),
        ([[0]], [("text[0]", [0])]),
        ([[0], [1, 2]], [("text[0]", [0]), ("text[1]", [1, 2])]),
    ],
)
def test_the_four_forms(sent: Any, listed: list[tuple[str, Any]]) -> None:
    assert each(parse(Request, {"text": sent}).text, "text") == listed


@pytest.mark.parametrize(
    ("sent", "param", "code"),
    [
        (None, "text", "invalid_type"),
        (5, "text", "invalid_type"),
        ({}, "text", "invalid_type"),
        (True, "text", "invalid_type"),
        ([], "text", "invalid_value"),
        ([[]], "text[0]", "invalid_value"),
        ([1.5], "text[0]", "invalid_type"),
        ([True], "text[0]", "invalid_type"),
        ([1, "a"], "text[1]", "invalid_type"),
        (["a", 1], "text[1]", "invalid_type"),
        ([[1], 1], "text[1]", "invalid_type"),
        ([[1], ["a"]], "text[1][0]", "invalid_type"),
        ([-1], "text[0]", "invalid_value"),
        ([[1]] * 65, "text", "invalid_value"),
    ],
)
def test_anything_else_is_named(sent: Any, param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(Request, {"text": sent})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert "\n" not in caught.value.message


def test_the_schema_of_the_document_has_all_four() -> None:
    forms = component(Request)["properties"]["text"]["oneOf"]
    assert [form["type"] for form in forms] == ["string", "array", "array", "array"]


def ids_of(model: ScriptedModel, one: str | list[int], **options: Any) -> list[int]:
    return asyncio.run(to_ids(model, one, "text[3]", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("one", ["a" * 9, [97] * 9])
def test_what_no_context_can_hold_is_refused_before_tokenising(one: str | list[int]) -> None:
    class NeverAsked(ByteTokenizer):
        def encode(self, text: str, *, continued: bool = False) -> list[int]:
            raise AssertionError

    model = ScriptedModel(max_model_len=8)
    model.tokenizer = NeverAsked()
    with pytest.raises(RequestError, match=r"text\[3\].* 9 .* 8 ") as caught:
        ids_of(model, one)
    assert (caught.value.param, caught.value.code) == ("text[3]", "context_length_exceeded")


def test_ids_beyond_the_vocabulary_are_named() -> None:
    with pytest.raises(ApiError, match=r"text\[3\]\[1\] must be a token id below 257, .* got 257"):
        ids_of(ScriptedModel(), [256, 257, 999])


def test_text_begins_as_the_model_was_trained_unless_told_otherwise() -> None:
    class Beginning(ByteTokenizer):
        begin_of_text: int | None = 256

    model = ScriptedModel()
    model.tokenizer = Beginning()
    assert ids_of(model, "a") == [256, 97]
    assert ids_of(model, "a", begins=False) == [97]
    assert ids_of(model, [97]) == [97], "ids are the client's own affair"


def test_long_work_leaves_the_event_loop() -> None:
    async def where(size: int) -> bool:
        return await off_loop(size, lambda: threading.current_thread() is threading.main_thread())

    assert asyncio.run(where(100)) and not asyncio.run(where(1 << 20))
    model: Any = ScriptedModel()
    assert asyncio.run(encode_text(model, "a" * 100_000)) == [97] * 100_000


PATHS = ["/v1/completions", "/v1/embeddings", "/v1/score", "/tokenize", "/detokenize"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(
    {
        *CompletionRequest.model_fields,
        *EmbeddingRequest.model_fields,
        *TokenizeChatRequest.model_fields,
        *UNBUILT,
        "tokens",
        "dimensions",
    }
)
WHOLE: dict[str, Any] = {"prompt": "hi", "input": "hi", "tokens": [1]}
APP = app_of()


@settings(max_examples=200)
@given(
    path=st.sampled_from(PATHS),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    whole=st.booleans(),
)
def test_no_json_is_our_fault(path: str, fields: dict[str, Any], whole: bool) -> None:
    answer = asyncio.run(ask(APP, path, json.dumps((WHOLE if whole else {}) | fields).encode()))
    assert answer.status == 200 or 400 <= answer.status < 500, answer.body
    if answer.status != 200:
        assert answer.error["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_answered_in_shape(path: str, method: str) -> None:
    assert call(APP, path, b"{}", method).error["code"] == "method_not_allowed"
