"""Docker's health check: what it asks, and what it makes of the answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.docker import healthcheck


@contextmanager
def server_that_says(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server of one connection: its port, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 0),
        (b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\n\r\n", 1),
        (b"HTTP/1.1 401 Unauthorized\r\nx: 200\r\n\r\n", 1),
        (b"", 1),
    ],
)
def test_only_200_is_healthy(monkeypatch: pytest.MonkeyPatch, answer: bytes, status: int) -> None:
    with server_that_says(answer) as (port, asked):
        monkeypatch.setenv("CAUSERIE_PORT", str(port))
        monkeypatch.setenv("CAUSERIE_HOST", "0.0.0.0")
        assert healthcheck.main() == status
    assert asked[0].startswith(b"GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\n")


def test_nobody_there_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("CAUSERIE_PORT", str(listener.getsockname()[1]))
    assert healthcheck.main() == 1
    assert capsys.readouterr().out.startswith("no answer: ")
