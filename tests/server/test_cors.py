"""Web pages: whose may read, whose may ask, and under which name."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import StepFailed
from server.cors import EXPOSED, Origin, Origins, is_local_name
from server.settings import SettingsError, load_settings
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, Answer, Connection, app_of, call, live

PAGE = "https://chat.example"
LISTED: dict[str, Any] = {"cors_origin": (PAGE, "http://localhost:3000")}
KEYS: dict[str, Any] = {"api_key": ("first-key",)}
KEY = {"authorization": "Bearer first-key"}
STRANGERS = [
    "https://evil.example",
    "http://chat.example",
    "https://chat.example:8443",
    "https://chat.example.evil.example",
    "https://evil-chat.example",
    "https://sub.chat.example",
    "https://chat.example.",
    "https://chat.example/",
    "https://chat.example@evil.example",
    "https://chat.example, https://evil.example",
    "http://localhost",
    "http://localhost:3001",
    "http://127.0.0.1:3000",
    "null",
    "",
    "*",
    "file://",
    "https://ch\xe4t.example",
]


@cache
def served(**settings: Any) -> FastAPI:
    """An app that says hello, made once for each set of settings."""
    return app_of(**settings)


def ask_as(app: Any, origin: str, path: str = CHAT, method: str = "POST", **headers: str) -> Answer:
    """A page's request."""
    body = HELLO if method == "POST" else None
    return call(app, path, body, method, origin=origin, host="localhost:8000", **headers)


def preflight(app: Any, origin: str, asked: str = "authorization,content-type", **headers: str) -> Answer:
    """What a browser asks before it sends a page's JSON."""
    sent = {"access_control_request_method": "POST", "access_control_request_headers": asked} | headers
    return call(app, CHAT, None, "OPTIONS", origin=origin, **sent)


def cors_headers(answer: Answer) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


# Who may read


@pytest.mark.parametrize("keys", [{}, KEYS])
@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_a_listed_page_reads_replies_streams_and_errors(origin: str, keys: dict[str, Any]) -> None:
    app = app_of(ScriptedModel(), **LISTED, **keys)
    streamed = call(app, CHAT, {**HELLO, "stream": True}, origin=origin, **KEY)
    failed = app_of(ScriptedModel(StepFailed("x"), "never"), **LISTED, **keys)
    unforeseen = app_of(ScriptedModel(KeyError("x"), "never"), **LISTED, **keys)
    answers = {
        200: ask_as(app, origin, **KEY),
        400: call(app, CHAT, {}, origin=origin, **KEY),
        404: call(app, "/nowhere", {}, origin=origin, **KEY),
        405: call(app, CHAT, method="GET", origin=origin, **KEY),
        413: call(served(**LISTED, max_body_bytes=1024), CHAT, b" " * 2000, origin=origin),
        500: call(failed, CHAT, HELLO, origin=origin, **KEY),
    }
    if keys:
        answers[401] = ask_as(app, origin)
    assert {status: answer.status for status, answer in answers.items()} == {n: n for n in answers}
    internal = call(unforeseen, CHAT, HELLO, origin=origin, **KEY)
    assert internal.error["code"] == "internal_error"
    for answer in (*answers.values(), streamed, internal):
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
    assert streamed.chunks


@pytest.mark.parametrize("keys", [{}, KEYS])
@pytest.mark.parametrize("origin", STRANGERS)
def test_no_other_page_reads_anything(origin: str, keys: dict[str, Any]) -> None:
    for settings in (LISTED, {}):
        app = served(**settings, **keys)
        answers = [ask_as(app, origin), ask_as(app, origin, **KEY), ask_as(app, origin, "/health", "GET")]
        for answer in (*answers, preflight(app, origin)):
            assert not cors_headers(answer)
            assert answer.headers.get("vary") == ("Origin" if settings else None), "whoever asks"


def test_everyone_is_everyone_without_credentials() -> None:
    app = served(cors_origin=("*",))
    for origin in ("https://evil.example", "null"):
        answer = ask_as(app, origin)
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers and "vary" not in answer.headers
        assert preflight(app, origin).headers["access-control-allow-origin"] == "*"


def test_who_is_no_page_gets_no_such_headers() -> None:
    answer = call(served(**LISTED), CHAT, HELLO)
    assert answer.status == 200 and not cors_headers(answer) and answer.headers["vary"] == "Origin"
    assert "vary" not in call(served(), CHAT, HELLO).headers


def test_every_documented_header_can_be_read() -> None:
    document = (Path(__file__).parents[2] / "docs/api.md").read_text()
    table = document.split("## Headers\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|", table, re.MULTILINE)
    assert set(EXPOSED) == {name for name, on in rows if not on.startswith("requests")}


# Preflights


@pytest.mark.parametrize("keys", [{}, KEYS])
def test_a_preflight_is_answered_without_a_key(keys: dict[str, Any]) -> None:
    answer = preflight(served(**LISTED, **keys), PAGE, "authorization,content-type,x-stainless-lang")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    assert answer.headers["access-control-max-age"] == "600"
    assert answer.headers["vary"].split(", ")[-1] == "Origin"
    assert "access-control-allow-private-network" not in answer.headers
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("keys", [{}, KEYS])
@pytest.mark.parametrize("origin", STRANGERS)
def test_a_strangers_preflight_is_refused(origin: str, keys: dict[str, Any]) -> None:
    answer = preflight(served(**LISTED, **keys), origin)
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


def test_a_preflight_from_the_web_to_this_machine() -> None:
    answer = preflight(served(**LISTED), PAGE, access_control_request_private_network="true")
    assert answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("asked", ["", "a\x0bb", "a b", "a,,b", "a, ", "(x)", "\xe4"])
def test_only_names_of_headers_are_repeated(asked: str) -> None:
    told = preflight(served(**LISTED), PAGE, asked).headers["access-control-allow-headers"]
    assert told == "authorization, content-type, x-api-key, x-request-id"


# Who may ask


@pytest.mark.parametrize("origin", STRANGERS)
@pytest.mark.parametrize("settings", [LISTED, {}])
def test_without_keys_a_strangers_page_may_not_ask(origin: str, settings: dict[str, Any]) -> None:
    """A form's or a script's POST of text/plain needs no preflight; it must not reach the model."""
    model = ScriptedModel()
    answer = ask_as(app_of(model, **settings), origin, content_type="text/plain")
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert not model.prompts


def test_the_refusal_names_the_option(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "causerie.server"):
        error = ask_as(served(), "http://localhost:3000").error
    page = "http://localhost:3000"
    said = f"pages of {page} may not use this server; with --cors-origin {page} it lets them"
    assert error["message"] == said and said in caplog.text
    for page in ("null", "file://"):  # what the option would refuse is not what to give it
        message = ask_as(served(), page).error["message"]
        assert (
            message
            == f"pages of {page} may not use this server; only --cors-origin * lets them, and all others"
        )
    assert "\x1b" not in ask_as(served(), "\x1b[31m" + "x" * 9000).error["message"]
    assert len(ask_as(served(), "x" * 9000).error["message"]) < 400


def test_with_keys_the_key_decides() -> None:
    assert ask_as(served(**KEYS), "app://obsidian.md").status == 401
    assert ask_as(served(**KEYS), "app://obsidian.md", **KEY).status == 200


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("http://LOCALHOST:8000", "LocalHost:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://192.168.0.7:8000", "192.168.0.7:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://gpu1:8000", "gpu1:8000"),
        ("http://gpu1.local", "gpu1.local"),
        ("http://gpu1.local", "gpu1.local:80"),
        ("https://localhost", "localhost:443"),
    ],
)
def test_the_servers_own_page_may_ask(origin: str, host: str) -> None:
    assert call(served(), CHAT, HELLO, origin=origin, host=host).status == 200


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.example:8000", "evil.example:8000"),  # a name that was pointed here: DNS rebinding
        ("http://localhost:3000", "localhost:8000"),
        ("http://localhost", "localhost:8000"),
        ("http://localhost:8000", "127.0.0.1:8000"),
        ("https://localhost", "localhost:80"),
        ("app://localhost", "localhost"),
        ("http://localhost:8000", ""),
    ],
)
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
def test_what_only_looks_like_the_servers_own_page_may_not(origin: str, host: str, bound: str) -> None:
    answer = call(served(host=bound), CHAT, HELLO, origin=origin, host=host)
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


def test_two_origins_or_two_names_are_none() -> None:
    def status(*headers: tuple[bytes, bytes]) -> int:
        connection = Connection(served(**LISTED), "/v1/models", method="GET")
        connection.scope["headers"] = list(headers)
        asyncio.run(connection.run())
        start = connection.outgoing.get_nowait()
        assert start is not None and b"access-control-allow-origin" not in dict(start["headers"])
        return int(start["status"])

    page, own = (b"origin", PAGE.encode()), (b"origin", b"http://localhost:8000")
    here, there = (b"host", b"localhost:8000"), (b"host", b"evil.example")
    assert status(page, page) == status(own, page, here) == status(own, here, here) == 403
    assert status(here, there) == status(there, here) == 403
    assert status(own, here) == status(here) == status() == 200


# Under which name


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "localhost@evil.example",
        "a b",
        "",
        ".",
        "x.localhost.example",
    ],
)
def test_this_machine_has_no_public_name(host: str) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        answer = call(served(), path, host=host)
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
    assert "evil" not in call(served(), "/v1/models", host="x" * 9000 + ".evil").error["message"]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "localhost.",
        "127.0.0.1",
        "[::1]:8000",
        "10.0.0.3:80",
        "causerie",
        "a_b:8000",
        "causerie.default.svc.cluster.local:8000",
        "x.localhost",
    ],
)
def test_local_names_are_its_own(host: str) -> None:
    assert call(served(), "/v1/models", host=host).status == 200


def test_any_name_will_do_with_a_key_on_other_addresses_or_when_listed() -> None:
    assert call(served(**KEYS), "/v1/models", host="evil.example", **KEY).status == 200
    assert call(served(host="0.0.0.0"), "/v1/models", host="gpu.corp.example").status == 200
    assert call(served(**LISTED), "/v1/models", host="chat.example").status == 200
    assert call(served(cors_origin=("*",)), "/v1/models", host="chat.example").status == 200
    assert call(served(), "/health", host="probe.example").status == 200, "health checks come from anywhere"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30))
def test_any_origin_and_host_have_an_answer(text: str) -> None:
    answer = call(served(), "/v1/models", origin=text, host=text)
    assert answer.status == 403 and answer.error


# The option


@pytest.mark.parametrize(
    "text",
    [
        "https://x.example/",
        "https://x.example/app",
        "x.example",
        "https://",
        "https://*.example",
        "https://x y",
        "https://é.example",
        "http://x:port",
        "http://x:123456",
        "null",
        "",
        " ",
        "http://u@x",
        "//x",
        "http:x",
    ],
)
def test_what_is_no_origin_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Origins.of(load_settings(["--cors-origin", PAGE, "--cors-origin", text]))
    message = str(caught.value)
    assert message.startswith("--cors-origin (CAUSERIE_CORS_ORIGIN): ") and "\n" not in message
    assert message.endswith(f", got {ascii(text)}")


def test_origins_are_compared_as_browsers_write_them() -> None:
    listed = [
        "HTTPS://Chat.Example:443",
        "http://x:80",
        "http://[::1]:3000",
        "app://obsidian.md",
        "http://10.0.0.1",
    ]
    origins = Origins.of(load_settings([word for text in listed for word in ("--cors-origin", text)]))
    for origin in (
        "https://chat.example",
        "http://x",
        "http://[::1]:3000",
        "app://obsidian.md",
        "http://10.0.0.1",
    ):
        assert origins.allow(origin), origin
    assert not origins.allow("https://x") and not origins.everyone and origins
    assert not Origins.of(load_settings([]))


@given(st.text(max_size=40))
def test_an_origin_is_read_or_refused(text: str) -> None:
    origin = Origin.parse(text)
    assert origin is None or text.lower().startswith(f"{origin.scheme}://{origin.name}")


def test_local_names() -> None:
    assert all(
        map(is_local_name, ["localhost", "x", "::1", "[::1]", "127.0.0.1", "8.8.8.8", "a.b.home.arpa"])
    )
    assert not any(
        map(is_local_name, ["x.example", "local.example", "1.2.3.4.example", "notlocal.com", "a.xlocal"])
    )


@pytest.mark.parametrize(("settings", "warned"), [({}, True), (KEYS, False), (LISTED, False)])
def test_everyone_without_a_key_is_warned_of(
    settings: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    call(app_of(**{"cors_origin": ("*",)} | settings), "/health")
    assert ("--cors-origin * and no key" in caplog.text) is warned


def test_over_a_socket() -> None:
    with live(served(**LISTED, **KEYS)) as url:
        asked = {"origin": PAGE, "access-control-request-method": "POST"}
        assert httpx.options(url + CHAT, headers=asked).status_code == 204
        with httpx.stream(
            "POST", url + CHAT, json={**HELLO, "stream": True}, headers={"origin": PAGE, **KEY}
        ) as reply:
            assert reply.headers["access-control-allow-origin"] == PAGE
            assert "[DONE]" in reply.read().decode()
        assert httpx.post(url + CHAT, json=HELLO, headers={"origin": PAGE}).status_code == 401
