"""A small HTTP client for the chat API, sync and async.

Refuses to know the model, the server's code, terminals and retries: a failed call raises once, in one line.
What is said and how it is read lives in `wire.py`, so that the two classes differ in nothing but `await`.

    >>> client = Client("http://127.0.0.1:8000")
    >>> for chunk in client.stream([{"role": "user", "content": "what is a token?"}], temperature=0):
    ...     print(chunk["choices"][0]["delta"].get("content", ""), end="")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import httpx

from clients.wire import (
    JSON,
    ChunkReader,
    Messages,
    Request,
    chat_request,
    check,
    get_request,
    http_settings,
    read_body,
    read_models,
    reporting,
    root_url,
    tokenize_request,
)

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 600.0

Chunks = TypeVar("Chunks", bound=Iterator[JSON] | AsyncIterator[JSON])


@dataclass(frozen=True)
class Reply(Generic[Chunks]):
    """A streamed answer: its headers, already there, and its chunks, to be iterated once."""

    headers: Mapping[str, str]
    chunks: Chunks


class Client:
    """The API as six calls. Every keyword of a call is a field of the request; None is not sent.

    Args:
        base_url: the server's address, with or without /v1.
        api_key: sent as a bearer token when given.
        timeout: seconds without a byte from the server (which sends a comment while it computes).
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self.url = root_url(base_url)
        self._http = httpx.Client(**http_settings(self.url, api_key, timeout))

    def chat(self, messages: Messages, **params: Any) -> JSON:
        """The whole answer. Raises ApiError, Unreachable, BadAnswer."""
        return self._call(chat_request(messages, params))

    def stream(self, messages: Messages, **params: Any) -> Iterator[JSON]:
        """The answer's chunks as they come. Raises as `chat` does, at any chunk."""
        with self.open_stream(messages, **params) as reply:
            yield from reply.chunks

    @contextmanager
    def open_stream(self, messages: Messages, **params: Any) -> Iterator[Reply[Iterator[JSON]]]:
        """The answer's headers and chunks; leaving the block early hangs up, which ends the reply."""
        request = chat_request(messages, params, stream=True)
        with reporting(self.url), self._http.stream(**request) as response:
            if response.is_error:
                response.read()
            check(response)
            yield Reply(response.headers, self._chunks(response))

    def models(self) -> list[JSON]:
        """Models served, the default one first."""
        return read_models(self._call(get_request("/v1/models")))

    def health(self) -> JSON:
        """The server's state and totals."""
        return self._call(get_request("/health"))

    def tokenize(self, messages: Messages, **params: Any) -> JSON:
        """The tokens of a conversation, their count and the model's limit: vLLM's shape, and ours."""
        return self._call(tokenize_request(messages, params))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, request: Request) -> JSON:
        with reporting(self.url):
            return read_body(self._http.request(**request))

    def _chunks(self, response: httpx.Response) -> Iterator[JSON]:
        reader = ChunkReader()
        with reporting(self.url):
            for data in response.iter_bytes():
                yield from reader.feed(data)
                if reader.done:
                    return
        yield from reader.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """Client's calls for an event loop: same arguments, same errors."""

    def __init__(
        self, base_url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self.url = root_url(base_url)
        self._http = httpx.AsyncClient(**http_settings(self.url, api_key, timeout))

    async def chat(self, messages: Messages, **params: Any) -> JSON:
        return await self._call(chat_request(messages, params))

    async def stream(self, messages: Messages, **params: Any) -> AsyncIterator[JSON]:
        async with self.open_stream(messages, **params) as reply:
            async for chunk in reply.chunks:
                yield chunk

    @asynccontextmanager
    async def open_stream(
        self, messages: Messages, **params: Any
    ) -> AsyncIterator[Reply[AsyncIterator[JSON]]]:
        request = chat_request(messages, params, stream=True)
        with reporting(self.url):
            async with self._http.stream(**request) as response:
                if response.is_error:
                    await response.aread()
                check(response)
                yield Reply(response.headers, self._chunks(response))

    async def models(self) -> list[JSON]:
        return read_models(await self._call(get_request("/v1/models")))

    async def health(self) -> JSON:
        return await self._call(get_request("/health"))

    async def tokenize(self, messages: Messages, **params: Any) -> JSON:
        return await self._call(tokenize_request(messages, params))

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(self, request: Request) -> JSON:
        with reporting(self.url):
            return read_body(await self._http.request(**request))

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[JSON]:
        reader = ChunkReader()
        with reporting(self.url):
            async for data in response.aiter_bytes():
                for chunk in reader.feed(data):
                    yield chunk
                if reader.done:
                    return
        for chunk in reader.flush():
            yield chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
