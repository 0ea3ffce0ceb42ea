r"""Server-sent events: chunks in, frames out. The only file that knows sse-starlette.

A frame is `data: JSON\n\n`; the stream ends with `data: [DONE]`, after an error too. The library's defaults
that would hurt are set here: separator "\r\n", no send timeout, and streams cut at once on SIGTERM (our own
drain ends them). Refuses to know what a chunk says.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.errors import ClientGone, log_error, request_id_of, to_api_error

AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

log = logging.getLogger("causerie.server")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

T = TypeVar("T")


async def finish_unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, or cancel it as soon as the client closes its connection.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    try:
        await _wait(request, task, None)
        return task.result()
    finally:
        await _cancel(task)


async def open_stream(
    request: Request,
    chunks: AsyncGenerator[bytes, None],
    *,
    headers: dict[str, str],
    keep_alive: float,
    send_timeout: float,
) -> EventSourceResponse:
    """Answer with a stream once its first chunk exists, or after one keep-alive interval without one.

    Until then an error is an HTTP error and a client that leaves is noticed; afterwards an error is a frame.

    Args:
        chunks: one JSON text each, on one line; closed here whatever happens.
        headers: added to the response.
        keep_alive: seconds between comments while nothing else is sent.
        send_timeout: seconds one send may take before a stalled client is cut off.

    Raises:
        ClientGone: the client left before the first chunk.
    """
    first = asyncio.ensure_future(anext(chunks))
    try:
        await _wait(request, first, keep_alive)
        if first.done():
            first.result()
    except BaseException:
        await _cancel(first)
        await chunks.aclose()
        raise
    return _EventStream(first, chunks, request_id_of(request), headers, keep_alive, send_timeout)


class _EventStream(EventSourceResponse):
    """The response: pings and disconnects are sse-starlette's, closing the chunks is ours."""

    def __init__(
        self,
        first: asyncio.Future[bytes],
        chunks: AsyncGenerator[bytes, None],
        request_id: str,
        headers: dict[str, str],
        keep_alive: float,
        send_timeout: float,
    ) -> None:
        self._first, self._chunks, self._request_id = first, chunks, request_id
        self._frames = _frames(first, chunks, request_id)
        super().__init__(
            self._frames,
            headers={**headers, "Cache-Control": "no-store"},
            ping=keep_alive,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
            send_timeout=send_timeout,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info(
                "request %s: the client stopped reading for %s s and was cut",
                self._request_id,
                self.send_timeout,
            )
        finally:
            await self._frames.aclose()
            await _cancel(self._first)
            await self._chunks.aclose()


async def _frames(
    first: asyncio.Future[bytes], chunks: AsyncGenerator[bytes, None], request_id: str
) -> AsyncGenerator[bytes, None]:
    try:
        if not first.done():
            yield PING
        yield b"data: " + await first + b"\n\n"
        async for chunk in chunks:
            yield b"data: " + chunk + b"\n\n"
    except Exception as error:
        log_error(error, request_id)
        yield b"data: " + json.dumps(to_api_error(error, request_id).body).encode() + b"\n\n"
    yield DONE


async def _wait(request: Request, work: asyncio.Future[Any], timeout: float | None) -> None:
    """Until work is done, the time is over, or the client is gone."""
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not work.done():
            raise ClientGone
    finally:
        await _cancel(gone)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    """End a task and take its result: nothing is left running, nothing is reported as never retrieved."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
