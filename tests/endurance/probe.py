"""One route asked again and again on one connection, from a thread: what somebody waits for it.

    >>> with Probe(server.url, "/live") as probe:
    ...     load_the_server()
    >>> percentile(probe.seconds, 0.99)

A machine that others keep busy is slow by itself: `bound_of` says how much of a wait is the machine's.
"""

from __future__ import annotations

import threading
import time
from typing import Self

from tests.endurance.raw import connect, until
from tests.endurance.readings import percentile

PAUSE = 0.002
NUM_QUIET, NOISE = 100, 10.0


def bound_of(url: str, bound: float, share: float) -> float:
    """The bound, or ten times what a server without work takes on this machine now, if that is more."""
    with Probe(url, "/live") as probe:
        until(lambda: len(probe.seconds) >= NUM_QUIET, "a hundred answers")
    return max(bound, NOISE * percentile(probe.seconds, share))


class Probe:
    """Latencies of a GET, and the statuses it met.

    Args:
        pause: seconds between an answer and the next question.
    """

    def __init__(self, url: str, path: str, *, pause: float = PAUSE) -> None:
        self.seconds: list[float] = []
        self.statuses: set[int] = set()
        self._client = connect(url)
        self._request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        self._pause = pause
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="probe")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()
        if self._failure is not None:
            raise AssertionError(f"the probe failed: {self._failure!r}") from self._failure

    def share_beyond(self, bound: float) -> float:
        """The share of all moments at which a question would have waited longer. One who asks only when the
        last answer has come, as we do, asks less often when it matters.
        """
        return sum(max(0.0, wait - bound) for wait in self.seconds) / sum(self.seconds, 1e-9)

    def _run(self) -> None:
        try:
            while not self._ended.wait(self._pause):
                self._ask()
        except BaseException as error:
            self._failure = error

    def _ask(self) -> None:
        start = time.perf_counter()
        self._client.sendall(self._request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = self._client.recv(1 << 16)
            assert piece, "the server closed the connection"
            answer += piece
        self.seconds.append(time.perf_counter() - start)
        head, _, body = answer.partition(b"\r\n\r\n")
        self.statuses.add(int(head.split()[1]))
        lines = head.lower().split(b"\r\n")
        (length,) = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]
        while len(body) < length:
            body += self._client.recv(1 << 16)
