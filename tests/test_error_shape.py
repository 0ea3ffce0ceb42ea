"""Whatever is wrong, the answer is OpenAI's error object, with a 4xx when the client is at fault."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.chat import IGNORED, UNBUILT, ChatRequest
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, Answer, app_of, ask, call

APP = app_of()
ROUTES = [CHAT, "/v1/models", "/v1/models/x", "/apply-template", "/health", "/version", "/openapi.json", "/"]
ROOT = Path(__file__).parent.parent

HUGE = b'{"messages":[{"role":"user","content":"' + b"x" * (2 << 20) + b'"}]}'
CASES: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/nowhere", None, 404, "route_not_found"),
    ("POST", "/chat/completions", {}, 404, "route_not_found"),
    ("POST", CHAT + "/", {}, 404, "route_not_found"),
    ("GET", CHAT, None, 405, "method_not_allowed"),
    ("DELETE", "/v1/models", None, 405, "method_not_allowed"),
    ("OPTIONS", CHAT, None, 405, "method_not_allowed"),
    ("POST", CHAT, b"", 400, "invalid_json"),
    ("POST", CHAT, b"{", 400, "invalid_json"),
    ("POST", CHAT, b"[1]", 400, "invalid_json"),
    ("POST", CHAT, b'{"temperature":NaN}', 400, "invalid_json"),
    ("POST", CHAT, b'{"temperature":1e309}', 400, "invalid_json"),
    ("POST", CHAT, b'{"a":' + b"[" * 99 + b"]" * 99 + b"}", 400, "invalid_json"),
    ("POST", CHAT, rb'{"messages":[{"role":"user","content":"\udead"}]}', 400, "invalid_value"),
    ("POST", CHAT, HUGE, 413, "request_too_large"),
    ("POST", CHAT, {}, 400, "missing_required_parameter"),
    ("POST", CHAT, {"messages": None}, 400, "invalid_type"),
    ("POST", CHAT, {"messages": []}, 400, "invalid_value"),
    ("POST", CHAT, {**HELLO, "model": "gpt-9"}, 404, "model_not_found"),
    ("POST", CHAT, {**HELLO, "model": 4}, 400, "invalid_type"),
    ("POST", CHAT, {**HELLO, "stream": 1}, 400, "invalid_type"),
    ("POST", CHAT, {**HELLO, "stream": "true"}, 400, "invalid_type"),
    ("POST", CHAT, {**HELLO, "n": True}, 400, "invalid_type"),
    ("POST", CHAT, {**HELLO, "n": 99}, 400, "invalid_value"),
    ("POST", CHAT, {**HELLO, "functions": [1]}, 400, "unsupported_parameter"),
    ("POST", CHAT, {**HELLO, "tools": [1]}, 400, "invalid_type"),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "x" * 600}]}, 400, "context_length_exceeded"),
    ("POST", "/apply-template", {}, 400, "missing_required_parameter"),
    ("POST", "/apply-template", {**HELLO, "model": "gpt-9"}, 404, "model_not_found"),
    ("GET", "/v1/models/gpt-9", None, 404, "model_not_found"),
    ("GET", "/v1/models/%00", None, 404, "model_not_found"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), CASES)
def test_each_case_has_its_status_and_code(method: str, path: str, body: Any, status: int, code: str) -> None:
    answer = call(APP, path, body, method)
    assert answer.status == status, answer.body
    assert answer.error["code"] == code
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"] and answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"])
def test_every_method_on_every_route_is_answered_in_shape(method: str, path: str) -> None:
    check(call(APP, path, b"{}", method))


def check(answer: Answer) -> None:
    """A 2xx, or a 4xx in shape: these are all the client's doing."""
    assert answer.status == 200 or 400 <= answer.status < 500, answer.body
    if answer.status != 200:
        assert answer.error["message"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.sampled_from(["user", "assistant", "system", "text", "default", "drop_oldest"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["role", "content", "type", "text"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
NAMES = sorted({*ChatRequest.model_fields, *UNBUILT, *(name for name in IGNORED if "." not in name)})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]) | JSON},
    optional={"content": st.text(max_size=9) | JSON, "name": JSON, "tool_calls": JSON},
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    body=BODIES,
    messages=st.lists(MESSAGE, max_size=3) | st.just(HELLO["messages"]),
    path=st.sampled_from([CHAT, "/apply-template"]),
)
def test_no_json_is_our_fault(body: dict[str, Any], messages: Any, path: str) -> None:
    for sent in (body, {**body, "messages": messages}):
        check(asyncio.run(ask(APP, path, json.dumps(sent).encode())))


@settings(max_examples=100, deadline=None)
@given(field=st.sampled_from(NAMES), value=JSON)
def test_no_value_of_a_known_field_is_our_fault(field: str, value: Any) -> None:
    answer = asyncio.run(ask(APP, CHAT, {**HELLO, field: value}))
    check(answer)
    if answer.status == 400 and answer.error["param"] is not None:
        assert answer.error["param"].startswith(field if field != "stream_options" else "stream")


@settings(max_examples=100, deadline=None)
@given(
    body=st.binary(max_size=64),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "content-length", "authorization", "x-request-id", "accept"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
        max_size=4,
    ),
)
def test_no_bytes_and_headers_are_our_fault(body: bytes, headers: dict[str, str]) -> None:
    check(asyncio.run(ask(APP, CHAT, body, headers=headers)))
    keyed = asyncio.run(ask(app_of(api_key=("k",)), CHAT, body, headers=headers))
    assert keyed.status == 401 or "k" in headers.get("authorization", "")


def test_the_server_goes_on_after_everything() -> None:
    model = ScriptedModel()
    app = app_of(model)
    for method, path, body, _, _ in CASES:
        call(app, path, body, method)
    assert call(app, CHAT, HELLO).status == 200
    assert (len(model.prompts), model.num_open, model.num_aborted) == (1, 0, 0)


def test_the_document_lists_every_code_and_no_other() -> None:
    source = "".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    used = set(re.findall(r'code="(\w+)"', source)) | set(
        re.findall(r'"(invalid_\w+|missing_\w+|\w+_parameter)"', source)
    )
    used -= {"invalid_request_error", "http_error"}
    listed = set(re.findall(r"^\| \d{3} \| `(\w+)` \|", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    assert used == listed
