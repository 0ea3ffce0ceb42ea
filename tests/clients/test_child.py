"""A child server is ready when it is handed over, and gone afterwards, whatever happened in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from clients import child
from clients.child import ChildServer, ServerDied
from clients.client import Client

ROOT = Path(__file__).parents[2]
FAKE = (sys.executable, "-m", "tests.clients.fake_server")


def is_gone(pid: int) -> bool:
    """Ended, or about to: a child of another process stays a zombie until that one has noticed."""
    try:
        return psutil.Process(pid).wait(10) is not None or not psutil.pid_exists(pid)
    except psutil.NoSuchProcess:
        return True


def test_it_answers_inside_the_block_and_is_gone_after_it() -> None:
    with (
        ChildServer(command=FAKE, environment={"CAUSERIE_API_KEY": "k"}) as server,
        Client(server.url) as client,
    ):
        pid = server.pid
        assert client.health()["pid"] == pid
        assert "key k" in server.last_lines()
        assert os.getsid(pid) == pid != os.getsid(0)  # a Ctrl-C at our terminal does not reach it
    assert is_gone(pid)


def test_another_one_can_take_its_place() -> None:
    with ChildServer(command=FAKE) as first:
        pass
    with ChildServer(command=FAKE, port=first.port) as second, Client(first.url) as client:
        assert client.health()["pid"] == second.pid and second.url == first.url


def test_it_is_gone_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), ChildServer(command=FAKE) as server:
        pid = server.pid
        raise ZeroDivisionError
    assert is_gone(pid)


def test_one_that_does_not_listen_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STOP_SECONDS", 0.2)
    with ChildServer(["--stubborn"], command=FAKE) as server:
        pid = server.pid
    assert is_gone(pid)


def test_its_last_words_are_in_the_error() -> None:
    script = "import sys; [print('line', i) for i in range(50)]; sys.exit('no such checkpoint')"
    with pytest.raises(ServerDied) as caught, ChildServer(command=[sys.executable, "-c", script]):
        pass
    message = str(caught.value)
    assert "ended with code 1 before it was ready" in message
    assert "no such checkpoint" in message
    assert "line 49" in message and "line 10\n" not in message


def test_one_that_never_answers_is_given_up_and_stopped() -> None:
    never = [sys.executable, "-c", "import time; time.sleep(1000)"]
    server = ChildServer(command=never, start_seconds=0.2)
    with pytest.raises(ServerDied, match="not ready after"), server:
        pass
    assert is_gone(server.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_parent_stops_the_child(number: signal.Signals) -> None:
    usual = "default_int_handler" if number == signal.SIGINT else "SIG_DFL"
    program = (
        "import signal\n"
        f"signal.signal({int(number)}, signal.{usual})\n"  # nohup, or a shell's &, may have it ignored
        "from clients.child import ChildServer\n"
        f"with ChildServer(command={FAKE!r}) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.send_signal(number)
        assert parent.wait(30) in (128 + number, -number)
    assert is_gone(pid)


def test_signal_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with ChildServer(command=FAKE):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_stranger_on_the_port_is_not_taken_for_the_child() -> None:
    """The port was free when it was chosen; another program may have bound it since."""
    with ChildServer(command=FAKE) as stranger:
        late = ChildServer(command=[sys.executable, "-c", "input()"])
        late.url = stranger.url
        with pytest.raises(ServerDied, match="ended with code"), late:
            pass
