"""Keys: who gets in, and what is open to all."""

from __future__ import annotations

import pytest

from server.auth import bearer
from tests.server.wire import CHAT, HELLO, app_of, call

KEYS = {"api_key": ("first-key", "second-key")}


@pytest.mark.parametrize("sent", ["Bearer first-key", "bearer second-key", "BEARER  first-key "])
def test_any_of_the_keys_opens(sent: str) -> None:
    assert call(app_of(**KEYS), CHAT, HELLO, authorization=sent).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer first"},
        {"authorization": "Bearer first-keyy"},
        {"authorization": "Basic first-key"},
        {"authorization": "first-key"},
        {"authorization": "Bearer schl\xfcssel"},
    ],
)
@pytest.mark.parametrize(
    "path", [CHAT, "/v1/models", "/apply-template", "/openapi.json", "/version", "/nowhere"]
)
def test_everything_else_stays_out(headers: dict[str, str], path: str) -> None:
    answer = call(app_of(**KEYS), path, HELLO, **headers)
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]
    assert b"first" not in answer.body, "neither our keys nor theirs are repeated"


def test_health_and_preflight_need_no_key() -> None:
    app = app_of(**KEYS)
    assert call(app, "/health").status == 200
    assert call(app, CHAT, method="OPTIONS").status == 405


def test_without_keys_all_is_open() -> None:
    assert call(app_of(), CHAT, HELLO, authorization="Bearer whatever").status == 200


def test_bearer_takes_the_token_only() -> None:
    assert bearer(b"Bearer a b") == b"a b"
    assert bearer(b"Basic a") is None
