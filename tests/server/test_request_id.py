"""Every response has an id, and nothing escapes as a bare traceback."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.request_id import choose_id
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, Connection, app_of, call


@pytest.mark.parametrize("path", ["/health", "/nowhere", CHAT, "/v1/models/none"])
def test_the_clients_own_id_comes_back(path: str) -> None:
    assert call(app_of(), path, x_request_id="trace-1.a:b").headers["x-request-id"] == "trace-1.a:b"


@pytest.mark.parametrize("given", [None, b"", b"a b", b"a\n", b"x" * 129, b"\xff"])
def test_an_unusable_id_is_replaced(given: bytes | None) -> None:
    made = choose_id(given)
    assert made.startswith("req_") and made != choose_id(given)


def test_an_unforeseen_error_is_a_500_that_tells_only_its_id(caplog: pytest.LogCaptureFixture) -> None:
    model = ScriptedModel(ValueError("secret/path 0x7f"), "never")
    with caplog.at_level(logging.ERROR):
        answer = call(app_of(model), CHAT, HELLO, x_request_id="trace-7")
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert "trace-7" in answer.error["message"] and b"secret" not in answer.body
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"] == "trace-7"
    assert "secret/path" in caplog.text, "the log has it"


def test_an_error_after_the_headers_closes_the_connection() -> None:
    async def broken(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        raise ValueError("late")

    from server.request_id import RequestId

    connection = Connection(RequestId(broken), "/")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="late"):
        asyncio.run(connection.run())
