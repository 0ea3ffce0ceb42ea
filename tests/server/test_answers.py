"""Every answer is counted once, under a label that no client can choose, and has its line if it is wanted."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from server.answers import MAX_TEXT, RequestLine, log_request
from tests.fakes import Gate, ScriptedModel
from tests.server.wire import CHAT, HELLO, Connection, app_of, ask, call

LOGGER = "causerie.request"


def counted(app: FastAPI) -> dict[tuple[str, str, str], int]:
    """(method, route, status) → responses."""
    body = app.state.metrics.render()[0].decode()
    lines = [line for line in body.splitlines() if line.startswith("causerie:http_requests_total{")]
    found = {}
    for line in lines:
        labels, value = line[line.index("{") + 1 :].rsplit("} ", 1)
        told = dict(part.split("=", 1) for part in labels.replace('"', "").split(","))
        found[told["method"], told["route"], told["status"]] = int(float(value))
    return found


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/health", "/health", 200),
        ("HEAD", "/health", "/health", 200),
        ("GET", "/v1/models/scripted", "/v1/models/{model_id}", 200),
        ("GET", "/v1/models/no/such/model", "/v1/models/{model_id}", 404),
        ("GET", "/openapi.json", "/openapi.json", 200),
        ("GET", CHAT, CHAT, 405),
        ("POST", CHAT, CHAT, 400),
        ("GET", "/secret", "unmatched", 404),
        ("GET", "/v1/models/", "/v1/models/{model_id}", 404),
        ("GET", "/healthz", "unmatched", 404),
        ("PATCH", "/secret", "unmatched", 404),
        ("GET", "/", "/", 200),
        ("PATCH", "/", "/", 404),
        ("GET", "/web/nowhere", "/web/{file}", 404),
    ],
)
def test_a_response_is_counted_under_its_routes_template(
    method: str, path: str, route: str, status: int
) -> None:
    app = app_of()
    assert call(app, path, method=method).status == status
    assert counted(app) == {(method, route, str(status)): 1}


def test_what_is_refused_before_it_reaches_a_route_is_counted_under_it() -> None:
    app = app_of(api_key=("k",))
    for path in ("/v1/models/a/b", CHAT, "/openapi.json", "/nowhere"):
        assert call(app, path).status == 401
    routes = ("/v1/models/{model_id}", CHAT, "/openapi.json", "unmatched")
    assert counted(app) == {("GET", route, "401"): 1 for route in routes}


def test_a_client_makes_no_new_series() -> None:
    app = app_of()
    for i in range(20):
        call(app, f"/{i}")
        call(app, f"/v1/models/{i}")
        call(app, "/health", method=f"TRY{i}")
    assert sum(counted(app).values()) == 60
    assert len(counted(app)) == 3
    assert {method for method, _, _ in counted(app)} == {"GET", "other"}


def test_an_error_nobody_foresaw_is_counted() -> None:
    app = app_of(ScriptedModel(ZeroDivisionError(), "never"))
    assert call(app, CHAT, HELLO).status == 500
    assert counted(app) == {("POST", CHAT, "500"): 1}


def test_a_stream_is_counted_when_its_headers_leave() -> None:
    async def run() -> None:
        gate = Gate()
        app = app_of(ScriptedModel("Hel", gate, "lo"))
        connection = Connection(app, CHAT, json.dumps(HELLO | {"stream": True}).encode())
        async with connection.running():
            start = await connection.next()
            assert start is not None and start["status"] == 200
            assert counted(app) == {("POST", CHAT, "200"): 1}
            gate.open()

    asyncio.run(run())


Lines = list[dict[str, Any]]


def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The fields of every request's line so far."""
    return [record.fields for record in caplog.records if record.name == LOGGER]  # type: ignore[attr-defined]


def test_a_served_request_has_one_line_that_agrees_with_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = app_of(log_requests=True, api_key=("k",))
    for body in (HELLO | {"n": 2}, HELLO | {"stream": True}):
        answer = call(app, CHAT, body, authorization="Bearer k")
        line = lines(caplog)[-1]
        times = [line.pop(name) for name in ("queue_ms", "ttft_ms", "total_ms")]
        assert all(isinstance(time, float) and time >= 0 for time in times)
        num = body.get("n", 1)
        assert line == {
            "request_id": answer.headers["x-request-id"],
            "key": "key-1",
            "method": "POST",
            "route": CHAT,
            "status": 200,
            "model": "scripted",
            "prompt_tokens": 22,
            "completion_tokens": 3 * num,
            "finish": ",".join(["stop"] * num),
        }
    assert len(lines(caplog)) == 2


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        (CHAT, {}, {"authorization": "Bearer k"}, 400),
        (CHAT, HELLO, {}, 401),
        ("/nowhere", None, {"authorization": "Bearer k"}, 404),
    ],
)
def test_a_refused_request_has_a_line_with_what_there_is(
    path: str, body: Any, headers: dict[str, str], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    call(app_of(log_requests=True, api_key=("k",)), path, body, **headers)
    (line,) = lines(caplog)
    assert line["status"] == status and line.get("key") == ("key-1" if headers else None)
    assert not {"model", "prompt_tokens", "finish", "ttft_ms"} & set(line)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_left_has_a_line_that_says_so(streams: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def leave() -> None:
        app = app_of(ScriptedModel("Hel", Gate(), "lo"), log_requests=True)
        connection = Connection(app, CHAT, json.dumps(HELLO | {"stream": streams}).encode())
        async with connection.running():
            if streams:
                await connection.next()
            connection.close()

    asyncio.run(leave())
    (line,) = lines(caplog)
    assert (line["status"], line["finish"]) == (200 if streams else 499, "abort")
    assert line["completion_tokens"] == 1


@pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/metrics"])
def test_probes_and_scrapes_have_no_line(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call(app_of(log_requests=True), path)
    assert not lines(caplog)


def test_lines_are_there_only_when_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call(app_of(), CHAT, HELLO)
    call(app_of(log_prompts=True), CHAT, HELLO)
    assert not lines(caplog)


def test_prompts_and_replies_are_there_only_when_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call(app_of(log_requests=True), CHAT, HELLO)
    call(app_of(log_requests=True, log_prompts=True), CHAT, HELLO | {"n": 2, "stream": True})
    call(app_of(log_requests=True, log_prompts=True), "/v1/completions", {"prompt": ["a", "b"]})
    without, chat, batch = lines(caplog)
    assert "prompts" not in without and "replies" not in without
    assert chat["prompts"] == ["User: hello\nAssistant:"]
    assert chat["replies"] == ["Hello there."] * 2
    assert (batch["prompts"], batch["replies"]) == (["a", "b"], ["Hello there."] * 2)


def test_the_document_lists_every_field() -> None:
    document = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    table = document.split("| Field | Meaning |")[1].split("\n\n")[0]
    names = [name for row in table.splitlines()[2:] for name in re.findall("`(.*?)`", row.split("|")[1])]
    assert names == [field.name for field in fields(RequestLine)]


def line_of(**given: Any) -> RequestLine:
    return RequestLine(
        **{"request_id": "r", "key": None, "method": "GET", "route": "/", "status": 200} | given
    )


def test_long_texts_are_cut_and_say_so() -> None:
    said = line_of(prompts=("a" * MAX_TEXT, "b" * 9999)).fields()
    assert said["prompts"] == ["a" * MAX_TEXT, "b" * MAX_TEXT + "…"]


def test_a_line_reads_only_one_way(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a model is named and people write, words are those the server wrote."""
    caplog.set_level(logging.INFO)
    log_request(line_of(model='a b="c"\n', replies=("x status=500\n",), finish="stop"))
    (record,) = caplog.records
    assert record.getMessage() == (
        'request request_id=r method=GET route=/ status=200 model="a b=\\"c\\"\\n" finish=stop '
        'replies=["x status=500\\n"]'
    )


def test_answers_count_for_every_app_apart() -> None:
    async def run() -> None:
        apps = [app_of(), app_of()]
        await asyncio.gather(*(ask(app, "/health") for app in (apps[0], apps[0], apps[1])))
        assert [counted(app)["GET", "/health", "200"] for app in apps] == [2, 1]

    asyncio.run(run())
