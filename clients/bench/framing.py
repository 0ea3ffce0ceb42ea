"""One HTTP/1.1 response: its head, its body and where it ends. Bytes may be cut anywhere.

    >>> response = Response()
    >>> response.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    b'hi'
    >>> response.is_over
    True

Refuses to know sockets and what the body says. `clients/client.py` reads the same through httpx, and a test
compares them.
"""

from __future__ import annotations

import re

from clients.wire import BadAnswer, Unreachable

MAX_HEAD_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 12
"""Of a chunk's size with its extensions, and of a trailer."""


_HEAD, _SIZE, _CHUNK, _CHUNK_END, _TRAILER, _LENGTH, _CLOSE, _NOTHING = range(8)
"""What comes next: the head; the line before a chunk, the rest of it, the line end after it; a line after the
last one; the rest of a body whose length the head said; all until the connection closes; nothing. Plain
numbers, since this is asked for every token: with an Enum's members a chunk costs 7 µs, with these 1."""

_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})\r\n")


class Response:
    """A reader fed with what a socket brings.

    Attributes:
        status: of the head; 0 until it is there.
        headers: of the head, names in lower case; of equal names the last.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._is_kept = False
        self._expects = _HEAD
        self._left = 0  # bytes of the chunk or body still to come
        self._held = b""  # of a head or a line that is not whole yet

    @property
    def is_over(self) -> bool:
        """Whether its last byte was seen."""
        return self._expects == _NOTHING

    @property
    def is_reusable(self) -> bool:
        """Whether the connection may carry another request now."""
        return self.is_over and self._is_kept

    def feed(self, data: bytes) -> bytes:
        """Bytes of the body among these.

        Raises:
            BadAnswer: it is not HTTP/1.
        """
        body, position = b"", 0
        if self._held:
            data, self._held = self._held + data, b""
        while position < len(data):
            piece, after = self._take(data, position)
            if after == position:
                self._held = data[position:]
                break
            body = body + piece if body else piece
            position = after
        return body

    def _take(self, data: bytes, position: int) -> tuple[bytes, int]:
        """A piece of the body from `position` on, and where to go on; the same place when a line is cut."""
        if self._expects == _SIZE and (line := _SIZE_LINE.match(data, position)) is not None:
            end = line.end() + int(line[1], 16)
            if data[end : end + 2] == b"\r\n" and end > line.end():
                return data[line.end() : end], end + 2  # the usual: a whole chunk, and nothing to remember
        if self._expects in (_CHUNK, _LENGTH):
            piece = data[position : position + self._left]
            self._left -= len(piece)
            if not self._left:
                self._expects = _CHUNK_END if self._expects == _CHUNK else _NOTHING
            return piece, position + len(piece)
        if self._expects == _CLOSE:
            return data[position:], len(data)
        if self._expects == _NOTHING:
            self._is_kept = False  # nobody asked for more: what follows is no answer to the next request
            return b"", len(data)
        return b"", self._read_line(data, position)

    def close(self) -> None:
        """The connection was closed.

        Raises:
            Unreachable: before the response was whole.
        """
        if self._expects not in (_CLOSE, _NOTHING):
            raise Unreachable("the connection was closed before the answer was whole")
        self._expects = _NOTHING
        self._is_kept = False

    def _read_line(self, data: bytes, position: int) -> int:
        """Where the bytes after the next line, or the head, begin; `position` while it is not whole."""
        mark = b"\r\n\r\n" if self._expects == _HEAD else b"\r\n"
        limit = MAX_HEAD_BYTES if self._expects == _HEAD else MAX_LINE_BYTES
        end = data.find(mark, position, position + limit)
        if end < 0:
            if len(data) - position >= limit:
                raise BadAnswer(f"a line or head of the answer is longer than {limit} bytes")
            return position
        self._take_line(data[position:end])
        return end + len(mark)

    def _take_line(self, line: bytes) -> None:
        if self._expects == _SIZE:
            self._take_size(line)
        elif self._expects == _CHUNK_END:
            if line:
                raise BadAnswer(f"a chunk of the answer is longer than it says: {line[:40]!r}")
            self._expects = _SIZE
        elif self._expects == _TRAILER:
            if not line:
                self._expects = _NOTHING
        else:
            self._take_head(line)

    def _take_size(self, line: bytes) -> None:
        digits = line.partition(b";")[0].rstrip()
        if _SIZE_LINE.fullmatch(digits + b"\r\n") is None:
            raise BadAnswer(f"the size of a chunk is not a number: {line[:40]!r}")
        self._left = int(digits, 16)
        self._expects = _CHUNK if self._left else _TRAILER

    def _take_head(self, head: bytes) -> None:
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = status_line.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
            raise BadAnswer(f"the answer is not HTTP/1.1: {status_line[:80]!r}")
        if code.startswith("1"):
            return  # "100 Continue" and its like: the head is still to come
        fields = (line.partition(":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        self.status = int(code)
        usual = "close" if version == "HTTP/1.0" else "keep-alive"
        self._is_kept = self.headers.get("connection", usual).lower() == "keep-alive"
        self._choose_body()

    def _choose_body(self) -> None:
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            self._expects = _NOTHING
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._expects = _SIZE
        elif length is None:
            self._expects, self._is_kept = _CLOSE, False
        elif not (length.isascii() and length.isdigit() and len(length) <= 15):
            raise BadAnswer(f"the answer's content-length is not a number: {length[:40]!r}")
        else:
            self._left = int(length)
            self._expects = _LENGTH if self._left else _NOTHING
