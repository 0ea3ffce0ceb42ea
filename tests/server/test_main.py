"""The command: exit statuses, the socket, and signals on a real process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from server.__main__ import DrainingServer, begin_listening, listen_on, main, run, sigterm_exits_at_once
from server.logs import log_config
from server.settings import Settings
from tests.fakes import ScriptedModel
from tests.server.wire import CHAT, HELLO, app_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """main() configures the process's log; the other tests get theirs back."""
    loggers = [logging.getLogger(name) for name in (None, *log_config("info")["loggers"])]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_wrong_option_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prot", "1", "--apikey=secret"]) == 2
    assert capsys.readouterr().err == "causerie serve: error: no such option: --prot, --apikey\n"


def test_nothing_to_serve_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", "/nowhere.pt", "--port", "0"]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("causerie serve: error: /nowhere.pt: no such file")
    )


def test_a_port_in_use_is_noticed_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--checkpoint", "/nowhere.pt", "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_an_open_door_and_a_visible_key_are_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--checkpoint", "/nowhere.pt", "--port", "0", "--host", "0.0.0.0"])
    assert "ANYONE WHO CAN REACH 0.0.0.0" in capsys.readouterr().err
    main(["--checkpoint", "/nowhere.pt", "--port", "0", "--host", "0.0.0.0", "--api-key=sesame"])
    err = capsys.readouterr().err
    assert "ANYONE" not in err and "process list" in err and "sesame" not in err


def test_an_unknown_variable_is_mentioned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSERIE_PROT", "1")
    main(["--checkpoint", "/nowhere.pt", "--port", "0"])
    assert "CAUSERIE_PROT is not an option" in capsys.readouterr().err


def test_a_bound_socket_does_not_accept_yet() -> None:
    with listen_on("127.0.0.1", 0) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname())


def test_two_servers_that_load_at_once_cannot_share_a_port() -> None:
    """Both can bind it while neither listens; the slower one is told, in one line."""
    with listen_on("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listen_on("127.0.0.1", port) as second:
            begin_listening(first)
            with pytest.raises(
                OSError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"
            ):
                run(Settings(), [ScriptedModel()], second)  # type: ignore[arg-type]


def test_sigterm_has_a_handler_while_loading() -> None:
    """The kernel discards it otherwise, in a container's first process."""
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_exits_at_once():
        assert callable(signal.getsignal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(OSError, match="192.0.2.1"):
        listen_on("192.0.2.1", 0)


@contextmanager
def serving(drain: str, *script: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server process and its port; killed in the end if it still runs."""
    command = [sys.executable, "-m", "tests.server.serve_scripted", drain, *script]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        port = int(process.stdout.readline())
        for line in process.stderr:
            if "Application startup complete" in line:
                break
        yield process, port
    finally:
        process.kill()
        process.communicate()


@contextmanager
def open_reply(port: int) -> Iterator[Iterator[str]]:
    """Lines of a streamed reply, the first token's read."""
    body = {**HELLO, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{port}{CHAT}", json=body, timeout=60) as response:
        lines = response.iter_lines()
        while '"first"' not in next(lines):
            pass
        yield lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_with_status_0(number: signal.Signals) -> None:
    with serving("30", "first") as (process, _):
        process.send_signal(number)
        assert process.wait(60) == 0


def test_open_replies_get_their_drain_time_then_an_error_frame_and_status_0() -> None:
    with serving("1.2", "first", "|", "never") as (process, port), open_reply(port) as lines:
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert '"code": "engine_stopped"' in rest[0] and rest[1:] == ["data: [DONE]"]
        assert process.wait(60) == 0


def test_a_request_without_a_place_is_answered_too() -> None:
    body = b'{"prompt": "hello"}'
    head = (
        f"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n"
    )
    with (
        serving("60", "first") as (process, port),
        socket.create_connection(("127.0.0.1", port), 60) as one,
        one.makefile("rb") as answer,
    ):
        assert process.stderr is not None
        one.sendall(head.encode())
        assert b"100 Continue" in answer.readline()  # it is inside
        process.send_signal(signal.SIGTERM)
        assert "stopping: 1 open" in next(line for line in process.stderr if "stopping" in line)
        one.sendall(body)
        assert answer.readline() == b"\r\n" and b" 200 " in answer.readline()
        assert process.wait(60) == 0


def test_a_second_signal_exits_at_once() -> None:
    with serving("3600", "first", "|", "never") as (process, port), open_reply(port):
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "stopping: 1 open" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_what_was_loaded_is_left_alone_by_the_collector_from_the_first_token_on() -> None:
    app = app_of()

    async def announce() -> None:
        server = DrainingServer(uvicorn.Config(app, log_config=None), Settings(), app, "http://x")
        server.life.begin(None, lambda model: None)
        await server._announce()
        await server.life.close()

    before = gc.get_freeze_count()
    try:
        asyncio.run(announce())
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
