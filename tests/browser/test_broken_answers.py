"""What a server may answer in place of a reply: the page says it, keeps what has come, and asks again."""

from __future__ import annotations

import pytest

from tests.browser.chat import LAST, LAST_TEXT, Chat
from tests.browser.stage import Answer, Cut, Stage
from tests.fakes import Gate

pytestmark = pytest.mark.slow

BROKEN = {
    "ends early": Answer.events("Hello"),
    "is no JSON": Answer.events("Hello", b"data: {\n\n"),
    "is half a frame": Answer.events("Hello", b"data: "),
    "is no stream": Answer(steps=[b"<html><body>It works!</body></html>"]),
    "is empty": Answer(),
    "has no choices": Answer.events("Hello", {"id": "x"}),
    "has an error": Answer.events(
        "Hello", {"error": {"message": "the engine fell over", "code": "engine_error"}}, b"data: [DONE]\n\n"
    ),
    "is null": Answer.events("Hello", b"data: null\n\n"),
    "is a list": Answer.events("Hello", b"data: []\n\n"),
    "is not UTF-8": Answer.events("Hello", b"\xff\xfe\xfd\n\n"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_stream_ends_as_an_error_and_can_be_tried_again(how: str, told: Chat, stage: Stage) -> None:
    stage.says("Hello again")
    stage.answers(BROKEN[how])
    told.send("x")
    said = told.finish("error")
    assert said.startswith("Hello") or how in ("is no stream", "is empty")
    if how == "has an error":
        told.tab.read(LAST, "the engine fell over")
    told.tab.click("retry")
    assert told.finish() == "Hello again"


def test_a_connection_that_breaks_keeps_what_has_come(told: Chat, stage: Stage) -> None:
    gate = Gate()
    stage.says("Hello again")
    stage.answers(Answer.events("Hello", gate, Cut()))
    told.send("x")
    told.tab.read(LAST_TEXT, "Hello")
    gate.open()
    assert told.finish("error") == "Hello"
    told.tab.happened.forgive("ERR_INCOMPLETE_CHUNKED_ENCODING")
    told.tab.click("retry")
    assert told.finish() == "Hello again"


REFUSALS = {
    429: Answer.error(429, "8 requests wait already", "queue_full", retry_after="3"),
    500: Answer.error(500, "internal error, request 1234", "internal_error"),
    400: Answer.error(400, "the prompt has 9000 tokens, the model takes 8192", "context_length_exceeded"),
    503: Answer.error(503, "the server is stopping", "shutting_down", retry_after="1"),
    502: Answer(
        502, {"content-type": "text/html"}, [b"<html><h1>Bad gateway</h1><script>harm()</script></html>"]
    ),
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_said_in_the_servers_words(status: int, told: Chat, stage: Stage) -> None:
    stage.says("Hello again")
    stage.answers(REFUSALS[status])
    told.send("x")
    told.finish("error")
    words = {429: "requests wait", 500: "1234", 400: "9000", 503: "stopping", 502: "502"}[status]
    told.tab.read(LAST, words)
    told.tab.happened.forgive(f"status of {status}")
    told.tab.click("retry")
    assert told.finish() == "Hello again"


def test_a_slow_server_can_be_stopped_before_its_first_word(told: Chat, stage: Stage) -> None:
    gate = Gate()
    stage.says(gate, "too late")
    told.send("x")
    told.tab.see("stop")
    assert told.tab.attribute(LAST, "data-state") == "streaming"
    told.tab.click("stop")
    assert told.finish("stopped") == ""
    told.tab.see("send")
    gate.open()
    stage.says("in time")
    assert told.ask("y") == "in time"


def test_stop_ends_it_on_the_server_too(told: Chat, stage: Stage) -> None:
    gate, before = Gate(), stage.model.num_aborted
    stage.says("Hello", gate, "never")
    told.send("x")
    told.tab.read(LAST_TEXT, "Hello")
    told.tab.click("stop")
    assert told.finish("stopped") == "Hello"
    gate.fail(RuntimeError("it goes on"))
    stage.says("next")
    assert told.ask("y") == "next"
    assert stage.model.num_aborted == before + 1
