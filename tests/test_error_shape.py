"""Whatever is wrong, the answer is OpenAI's error object, with a 4xx when the client is at fault.

Here: routes and methods, keys, an engine that stops or fails, and anything at all. What is wrong with a body
is in tests/test_errors_table.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import (
    DeadlinePassed,
    EngineStopped,
    OutOfMemory,
    QueueTimeout,
    ReaderTooSlow,
    StepFailed,
)
from server.api.chat import IGNORED, UNBUILT, ChatRequest
from server.api.completions import CompletionRequest
from server.api.embeddings import EmbeddingRequest
from server.api.tokenize import DetokenizeRequest
from tests.fakes import ScriptedModel, tiny_model, tiny_text_model
from tests.server.wire import CHAT, HELLO, Answer, app_of, ask, call, live
from tests.test_errors_table import BASE, COMPUTING, GENERATING, READING, TABLES, check, refused

ROOT = Path(__file__).parent.parent
APP = app_of()
ROUTES = [*BASE, *READING, "/v1/models/x", "/health", "/"]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]
NOWHERE = [
    *(("GET", path) for path in ("/nowhere", "/v1", "/v1/", "//", "/docs", "/redoc", "/v1/models/")),
    *(("POST", path) for path in ("/chat/completions", "/v1/chat", CHAT + "/", "/v1/tokenize", "/%00")),
]


@pytest.mark.parametrize(("method", "path"), NOWHERE)
def test_no_such_route(method: str, path: str) -> None:
    code, param = ("model_not_found", "model") if path == "/v1/models/" else ("route_not_found", None)
    check(call(APP, path, b"{}", method), 404, code, param)


@pytest.mark.parametrize("path", [*BASE, *READING])
def test_no_such_method(path: str) -> None:
    allowed = "POST" if path in BASE else "GET"
    for method in set(METHODS) - {allowed}:
        answer = call(APP, path, b"{}", method)
        check(answer, 405, "method_not_allowed", None)
        assert allowed in answer.headers["allow"].split(", ")


@pytest.mark.parametrize("model_id", ["gpt-9", "%00", "a/b", "..", "x" * 2000, "é", "\x7f"])
def test_no_such_model(model_id: str) -> None:
    check(call(APP, f"/v1/models/{model_id}"), 404, "model_not_found", "model")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_route_is_answered_in_shape(method: str, path: str) -> None:
    is_in_shape(call(APP, path, b"{}", method))


def is_in_shape(answer: Answer) -> None:
    """A 2xx, or a 4xx in shape: these are all the client's doing."""
    assert answer.status == 200 or 400 <= answer.status < 500, answer.body
    if answer.status != 200:
        assert answer.error["message"]


@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer wrong", "Basic a2V5", "key", "Bearer key key"])
@pytest.mark.parametrize("path", [*BASE, *READING, "/nowhere"])
def test_no_key_or_a_wrong_one(path: str, sent: str | None) -> None:
    model = ScriptedModel()
    app = app_of(model, api_key=("key",))
    answer = call(app, path, BASE.get(path), **({} if sent is None else {"authorization": sent}))
    check(answer, 401, "invalid_api_key", None)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"key key" not in answer.body and model.prompts == []


FAILURES = [
    (EngineStopped("cuda:0 at 0x7f is gone"), 503, "engine_stopped"),
    (StepFailed("cuda:0 at 0x7f is out of memory"), 500, "step_failed"),
    (OutOfMemory("cuda:0 at 0x7f is out of memory"), 503, "out_of_memory"),
    (QueueTimeout("no turn came within 30 s"), 503, "queue_timeout"),
    (DeadlinePassed("too long"), 504, "deadline_exceeded"),
    (ReaderTooSlow("nobody reads"), 408, "reader_too_slow"),
    (ValueError("/secret/path: 'hello' at 0x7f"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), FAILURES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", COMPUTING)
def test_a_failure_before_the_first_token_is_a_response(
    path: str, stream: bool, error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(ScriptedModel(error, "never"))
    with caplog.at_level(logging.INFO):
        answer = call(app, path, BASE[path] | ({"stream": True} if stream else {}), x_request_id="trace-7")
    check(answer, status, code, None)
    assert answer.headers.get("retry-after", "").isdigit() == (status == 503)
    assert answer.headers.get("x-should-retry") == (None if status == 503 else "false")
    assert answer.headers["x-request-id"] == "trace-7"
    assert ("trace-7" in answer.error["message"]) == (status == 500 or code == "out_of_memory")
    assert not re.search(rb"secret|hello|0x7f|cuda", answer.body), "nothing of ours leaks"
    assert "trace-7" in caplog.text and str(error) in caplog.text, "the log has it"


@pytest.mark.parametrize(("error", "status", "code"), FAILURES)
@pytest.mark.parametrize("path", GENERATING)
def test_a_failure_after_the_first_token_is_a_frame(
    path: str, error: Exception, status: int, code: str
) -> None:
    answer = call(app_of(ScriptedModel("one", error, "never")), path, BASE[path] | {"stream": True})
    assert answer.status == 200
    *_, last = answer.chunks
    assert (last["error"]["code"], last["error"]["param"]) == (code, None)
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert not re.search(rb"secret|0x7f|cuda", answer.body)


HEAVY = "(((((((a?){9}){9}){9}){9}){9}){9})"
"""Compiles, and after a few tokens needs more states than a reply may have."""


def test_a_grammar_that_turns_out_too_heavy_is_the_clients_fault_and_nobody_elses() -> None:
    model = tiny_text_model(tiny_model(num_positions=256), max_model_len=256)
    asked = {**HELLO, "guided_regex": HEAVY, "max_tokens": 40, "ignore_eos": True}
    with live(app_of(model)) as url, httpx.Client(base_url=url, timeout=60) as client:
        whole = client.post(CHAT, json=asked)
        assert whole.status_code == 400, whole.text
        assert "the reply's grammar cannot go on" in whole.json()["error"]["message"]
        frames = client.post(CHAT, json={**asked, "stream": True}).text
        assert "the reply's grammar cannot go on" in frames and frames.endswith("data: [DONE]\n\n")
        assert client.post(CHAT, json={**HELLO, "max_tokens": 4}).status_code == 200
        (engine,) = model.stats()
        assert engine.num_free_blocks == engine.num_blocks


@pytest.mark.parametrize("path", BASE)
def test_strict_refuses_what_is_ignored(path: str) -> None:
    model = ScriptedModel()
    row = refused(path, "unsupported_parameter", "colour", colour="blue")
    check(call(app_of(model, strict=True), row[0], row[1]), *row[2:])
    assert model.prompts == []
    assert call(app_of(), path, row[1]).headers["x-ignored-params"] == "colour"


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-big: " + b"x" * (17 << 10) + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + b"x-many: 1\r\n" * 2000 + b"\r\n",
        b"GET /" + b"x" * (17 << 10) + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"\x16\x03\x01 hello\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_or_has_too_many_headers_is_a_plain_400(head: bytes, live_server: str) -> None:
    address = urlsplit(live_server)
    with socket.create_connection((address.hostname, address.port or 0), timeout=60) as client:
        client.sendall(head)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 4")
    assert httpx.get(live_server + "/health").status_code == 200


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
SCHEMAS = (ChatRequest, CompletionRequest, EmbeddingRequest, DetokenizeRequest)
FIELDS = {name for schema in SCHEMAS for name in schema.model_fields}
NAMES = sorted({*FIELDS, *UNBUILT, *(name for name in IGNORED if "." not in name)})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]) | JSON},
    optional={"content": st.text(max_size=9) | JSON, "name": JSON, "tool_calls": JSON},
)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    body=BODIES,
    messages=st.lists(MESSAGE, max_size=3) | st.just(HELLO["messages"]),
    path=st.sampled_from(list(BASE)),
)
def test_no_json_is_our_fault(body: dict[str, Any], messages: Any, path: str) -> None:
    for sent in (body, {**body, "messages": messages}, {**BASE[path], **body}):
        is_in_shape(asyncio.run(ask(APP, path, json.dumps(sent).encode())))


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(list(BASE)), field=st.sampled_from(NAMES), value=JSON)
def test_no_value_of_a_known_field_is_our_fault(path: str, field: str, value: Any) -> None:
    answer = asyncio.run(ask(APP, path, {**BASE[path], field: value}))
    is_in_shape(answer)
    if answer.status == 400 and answer.error["param"] is not None and path != "/tokenize":
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
    is_in_shape(asyncio.run(ask(APP, CHAT, body, headers=headers)))
    keyed = asyncio.run(ask(app_of(api_key=("k",)), CHAT, body, headers=headers))
    assert keyed.status == 401 or "k" in headers.get("authorization", "")


def test_the_document_lists_every_code_and_no_other() -> None:
    source = "".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    used = set(re.findall(r'code="(\w+)"', source)) | set(
        re.findall(r'"(invalid_\w+|missing_\w+|\w+_parameter)"', source)
    )
    used -= {"invalid_request_error", "http_error"}
    assert used == {code for _, code in documented()}


MET_ELSEWHERE = {
    (400, "invalid_http"),
    (403, "adapter_loading_off"),
    (403, "admin_key_required"),
    (403, "host_not_allowed"),
    (403, "origin_not_allowed"),
    (408, "request_timeout"),
    (429, "concurrency_limit_exceeded"),
    (429, "queue_full"),
    (429, "rate_limit_exceeded"),
    (431, "headers_too_large"),
    (503, "model_loading"),
    (503, "server_draining"),
    (503, "too_many_connections"),
}
"""By tests/server/test_{adapter_routes,connection,cors,limits,lifecycle}.py."""


def test_what_is_met_elsewhere_is() -> None:
    tests = "".join(
        (ROOT / f"tests/server/test_{name}.py").read_text()
        for name in ("adapter_routes", "connection", "cors", "limits", "lifecycle")
    )
    assert not {code for _, code in MET_ELSEWHERE if f'"{code}"' not in tests}


def test_the_tables_have_every_row_of_the_document() -> None:
    met = {(status, code) for table in TABLES for _, _, status, code, _ in table()}
    met |= {(status, code) for _, status, code in FAILURES}
    met |= {(401, "invalid_api_key"), (404, "route_not_found"), (405, "method_not_allowed")}
    met |= MET_ELSEWHERE
    assert met == documented()


def documented() -> set[tuple[int, str]]:
    text = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    return {(int(status), code) for status, codes in rows for code in re.findall(r"\w+", codes)}
