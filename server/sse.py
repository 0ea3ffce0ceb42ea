r"""Server-sent events: chunks in, frames out. The only file that knows sse-starlette.

A frame is `data: JSON\n\n`; the stream ends with `data: [DONE]`, after an error too. What came together
leaves in one write. The library's defaults that would hurt are set here: separator "\r\n", no send timeout,
and streams cut at once on SIGTERM (our own drain ends them). Refuses to know what a chunk says.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

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
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await _wait(task, gone, None)
        return task.result()
    finally:
        await _cancel(task, gone)


async def open_stream(
    request: Request,
    chunks: AsyncGenerator[list[bytes], None],
    *,
    headers: dict[str, str],
    keep_alive: float,
    send_timeout: float,
) -> EventSourceResponse:
    """Answer with a stream once its first chunk exists, or after one keep-alive interval without one.

    Until then an error is an HTTP error and a client that leaves is noticed; afterwards an error is a frame.

    Args:
        chunks: JSON texts, each on one line; those that come together leave in one write. Closed here
            whatever happens.
        headers: added to the response.
        keep_alive: seconds between comments while nothing else is sent.
        send_timeout: seconds one send may take before a stalled client is cut off.

    Raises:
        ClientGone: the client left before the first chunk.
    """
    first, gone = asyncio.ensure_future(anext(chunks)), asyncio.ensure_future(_disconnect(request))
    try:
        await _wait(first, gone, keep_alive)
        if first.done():
            first.result()
    except BaseException:
        await _cancel(first, gone)
        await chunks.aclose()
        raise
    return _EventStream(first, chunks, gone, request_id_of(request), headers, keep_alive, send_timeout)


class _EventStream(EventSourceResponse):
    """The response. Its headers and the order of what is sent are sse-starlette's; watching the client is
    ours. The library has four tasks a stream for that and sets a clock for every frame, 0.25 ms and 13 µs;
    here one task waits for the client's goodbye, and one clock sees who stalls and fills silence.
    """

    def __init__(
        self,
        first: asyncio.Future[list[bytes]],
        chunks: AsyncGenerator[list[bytes], None],
        gone: asyncio.Future[None],
        request_id: str,
        headers: dict[str, str],
        keep_alive: float,
        send_timeout: float,
    ) -> None:
        self._first, self._chunks, self._gone, self._request_id = first, chunks, gone, request_id
        self._frames = _frames(first, chunks, request_id)
        self._keep_alive, self._limit = keep_alive, send_timeout
        self._loop = asyncio.get_running_loop()
        self._is_over = False
        self._end = asyncio.timeout(None)  # brought forward when the client has gone or stalls
        self._clock: asyncio.TimerHandle | None = None
        self._ping_task: asyncio.Future[None] | None = None
        self._sent_at = self._loop.time()
        self._sending_since: float | None = None
        super().__init__(self._frames, headers={**headers, "Cache-Control": "no-store"}, sep="\n")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._end:
                self._gone.add_done_callback(self._leave)
                self._watch(send)
                await self._stream_response(send)
        except TimeoutError:
            if not self._end.expired():
                raise
            if not self._gone.done():
                log.info(
                    "request %s: the client stopped reading for %s s and was cut",
                    self._request_id,
                    self._limit,
                )
        finally:
            self._is_over = True
            self._gone.remove_done_callback(self._leave)
            if self._clock is not None:
                self._clock.cancel()
            if self._ping_task is not None:
                await _cancel(self._ping_task)
            await self._frames.aclose()
            await _cancel(self._first)
            await self._chunks.aclose()
            await _cancel(self._gone)

    def _leave(self, _: asyncio.Future[None] | None = None) -> None:
        """Once, and not when all is said: a goodbye may be on its way to us when the last frame leaves."""
        if not self._is_over:
            self._is_over = True
            self._end.reschedule(self._loop.time())

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """The library's, without its clock. Whatever gets through says that the client reads."""
        self._sent_at = self._loop.time()
        if self._sending_since is None:
            self._sending_since = self._sent_at
        await send(message)
        self._sending_since = None

    async def _ping(self, send: Send) -> None:
        async with self._send_lock:
            if self.active:
                await self._send_with_timeout(send, _body(PING))

    def _watch(self, send: Send) -> None:
        """Leave a client that has not taken for too long what was sent, and tell one that we are here; look
        again when either could be due.
        """
        now = self._loop.time()
        if self._sending_since is not None:
            due = self._sending_since + self._limit
            if due <= now:
                self._leave()
                return
        else:
            if self._sent_at + self._keep_alive <= now:
                self._sent_at = now
                self._ping_task = asyncio.ensure_future(self._ping(send))
            due = min(self._sent_at + self._keep_alive, now + self._limit)
        self._clock = self._loop.call_at(due, self._watch, send)


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _frames(
    first: asyncio.Future[list[bytes]], chunks: AsyncGenerator[list[bytes], None], request_id: str
) -> AsyncGenerator[bytes, None]:
    try:
        if not first.done():
            yield PING
        yield _framed(await first)
        async for arrived in chunks:
            yield _framed(arrived)
    except Exception as error:
        log_error(error, request_id)
        yield b"data: " + json.dumps(to_api_error(error, request_id).body).encode() + b"\n\n"
    yield DONE


def _framed(chunks: list[bytes]) -> bytes:
    return b"data: " + b"\n\ndata: ".join(chunks) + b"\n\n"


async def _wait(work: asyncio.Future[Any], gone: asyncio.Future[None], timeout: float | None) -> None:
    """Until work is done, the time is over, or the client is gone."""
    await asyncio.wait({work, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if gone.done() and not work.done():
        raise ClientGone


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """End tasks and take their results: nothing is left running, nothing is reported as never retrieved."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
