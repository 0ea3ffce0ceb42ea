"""The device misbehaves: who was in that batch is told, the next request works, and when nothing works any
more the server says so and ends. Nobody waits for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import httpx
import pytest

from clients.child import ChildServer
from tests.endurance.probe import Probe
from tests.endurance.raw import CHAT, Pending, Reply, ask, get, post, until
from tests.endurance.readings import exit_code, wait_until_idle
from tests.endurance.serve_faulty import FAULT

COMMAND = (sys.executable, "-m", "tests.endurance.serve_faulty")
NUM_TOGETHER, PASS = 4, 11
TRUTH_SECONDS = 2.0
"""After which /live must tell what has happened; an answer that never comes is not the truth."""
EXIT_SECONDS = 5.0


def serve(kind: str, *arguments: str) -> ChildServer:
    """A server whose second forward pass waits for four requests, and whose eleventh is the last good one's
    successor.
    """
    fault, _, seconds = kind.partition(":")
    told = f"{fault}:{PASS}" + (f":{seconds}" if seconds else "")
    options = ["--fault", told, "--gather", str(NUM_TOGETHER), "--uvicorn-log-level", "warning", *arguments]
    return ChildServer(options, command=COMMAND)


def chat(*, stream: bool, max_tokens: int = 40) -> bytes:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": stream}
    return post(CHAT, {**body, "max_tokens": max_tokens, "ignore_eos": True})


def send(server: ChildServer, *, max_tokens: int = 40) -> list[Pending]:
    """Two streams and two whole replies; none of them runs before all of them are there."""
    kinds = [True, True, False, False]
    assert len(kinds) == NUM_TOGETHER
    return [Pending(server.url, chat(stream=stream, max_tokens=max_tokens)) for stream in kinds]


def has_happened(server: ChildServer) -> bool:
    return FAULT in server.last_lines(100_000).splitlines()


def live(server: ChildServer) -> tuple[int, str]:
    """Status and word of /live; (0, gone) when nobody answers."""
    try:
        reply = httpx.get(f"{server.url}/live", timeout=TRUTH_SECONDS)
    except httpx.TransportError:
        return 0, "gone"
    return reply.status_code, reply.json()["status"]


def assert_failed(reply: Reply, status: int, code: str) -> None:
    """A whole reply has the status, a begun stream a frame of the same error and its end."""
    assert reply.error is not None, reply
    assert reply.error["code"] == code
    assert reply.status == (200 if reply.is_stream else status)
    if status == 500:
        assert reply.is_stream or reply.headers["x-should-retry"] == "false"
    else:
        assert reply.is_stream or int(reply.headers["retry-after"]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "code"), [("raise", 500, "step_failed"), ("memory", 503, "out_of_memory")]
)
def test_a_failed_pass_fails_its_batch_and_nobody_else(
    kind: str, status: int, code: str, figure: Callable[[str], None]
) -> None:
    with serve(kind) as server, Probe(server.url, "/live", pause=0.01) as probe:
        for pending in send(server):
            assert_failed(pending.reply(60), status, code)
        assert has_happened(server)
        nexts = [ask(server.url, chat(stream=stream)) for stream in (True, False)]
        assert [(reply.status, reply.error) for reply in nexts] == [(200, None)] * 2
        assert nexts[0].chunks[-1]["choices"][0]["finish_reason"] == "length"
        wait_until_idle(server.url)
        assert ask(server.url, get("/ready")).status == 200
        assert "the sixth layer" not in str(nexts), "the reason is for the log"
    assert probe.statuses == {200}, "one bad pass is no death"
    figure(f"{kind}: {NUM_TOGETHER} of the batch told, the next two served, /live 200 throughout")


@pytest.mark.slow
def test_a_frozen_engine_is_said_to_be_stalled_and_can_still_be_stopped(
    figure: Callable[[str], None],
) -> None:
    stall = 1.0
    with serve("freeze", "--stall-timeout", str(stall), "--drain-timeout", "1") as server:
        pending = send(server)
        until(lambda: has_happened(server), "frozen")
        took = until(lambda: live(server) == (503, "stalled"), "stalled", stall + TRUTH_SECONDS)
        assert ask(server.url, get("/ready")).status == 503
        assert ask(server.url, get("/health")).json["status"] == "stalled"
        waiting = Pending(server.url, chat(stream=False))
        os.kill(server.pid, signal.SIGTERM)
        start = time.monotonic()
        assert exit_code(server, 1 + EXIT_SECONDS) in (0, 1)
        ended = time.monotonic() - start
        for one in (*pending, waiting):
            assert one.reply(10).error is not None
    figure(
        f"frozen: /live says stalled after {took:.2f} s of {stall:g} s, SIGTERM ends it after {ended:.2f} s"
    )


@pytest.mark.slow
def test_requests_of_a_frozen_engine_end_at_their_own_limits(figure: Callable[[str], None]) -> None:
    limits = [
        "--request-timeout",
        "3",
        "--queue-timeout",
        "1",
        "--stall-timeout",
        "1",
        "--drain-timeout",
        "0",
    ]
    with serve("freeze", "--max-num-seqs", str(NUM_TOGETHER), *limits) as server:
        pending = send(server)
        until(lambda: has_happened(server), "frozen")
        late = Pending(server.url, chat(stream=False)).reply(10)
        assert_failed(late, 503, "queue_timeout")
        for one in pending:
            reply = one.reply(10)
            assert reply.error is not None and reply.error["code"] == "deadline_exceeded"
            assert reply.status == (200 if reply.is_stream else 504)
        slowest = max(one.reply().in_all for one in pending)
    figure(f"frozen: a late request told after {late.in_all:.2f} s of 1 s, the others {slowest:.2f} s of 3 s")


@pytest.mark.slow
def test_an_engine_that_wakes_up_is_alive_again(figure: Callable[[str], None]) -> None:
    with serve("nap:3", "--stall-timeout", "0.5") as server:
        pending = send(server)
        until(lambda: has_happened(server), "asleep")
        until(lambda: live(server) == (503, "stalled"), "stalled", 0.5 + TRUTH_SECONDS)
        took = until(lambda: live(server) == (200, "ok"), "awake", 10)
        for one in pending:
            assert one.reply(60).error is None
        wait_until_idle(server.url)
    figure(f"a nap of 3 s: stalled, and ok again {took:.1f} s later; nothing was lost")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "lost"])
def test_a_dead_engine_tells_everyone_and_the_process_ends(kind: str, figure: Callable[[str], None]) -> None:
    with serve(kind) as server:
        pending = send(server, max_tokens=2000)
        until(lambda: has_happened(server), "dead")
        start = time.monotonic()
        truth = until(lambda: live(server)[0] != 200, "/live tells", TRUTH_SECONDS)
        code = exit_code(server, EXIT_SECONDS)
        took = time.monotonic() - start
        for one in pending:
            reply = one.reply(10)
            assert reply.error is not None, reply
            assert reply.status == 200 if reply.is_stream else reply.status in (500, 503)
        log = server.last_lines(1000)
    figure(f"{kind}: /live tells after {truth:.2f} s, {len(pending)} told, exit {code} after {took:.2f} s")
    assert code not in (0, None)
    assert "thread ends" in log, log[-2000:]
