"""An entry is one line, whoever wrote it; and no text of a prompt, a reply or a key is in it unasked."""

from __future__ import annotations

import json
import logging
import logging.config
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.logging import AccessFormatter

from llm.errors import StepFailed
from server.logs import Access, Json, Text, log_config, one_line
from server.request_id import current_request_id
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, app_of, call

ROOT = Path(__file__).parents[2]
SECRET = "xyzzy-plugh"
KEY = "sk-frobozz"


def record(message: str, *args: Any, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("causerie.server", logging.INFO, "f.py", 1, message, args, None)
    made.__dict__.update(more)
    return made


def raised(error: Exception) -> logging.LogRecord:
    made = record("it broke")
    try:
        raise error
    except type(error):
        made.exc_info = sys.exc_info()
    return made


HOSTILE = st.text() | st.sampled_from(
    ["\n", "a\r\nINFO:     forged", "\x1b[2J", "\x85", "\u2028", "\u202e", "\ud800"]
)


@given(HOSTILE)
def test_text_stays_in_its_line(text: str) -> None:
    written = Text("%(levelprefix)s %(message)s", use_colors=False).format(record("said %s.", text))
    assert written.startswith("INFO:     said ") and written.endswith(".")
    assert written.isprintable() and written.splitlines() == [written]


@given(HOSTILE)
def test_json_is_one_object_a_line_and_gives_the_text_back(text: str) -> None:
    written = Json().format(record("said %s.", text))
    assert written.isascii() and written.splitlines() == [written]
    assert json.loads(written)["message"] == f"said {text}."


@given(st.text())
def test_one_line_leaves_printable_text_alone(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line(text) == text or not text.isprintable()


def test_an_entry_of_json() -> None:
    made = record("up", fields={"status": 200})
    made.created = 1769851800.125
    token = current_request_id.set("req_1")
    try:
        entry = json.loads(Json().format(made))
    finally:
        current_request_id.reset(token)
    assert entry == {
        "ts": "2026-01-31T09:30:00.125Z",
        "level": "info",
        "logger": "causerie.server",
        "message": "up",
        "request_id": "req_1",
        "status": 200,
    }
    assert "request_id" not in json.loads(Json().format(record("up")))


def test_a_traceback_cannot_look_like_an_entry() -> None:
    made = raised(ValueError("bad\nINFO:     forged\x1b[31m"))
    first, *rest = Text("%(levelprefix)s %(message)s", use_colors=False).format(made).split("\n")
    assert first == "INFO:     it broke" and len(rest) > 3
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    entry = json.loads(Json().format(raised(ValueError("bad\nline"))))
    assert entry["message"] == "it broke" and entry["exception"].endswith("ValueError: bad\nline")


def test_access_lines_have_no_query_string() -> None:
    made = record('%s - "%s %s HTTP/%s" %d', "1.2.3.4\x1b:5", "GET", f"/health?key={KEY}", "1.1", 200)
    assert Access().filter(made)
    plain = AccessFormatter('%(client_addr)s "%(request_line)s" %(status_code)s', use_colors=False)
    assert plain.format(made) == r'1.2.3.4\x1b:5 "GET /health HTTP/1.1" 200 OK'
    entry = json.loads(Json().format(made))
    assert {name: entry[name] for name in ("client", "method", "path", "status")} == {
        "client": r"1.2.3.4\x1b:5",
        "method": "GET",
        "path": "/health",
        "status": 200,
    }
    assert KEY not in str(entry)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("level", ["critical", "error", "warning", "info", "debug", "trace"])
def test_every_level_and_form_configures(level: str, form: str, logging_as_before: None) -> None:
    logging.config.dictConfig(log_config(level, form))
    assert logging.getLogger("uvicorn.access").level == (
        5 if level == "trace" else getattr(logging, level.upper())
    )
    assert logging.getLogger("causerie.request").isEnabledFor(logging.INFO)
    assert not logging.getLogger("sse_starlette.sse").isEnabledFor(logging.DEBUG), "it would log replies"


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """The process's log is everybody's: put it back."""
    loggers = [logging.getLogger(name) for name in (None, *log_config("info")["loggers"])]
    before = [(one, one.handlers[:], one.filters[:], one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, filters, level, propagate in before:
        one.handlers, one.filters, one.propagate = handlers, filters, propagate
        one.setLevel(level)


BODIES: list[Any] = [
    {"messages": [{"role": "user", "content": SECRET}]},
    {"messages": [{"role": "user", "content": SECRET}], "stream": True},
    {"messages": [{"role": SECRET, "content": SECRET}]},
    {"messages": SECRET},
    {"messages": [{"role": "user", "content": SECRET * 500}]},
    {"messages": [{"role": "user", "content": "hi"}], "model": SECRET},
    {"messages": [{"role": "user", "content": "hi"}], "temperature": SECRET},
    {"messages": [{"role": "user", "content": "hi"}], "logit_bias": {SECRET: 1}},
    {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": SECRET}},
    {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"regex": f"({SECRET}"}},
    {"messages": [{"role": "user", "content": "hi"}], SECRET: 1},
    {"prompt": SECRET},
    {"prompt": [SECRET, SECRET], "stream": True},
    {"prompt": {SECRET: SECRET}},
    {"input": SECRET},
    {"tokens": [SECRET]},
    SECRET.encode(),
    b'{"messages": "' + SECRET.encode(),
]


def answered(app: Any, paths: list[str]) -> set[int]:
    """Statuses of every body sent to every path, with a secret key."""
    statuses = set()
    for path in paths:
        for body in (None, *BODIES):
            for key in (KEY, f"{KEY}-wrong"):
                statuses.add(call(app, path, body, authorization=f"Bearer {key}").status)
    return statuses


@pytest.mark.parametrize(
    ("model", "strict"),
    [
        (ScriptedModel(f"{SECRET} said", " the model", max_model_len=4096), False),
        (ScriptedModel(SECRET, StepFailed("it broke"), "never"), True),
    ],
    ids=["replies", "failures"],
)
def test_no_route_logs_a_prompt_a_reply_or_a_key(
    model: ScriptedModel, strict: bool, caplog: pytest.LogCaptureFixture, logging_as_before: None
) -> None:
    logging.getLogger("sse_starlette").setLevel(log_config("debug")["loggers"]["sse_starlette"]["level"])
    caplog.set_level(logging.DEBUG)
    app = app_of(model, api_key=(KEY,), log_requests=True, strict=strict)
    paths = list(call(app, "/openapi.json", authorization=f"Bearer {KEY}").json["paths"])
    statuses = answered(app, [*paths, f"/{SECRET}", f"/v1/models/{SECRET}"])
    assert {200, 400, 401, 404, 405} <= statuses and (500 in statuses) is strict
    ours = [entry for entry in caplog.records if entry.name.startswith(("causerie", "llm", "server"))]
    assert len(ours) > 100
    for form in (Text("%(message)s", use_colors=False), Json()):
        for entry in caplog.records:
            written = form.format(entry)
            assert SECRET not in written and KEY not in written, written


SERVER = """
import sys
from server.__main__ import listen_on, run
from server.logs import configure
from server.settings import Settings
from tests.fakes import ScriptedModel
settings = Settings(log_format=sys.argv[1], log_requests=True, uvicorn_log_level="debug")
configure(settings.uvicorn_log_level, settings.log_format)
with listen_on("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.exit(run(settings, [ScriptedModel("xyzzy-plugh")], listener))
"""


def test_every_line_of_a_server_is_json() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, "json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        content = {"messages": [{"role": "user", "content": SECRET}]}
        for body in (content, content | {"stream": True}, {"messages": SECRET}):
            httpx.post(f"{url}{CHAT}?api_key={KEY}", json=body, headers={"x-request-id": "mine"}, timeout=30)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert SECRET not in out + err and KEY not in out + err
    entries = [json.loads(line) for line in (out + err).splitlines()]
    assert {"ts", "level", "logger", "message"} <= set.intersection(*(set(entry) for entry in entries))
    mine = [entry for entry in entries if entry.get("request_id") == "mine"]
    assert [e["status"] for e in mine if e["logger"] == "causerie.request"] == [200, 200, 400]
    assert [e["path"] for e in mine if e["logger"] == "uvicorn.access"] == [CHAT] * 3
