"""The outermost layer: every response carries x-request-id, and every exception becomes an answer.

Pure ASGI: it never buffers a body and never stands between a stream and its disconnect.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import error_response, log_error, to_api_error

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""Of the request this task serves, for whoever writes log lines."""

_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def choose_id(given: bytes | None) -> str:
    """The client's own id when it is short and printable, else a new one."""
    return (
        given.decode("ascii") if given is not None and _SANE.fullmatch(given) else f"req_{uuid.uuid4().hex}"
    )


class RequestId:
    """Adds the header, and answers for whatever nobody below foresaw."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_id(dict(scope["headers"]).get(b"x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log_error(error, request_id)
            if started:
                raise  # too late for an answer: the server closes the connection
            await error_response(to_api_error(error, request_id))(scope, receive, send_with_id)
