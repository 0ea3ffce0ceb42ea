"""HTTP/1.1 as bytes: h11 with limits on what came in one piece too, a memory of what was wrong, answers of
our own, and chunks that cost less. Refuses to know sockets, time and what a request asks for.
"""

from __future__ import annotations

import json
from http import HTTPStatus

import h11

from server.errors import ApiError
from server.request_id import choose_id

MAX_HEAD_BYTES, MAX_HEAD_FIELDS = 16 << 10, 100
CRUMB_BYTES, MAX_CRUMBS = 256, 1024
"""A chunk costs 20 µs to read, however small: a megabyte in chunks of one byte stops the loop for 20 s."""
CHUNKED = b"\r\nTransfer-Encoding: chunked\r\n"
"""As h11 writes it when it chooses it: in HTTP/1.1, for a length that nobody knows."""


class Parser(h11.Connection):
    """One connection's."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._error: h11.RemoteProtocolError | None = None
        self._method = b""
        self._num_crumbs = 0
        self._is_chunking = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._method, self._num_crumbs = event.method, 0
                _check_head(event)
            elif isinstance(event, h11.Data) and len(event.data) < CRUMB_BYTES:
                self._num_crumbs += 1
                if self._num_crumbs > MAX_CRUMBS:
                    raise h11.RemoteProtocolError("the body comes in pieces of a few bytes")
            return event
        except h11.RemoteProtocolError as error:
            self._error = error
            raise

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """What `send` joins. A chunk, of which a stream has one for every token, goes past the state machine:
        between a message's head and its end that stays where it is.
        """
        if type(event) is h11.Data and self._is_chunking and self.our_state is h11.SEND_BODY:
            return [b"%x\r\n" % len(event.data), event.data, b"\r\n"] if event.data else []
        sent = super().send_with_data_passthrough(event)
        if isinstance(event, h11.Response):
            self._is_chunking = CHUNKED in b"".join(sent or ()) and self._method != b"HEAD"
        return sent

    def complaint(self) -> ApiError:
        """What to say of bytes that are no request."""
        if self._error is not None and self._error.error_status_hint == 431:
            message = f"the headers are larger than {MAX_HEAD_BYTES} bytes or more than {MAX_HEAD_FIELDS}"
            return ApiError(431, message, code="headers_too_large")
        reason = str(self._error).partition(":")[0][:200]  # after the colon it repeats what the client sent
        return ApiError(400, f"this is not a request in HTTP/1.1: {reason}", code="invalid_http")

    def answer(self, error: ApiError, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The last answer on this connection."""
        has_body = self.our_state is h11.IDLE or self._method != b"HEAD"
        body = json.dumps(error.body).encode()
        own = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": choose_id(None),
            **error.headers,
        }
        response = h11.Response(
            status_code=error.status,
            reason=HTTPStatus(error.status).phrase.encode(),
            headers=[*headers, *((name.encode(), value.encode()) for name, value in own.items())],
        )
        return b"".join(
            (
                self.send(response),
                self.send(h11.Data(data=body if has_body else b"")),
                self.send(h11.EndOfMessage()),
            )
        )


def _check_head(request: h11.Request) -> None:
    num_bytes = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    if len(request.headers) > MAX_HEAD_FIELDS or num_bytes > MAX_HEAD_BYTES:
        raise h11.RemoteProtocolError("headers too large", error_status_hint=431)
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}:
        # a proxy in front that believes the other one sees another request in what follows
        raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
