"""A client of one of Ray's proxies that notes what it sees, failures included. Runs in Ray's environment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

COMPLETIONS = "/v1/completions"


@dataclass
class Reply:
    """What a client saw of one request."""

    began: float
    status: int = 0
    replica: str = ""
    headers: list[str] = field(default_factory=list)
    pieces: int = 0
    first_piece: float = 0.0
    tokens: int = 0
    finish: str | None = None
    done: bool = False
    ended: float = 0.0
    error: str | None = None

    def read(self, line: str) -> None:
        """A line of the stream."""
        if line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            chunk = json.loads(line.removeprefix("data: "))
            self.pieces += 1
            self.first_piece = self.first_piece or time.monotonic()
            if "error" in chunk:
                self.error = json.dumps(chunk["error"])
            for choice in chunk.get("choices", ()):
                self.finish = choice["finish_reason"] or self.finish
            if chunk.get("usage"):
                self.tokens = chunk["usage"]["completion_tokens"]


def prompt(text: str, tokens: int) -> dict[str, Any]:
    """A request for exactly so many tokens."""
    return {"prompt": text, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


class Door:
    """One address to send requests to."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self.client, self.url = client, url

    async def ask(self, body: dict[str, Any]) -> Reply:
        """A whole reply."""
        reply = Reply(time.monotonic())
        try:
            answer = await self.client.post(self.url + COMPLETIONS, json=body)
            reply.status, reply.replica = answer.status_code, answer.headers.get("x-replica", "")
            reply.headers = [name.lower() for name, _ in answer.headers.multi_items()]
            if answer.status_code == 200:
                reply.tokens = answer.json()["usage"]["completion_tokens"]
            else:
                reply.error = answer.text[:200]
        except httpx.HTTPError as error:
            reply.error = repr(error)
        reply.ended = time.monotonic()
        return reply

    def stream(self, body: dict[str, Any], session: str | None = None) -> tuple[Reply, asyncio.Task[None]]:
        """A reply that fills while its task runs. Cancelled, it closes the connection."""
        reply = Reply(time.monotonic())
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        return reply, asyncio.create_task(self._read(reply, body, session))

    async def health(self, session: str) -> tuple[str, dict[str, Any]]:
        """The replica that a session leads to, and how it is."""
        answer = await self.client.get(self.url + "/health", headers=_headers(session))
        return answer.headers["x-replica"], answer.json()

    @contextlib.asynccontextmanager
    async def load(self, wide: int, tokens: int = 40) -> AsyncIterator[list[Reply]]:
        """Short requests, so many at a time, for as long as the block runs."""
        replies: list[Reply] = []
        over = False

        async def asking(lane: int) -> None:
            number = 0
            while not over:
                number += 1
                replies.append(await self.ask(prompt(f"{lane}.{number}", tokens)))
                await asyncio.sleep(0.02)

        lanes = [asyncio.create_task(asking(lane)) for lane in range(wide)]
        try:
            yield replies
        finally:
            over = True
            await asyncio.gather(*lanes)

    async def _read(self, reply: Reply, body: dict[str, Any], session: str | None) -> None:
        headers, url = _headers(session), self.url + COMPLETIONS
        try:
            async with self.client.stream("POST", url, json=body, headers=headers) as answer:
                reply.status, reply.replica = answer.status_code, answer.headers.get("x-replica", "")
                async for line in answer.aiter_lines():
                    reply.read(line)
        except httpx.HTTPError as error:
            reply.error = repr(error)
        reply.ended = time.monotonic()


def _headers(session: str | None) -> dict[str, str]:
    return {} if session is None else {"x-session-id": session}
