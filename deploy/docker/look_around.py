"""Told from inside a container: what its first process may do, and what a write and a connection meet.

Piped into the container's own Python by `try_image.py`; prints one JSON object. Refuses to know the server.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys

FIELDS = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "VmRSS", "Threads")
ELSEWHERE = ("192.0.2.1", 80)  # RFC 5737: an address of nobody's


def status_of(pid: int) -> dict[str, str]:
    """The kernel's word about a process, as it writes it."""
    with open(f"/proc/{pid}/status") as lines:
        pairs = (line.split(":", 1) for line in lines)
        return {name: " ".join(value.split()) for name, value in pairs if name in FIELDS}


def kernel_of(pid: int) -> str | None:
    """The compiled library that a process has mapped to compute with, or None."""
    with open(f"/proc/{pid}/maps") as lines:
        paths = (line.split()[-1] for line in lines)
        return next((os.path.basename(path) for path in paths if "/native/built/" in path), None)


def meets(attempt: str) -> str:
    """How writing a file into a folder ends: the error's name, or `written`."""
    path = os.path.join(attempt, ".touched")
    try:
        with open(path, "w"):
            pass
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    os.unlink(path)
    return "written"


def reaches() -> str:
    """How a connection out of here ends: the error's name, or `connected`."""
    try:
        socket.create_connection(ELSEWHERE, 3).close()
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "connected"


def main() -> None:
    """Look, and tell."""
    with open("/proc/1/cmdline") as file:
        command = file.read().split("\0")[:-1]
    told = {
        "command": command,
        "server": status_of(1),
        "kernel": kernel_of(1),
        "me": status_of(os.getpid()),
        "writes": {folder: meets(folder) for folder in sys.argv[1:]},
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "outside": reaches(),
    }
    print(json.dumps(told))


main()
