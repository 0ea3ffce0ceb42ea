"""Docker's health check: exit 0 when the server in this container answers GET /ready with 200, else 1.

Refuses to know the server: an address, a path and a status. Two variables choose the address; a --port flag
it cannot see, so choose the port with CAUSERIE_PORT, or outside with `docker run -p`. Bare sockets: this runs
every few seconds beside the model, and importing an HTTP client would cost more than the answer.

    $ CAUSERIE_PORT=8000 python3 deploy/docker/healthcheck.py && echo ready
"""

from __future__ import annotations

import os
import socket
import sys

SECONDS = 4.0
EVERYWHERE = {"", "0.0.0.0", "::"}


def main() -> int:
    """Ask once, and print the status line or the reason there is none."""
    host = os.environ.get("CAUSERIE_HOST", "")
    port = int(os.environ.get("CAUSERIE_PORT", "8000"))
    try:
        line = status_line("127.0.0.1" if host in EVERYWHERE else host, port)
    except OSError as error:
        line = f"no answer: {error}"
    print(line)
    return 0 if line.split()[1:2] == ["200"] else 1


def status_line(host: str, port: int, path: str = "/ready") -> str:
    """The first line of the answer, such as `HTTP/1.1 200 OK`. Raises OSError when there is none in time."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, port), SECONDS) as connection:
        connection.sendall(request.encode())
        return connection.recv(1 << 10).decode("latin-1").partition("\r\n")[0]


if __name__ == "__main__":
    sys.exit(main())
