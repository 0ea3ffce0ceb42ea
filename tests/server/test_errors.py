"""Exceptions → OpenAI's error object."""

from __future__ import annotations

import pytest

from llm.errors import ContextLengthExceeded, EngineStopped, RequestError, StepFailed
from server.errors import ApiError, json_path, shown, to_api_error


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (ApiError(404, "m", code="model_not_found"), 404, "model_not_found", "invalid_request_error"),
        (RequestError("m", param="stop[1]"), 400, "invalid_value", "invalid_request_error"),
        (ContextLengthExceeded(9, 8), 400, "context_length_exceeded", "invalid_request_error"),
        (StepFailed("cuda says 0xdeadbeef"), 500, "step_failed", "server_error"),
        (EngineStopped("no"), 503, "engine_stopped", "server_error"),
        (ZeroDivisionError("line 7 of /home/me"), 500, "internal_error", "server_error"),
    ],
)
def test_each_error_has_its_status_and_code(error: Exception, status: int, code: str, kind: str) -> None:
    answer = to_api_error(error, "req_1")
    assert (answer.status, answer.code, answer.body["error"]["type"]) == (status, code, kind)
    if status == 500:
        assert str(error) not in answer.message and "req_1" in answer.message
        assert answer.headers["x-should-retry"] == "false"
    if status == 503:
        assert int(answer.headers["retry-after"]) > 0


def test_a_field_is_named_by_its_json_path() -> None:
    assert json_path(("messages", 0, "content", "<parts>", 2, "text")) == "messages[0].content[2].text"
    assert json_path(("stop", 1)) == "stop[1]"
    assert json_path(()) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (None, "null"), (1.5, "1.5"), ("a\nb", r'"a\nb"'), ({}, "an object"), ([], "a list")],
)
def test_values_are_shown_as_json(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_values_are_cut() -> None:
    assert len(shown("é" * 10_000)) <= 64
    assert len(shown(10**4000)) <= 64
