"""What nobody may read: keys and prompts, in logs, errors, process lists and environments."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from clients.child import ChildServer, ServerDied
from server.keys import digest_of
from server.settings import SettingsError, load_settings
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, app_of, call, live

BY_VARIABLE, IN_FILE, WRONG = "sk-variable-5ecret", "sk-file-5ecret", "sk-wrong-5ecret"
KEYS = (BY_VARIABLE, IN_FILE, WRONG)
PROMPT = "my mother's maiden name"
USER: dict[str, Any] = {"role": "user", "content": PROMPT}
GOOD: dict[str, Any] = {"messages": [USER], "max_tokens": 4}

BODIES: list[Any] = [
    GOOD,
    {**GOOD, "stream": True},
    {**GOOD, "temperature": 9},
    {**GOOD, "temperature": PROMPT},
    {**GOOD, "model": PROMPT},
    {**GOOD, "stop": [PROMPT * 20]},
    {**GOOD, "seed": PROMPT},
    {**GOOD, PROMPT: PROMPT},
    {**GOOD, "tools": [{"type": "function", "function": {"name": PROMPT}}]},
    {**GOOD, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {PROMPT: 1}}}},
    {**GOOD, "structured_outputs": {"regex": f"({PROMPT}"}},
    {**GOOD, "structured_outputs": {"grammar": PROMPT}},
    {**GOOD, "chat_template_kwargs": {PROMPT: 1}},
    {**GOOD, "user": PROMPT * 100},
    {"messages": PROMPT},
    {"messages": [PROMPT]},
    {"messages": [{"role": PROMPT, "content": PROMPT}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": 1, "x": PROMPT}]}]},
    {"messages": [{**USER, "content": PROMPT * 400}]},
    {"messages": [USER], "max_tokens": PROMPT},
    f'{{"messages": "{PROMPT}\ud800'.encode("utf-8", "surrogatepass"),
    f'{{"{PROMPT}": 1, "{PROMPT}": 2}}'.encode(),
    f'{{"messages": [{{"role": "user", "content": "{PROMPT} \\ud800"}}]}}'.encode(),
    PROMPT.encode(),
    PROMPT.encode() * 200_000,
]


def requests(url: str) -> Iterator[httpx.Request]:
    """Good ones and every kind of bad one, with every kind of key."""
    for token in (BY_VARIABLE.encode(), IN_FILE.encode(), WRONG.encode(), f"{WRONG}é".encode()):
        for headers in ({b"authorization": b"Bearer " + token}, {b"x-api-key": token}):
            yield httpx.Request("POST", url + CHAT, json=GOOD, headers=list(headers.items()))
            yield httpx.Request("GET", url + "/metrics", headers=list(headers.items()))
    good = {"authorization": f"Bearer {IN_FILE}", "content-type": "application/json"}
    for body in BODIES:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        yield httpx.Request("POST", url + CHAT, content=content, headers=good)
    for path in (
        "/v1/completions",
        "/v1/embeddings",
        "/v1/score",
        "/tokenize",
        "/detokenize",
        "/apply-template",
    ):
        for told in (
            {"prompt": PROMPT},
            {"prompt": {PROMPT: 1}},
            {"input": PROMPT},
            {"tokens": PROMPT},
            GOOD,
        ):
            yield httpx.Request("POST", url + path, json=told, headers=good)
    yield httpx.Request("GET", url + f"/v1/models?api_key={BY_VARIABLE}", headers=good)
    yield httpx.Request("GET", url + f"/v1/models?api_key={BY_VARIABLE}")
    yield httpx.Request("PUT", url + CHAT, json=GOOD, headers=good)
    yield httpx.Request(
        "OPTIONS", url + CHAT, headers={"origin": "https://x", "access-control-request-method": "PUT"}
    )


def ask_all(url: str) -> None:
    """No answer repeats a key."""
    seen: set[int] = set()
    with httpx.Client(timeout=60) as client:
        for request in requests(url):
            answer = client.send(request)
            seen.add(answer.status_code)
            assert not any(key in answer.text + str(answer.headers) for key in KEYS), request
        told = client.get(url + "/metrics", headers={"x-api-key": IN_FILE}).text
    assert seen >= {200, 400, 401, 403, 404, 405, 413}
    assert "alice" in told or "causerie" in told
    assert not any(secret in told for secret in (*KEYS, PROMPT))


def check_log(log: str) -> None:
    for secret in (*KEYS, PROMPT, "maiden", digest_of(IN_FILE.encode()).hex()):
        assert secret not in log, next(line for line in log.splitlines() if secret in line)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(f"alice: {IN_FILE}\n")
    path.chmod(0o600)
    return path


def test_no_answer_and_no_line_of_the_log_tells(key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = app_of(ScriptedModel(), api_key=(BY_VARIABLE,), api_key_file=key_file, log_requests=True)
    with caplog.at_level(logging.INFO), live(app) as url:
        ask_all(url)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("causerie")]
    assert len(ours) > 30, "they were logged"
    check_log("\n".join(ours))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--uvicorn-log-level", "trace"],
        ["--log-format", "json", "--log-requests", "--uvicorn-log-level", "debug"],
    ],
    ids=["trace", "json"],
)
def test_a_process_tells_nothing(
    tiny_folder: Path, key_file: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one: whatever any library logs, and what the rest of the machine can see of it."""
    monkeypatch.setattr("clients.child.LOG_BYTES", 1 << 26)
    arguments = ["--checkpoint", str(tiny_folder), "--api-key-file", str(key_file), *options]
    with ChildServer(arguments, environment={"CAUSERIE_API_KEY": BY_VARIABLE}) as server:
        ask_all(server.url)
        process = psutil.Process(server.pid)
        for one in (process, *process.children(recursive=True)):
            assert not any(key in " ".join(one.cmdline()) for key in KEYS)
            assert IN_FILE not in str(one.environ())
        log = server.last_lines(1 << 20)
    assert log.count(CHAT) > 30, "they were logged"
    check_log(re.sub("'query_string': b'.*?'", "", log))  # of uvicorn's trace, which has them


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyError("x"), ValueError("x")])
@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_tells_no_key_and_no_prompt(
    error: Exception, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Tracebacks have lines of our code and no values."""
    app = app_of(ScriptedModel("a", error, "b"), api_key=(BY_VARIABLE,))
    with caplog.at_level(logging.INFO):
        answer = call(app, CHAT, {**HELLO, **GOOD, "stream": stream}, authorization=f"Bearer {BY_VARIABLE}")
    assert b"internal_error" in answer.body or answer.status == 500
    assert "Traceback" in caplog.text and b"Traceback" not in answer.body
    for secret in (BY_VARIABLE, PROMPT):
        assert secret not in caplog.text and secret not in answer.body.decode()


@pytest.mark.parametrize(
    "text",
    [
        f"api-key: @{WRONG}",
        f"api-key: *{WRONG}",
        f"api-key: '{WRONG}",
        f"api-key: !!python/object:{WRONG} x",
        f"api-key: {WRONG} x",
        f"api-key: [{WRONG}, '']",
        f"api-key: {{a: {WRONG}}}",
        f"{WRONG}",
        f"- {WRONG}",
        f"api-key: {WRONG}\x00",
    ],
)
def test_a_config_file_that_is_wrong_is_not_quoted(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(["--config", str(path)])
    assert WRONG not in str(caught.value) and "\n" not in str(caught.value)


def test_settings_show_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSERIE_API_KEY", f"{BY_VARIABLE},{IN_FILE}")
    settings = load_settings([])
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "5ecret" not in shown and len(settings.api_key) == 2
    for argv in (["--api-key", f"{WRONG} x"], ["--api-key", f"{WRONG}é"]):
        with pytest.raises(SettingsError) as caught:
            load_settings(argv)
        assert WRONG not in str(caught.value)


def test_a_child_that_dies_is_quoted_without_its_environment() -> None:
    die = [sys.executable, "-c", "import sys; sys.exit(3)"]
    with (
        pytest.raises(ServerDied) as caught,
        ChildServer(command=die, environment={"CAUSERIE_API_KEY": WRONG}),
    ):
        pass
    assert WRONG not in str(caught.value) and "code 3" in str(caught.value)
