"""Clients that hold on to a server without using it, in a process of their own: they must slow the server if
anybody, not the client that measures.

    $ python -m tests.endurance.offenders frozen http://127.0.0.1:8000
    ready
    {"cut": 4, "of": 4, "seconds": 2.31}

The first line comes once every connection is open and has asked for what it will not take, the second once
all have ended, or two minutes later. `polite` asks for the same as the bad readers and reads it. Refuses to
know what the server is.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tests.endurance.raw import CHAT, post

NUM_READERS, NUM_HALF_OPEN, NUM_HALF_CLOSED = 4, 300, 40
TICK_SECONDS, HALF_CLOSE_SECONDS, DRIP_SECONDS = 0.05, 0.1, 0.25
GIVE_UP_SECONDS = 120.0
RECEIVE_BUFFER_BYTES = 4096
DONE = b"[DONE]"
ONE_LETTER = {"logit_bias": {str(ord("a")): 100}}
"""Of the byte tokenizer: each token is a character, so each is sent as soon as it exists."""
ASKED = {
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 2000,
    "ignore_eos": True,
    "stream": True,
    "logprobs": True,  # kilobytes a token
    "top_logprobs": 20,
    **ONE_LETTER,
}


class Client:
    """One connection; `cut` once the server has ended it before a stream was whole."""

    def __init__(self, url: str, sent: bytes) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._ask_every_second()
        self.socket.connect((urlsplit(url).hostname, urlsplit(url).port))
        self.socket.sendall(sent)
        self.socket.setblocking(False)
        self.last, self.cut = b"", False

    def _ask_every_second(self) -> None:
        """Have the kernel ask whether the server is there: the reset of a connection whose reader has no room
        is lost, by the rules of TCP, and is said again to whoever asks.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 0))
        for option in (idle, socket.TCP_KEEPINTVL):
            self.socket.setsockopt(socket.IPPROTO_TCP, option, 1)

    def read(self, num_bytes: int) -> None:
        """Take as much as that, and notice a reset."""
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.cut = True
        try:
            while num_bytes > 0 and not self.cut:
                data = self.socket.recv(min(num_bytes, 1 << 16))
                self.last = (self.last + data)[-100:]
                self.cut = not data and DONE not in self.last
                num_bytes = num_bytes - len(data) if data else 0
        except BlockingIOError:
            pass
        except ConnectionError:
            self.cut = True

    def drip(self) -> None:
        """Send one byte more."""
        try:
            self.socket.send(b"x")
        except ConnectionError:
            self.cut = True


def readers(url: str, bytes_per_second: float) -> Iterator[list[Client]]:
    """Streams read at this pace; 0 never reads."""
    clients = [Client(url, post(CHAT, ASKED)) for _ in range(NUM_READERS)]
    due = 0.0
    while True:
        yield clients
        time.sleep(TICK_SECONDS)
        due += bytes_per_second * TICK_SECONDS
        for client in clients:
            client.read(int(due))
        due %= 1


def half_closed(url: str) -> Iterator[list[Client]]:
    """One after the other asks for a stream and closes its sending half; ten a second, for a request costs
    something to read, whoever sends it.
    """
    clients: list[Client] = []
    while True:
        if len(clients) < NUM_HALF_CLOSED:
            clients.append(Client(url, post(CHAT, ASKED)))
            clients[-1].socket.shutdown(socket.SHUT_WR)
        yield clients
        time.sleep(HALF_CLOSE_SECONDS)
        for client in clients:
            client.read(1 << 30)


def half_open(url: str) -> Iterator[list[Client]]:
    """Many begin a request; a byte from each now and then, never the last."""
    clients = [Client(url, b"POST /v1/chat/completions HTTP/1.1\r\nhost: ") for _ in range(NUM_HALF_OPEN)]
    while True:
        yield clients
        time.sleep(DRIP_SECONDS)
        for client in clients:
            if not client.cut:
                client.drip()
                client.read(1 << 30)


KINDS: dict[str, tuple[Callable[[str], Iterator[list[Client]]], int]] = {
    "polite": (lambda url: readers(url, 1e9), NUM_READERS),
    "slow": (lambda url: readers(url, 4096.0), NUM_READERS),
    "a byte a second": (lambda url: readers(url, 1.0), NUM_READERS),
    "frozen": (lambda url: readers(url, 0.0), NUM_READERS),
    "half-closed": (half_closed, NUM_HALF_CLOSED),
    "half-open": (half_open, NUM_HALF_OPEN),
}


def main() -> int:
    """Offend until cut; see the module."""
    kind, url = sys.argv[1:]
    offend, total = KINDS[kind]
    start, num_cut = time.monotonic(), 0
    for i, clients in enumerate(offend(url)):
        if i == 0:
            print("ready", flush=True)
        num_cut = sum(client.cut for client in clients)
        if num_cut == total or time.monotonic() - start > GIVE_UP_SECONDS:
            break
    print(json.dumps({"cut": num_cut, "of": total, "seconds": time.monotonic() - start}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
