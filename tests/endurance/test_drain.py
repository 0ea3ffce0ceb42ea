"""SIGTERM under load: nothing that has begun is lost, nothing new begins, and the process ends when it says.

The server's forward passes take a fixed time, so that eight streams are known to be under way.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from clients.child import ChildServer
from tests.endurance.raw import CHAT, Pending, Reply, ask, connect, get, post, until
from tests.endurance.readings import assert_quiet_log, exit_code

COMMAND = (sys.executable, "-m", "tests.endurance.serve_faulty")
NUM_STREAMS, STEP_SECONDS = 8, 0.02
GRACE_SECONDS = 2.0
"""Beyond the limit: for the error frames, and for a process to end."""


def serve(drain_timeout: float) -> ChildServer:
    arguments = ["--step-seconds", str(STEP_SECONDS), "--drain-timeout", str(drain_timeout)]
    return ChildServer([*arguments, "--uvicorn-log-level", "warning"], command=COMMAND)


def chat(max_tokens: int, *, stream: bool = True) -> bytes:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": stream}
    return post(CHAT, {**body, "max_tokens": max_tokens, "ignore_eos": True})


def begin(server: ChildServer, max_tokens: int) -> list[Pending]:
    """Eight streams, all of which have said something."""
    streams = [Pending(server.url, chat(max_tokens)) for _ in range(NUM_STREAMS)]
    for stream in streams:
        assert stream.begun.wait(60)
    return streams


def readiness(server: ChildServer) -> int:
    return ask(server.url, get("/ready")).status


def finishes(reply: Reply) -> list[str]:
    choices = [choice for chunk in reply.chunks for choice in chunk.get("choices", [])]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_end_properly_and_nothing_new_begins(
    number: signal.Signals, figure: Callable[[str], None]
) -> None:
    with serve(drain_timeout=120) as server:
        until(lambda: readiness(server) == 200, "ready")
        with closing(connect(server.url)) as idle:  # a connection without a request holds nobody up
            idle.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            assert idle.recv(1 << 16)
            streams = begin(server, 250)
            whole = Pending(server.url, chat(100, stream=False))
            until(lambda: b'"num_running":9' in ask(server.url, get("/health")).body, "nine run")
            os.kill(server.pid, number)
            signalled = time.monotonic()
            fell = until(lambda: readiness(server) == 503, "not ready", 5)
            refused = ask(server.url, chat(1))
            assert refused.status == 503 and refused.error is not None, refused
            assert refused.error["code"] == "server_draining"
            assert int(refused.headers["retry-after"]) >= 1
            assert ask(server.url, get("/live")).status == 200, "it drains, and lives"
            for stream in streams:
                reply = stream.reply(120)
                assert reply.error is None and finishes(reply) == ["length"]
            last = time.monotonic()
            assert whole.reply().json["choices"][0]["finish_reason"] == "length"
            assert exit_code(server, 30) == 0
            ended = time.monotonic()
        assert_quiet_log(server)
    figure(
        f"drain after {number.name}: not ready after {fell * 1e3:.0f} ms, {len(streams)} streams ended after "
        f"{last - signalled:.1f} s, exit 0 after {ended - last:.2f} s more"
    )


@pytest.mark.slow
def test_beyond_the_limit_streams_end_with_an_error_frame(figure: Callable[[str], None]) -> None:
    with serve(drain_timeout=1) as server:
        streams = begin(server, 4000)
        whole = Pending(server.url, chat(4000, stream=False))
        until(lambda: b'"num_running":9' in ask(server.url, get("/health")).body, "nine run")
        os.kill(server.pid, signal.SIGTERM)
        signalled = time.monotonic()
        assert exit_code(server, 30) == 0
        took = time.monotonic() - signalled
        for stream in streams:
            reply = stream.reply(10)
            assert reply.error is not None and reply.error["code"] == "engine_stopped"
            assert finishes(reply) == []
        assert whole.reply(10).status == 503
    figure(f"drain with a limit of 1 s: {len(streams)} error frames and exit 0 after {took:.2f} s")
    assert 1 <= took < 1 + GRACE_SECONDS


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(figure: Callable[[str], None]) -> None:
    with serve(drain_timeout=120) as server:
        begin(server, 4000)
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: readiness(server) == 503, "not ready", 5)
        os.kill(server.pid, signal.SIGTERM)
        start = time.monotonic()
        assert exit_code(server, 10) == 128 + signal.SIGTERM
        took = time.monotonic() - start
    figure(f"second signal: exit after {took * 1e3:.0f} ms")
    assert took < GRACE_SECONDS


@pytest.mark.slow
def test_without_work_the_first_signal_ends_it(figure: Callable[[str], None]) -> None:
    with serve(drain_timeout=120) as server:
        until(lambda: readiness(server) == 200, "ready")
        with closing(connect(server.url)):
            os.kill(server.pid, signal.SIGTERM)
            start = time.monotonic()
            assert exit_code(server, 30) == 0
            took = time.monotonic() - start
    figure(f"signal without work: exit 0 after {took * 1e3:.0f} ms")
    assert took < 2 * GRACE_SECONDS
