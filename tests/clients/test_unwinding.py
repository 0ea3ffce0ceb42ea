"""A signal that ends a program runs what the program has to do at its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from clients.unwinding import unwound_by_signals


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_by_the_way_out_and_only_while_it_is_open(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    with pytest.raises(SystemExit) as caught, unwound_by_signals():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_ignored_one_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with unwound_by_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_beside_the_main_thread_nothing_changes() -> None:
    seen = list[bool]()

    def open_it() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with unwound_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=open_it)
    thread.start()
    thread.join()
    assert seen == [True]
