"""What runs inside each of Ray's HTTP proxies: conversations get their session, errors get OpenAI's shape.

    $ RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray_proxy.middlewares ray start --head

Without it everything works, but conversations only keep to a replica when clients send `x-session-id`, and
what Ray itself answers is plain text: a replica that was lost, a full queue, nothing deployed. Refuses to
know models and replicas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_HEADER = b"x-session-id"
"""Ray's own name for it; RAY_SERVE_SESSION_ID_HEADER_KEY would change it."""
REPLICA_HEADER = b"x-replica"
"""On every answer that is a replica's own."""
RAYS_OWN = "/-/"
"""Paths that Ray answers itself: health and routes of a proxy."""
CONVERSATIONS = frozenset({"/v1/chat/completions", "/v1/completions"})
MAX_BODY_BYTES = 256 << 10
"""A longer request is routed by load alone: a proxy works for a whole node."""
OPENING_CHARACTERS = 1024
"""Of a plain prompt, that tell it from others."""


def middlewares() -> list[Middleware]:
    """Called by Ray in each proxy; the last is the outermost."""
    return [Middleware(SessionOfConversation), Middleware(ErrorsInShape)]


class SessionOfConversation:
    """Gives a request without a session one made of how it begins, and hands its body on untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _needs_session(scope):
            await self.app(scope, receive, send)
            return
        read, body = await _read(receive)
        session = None if body is None else session_of(body)
        if session is not None:
            scope = {**scope, "headers": [*scope["headers"], (SESSION_HEADER, session.encode("ascii"))]}
        await self.app(scope, _again(read, receive), send)


def session_of(body: bytes) -> str | None:
    """The same for requests of one conversation: by `prompt_cache_key`, else by how the prompt begins.

    None where that cannot be told. What is wrong with a body is for the replica to say.

    >>> session_of(b'{"prompt": "Once"}') == session_of(b'{"prompt": "Once", "seed": 1}')
    True
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    key = fields.get("prompt_cache_key")
    opening = key if isinstance(key, str) and key else _opening(fields)
    if not opening:
        return None
    return hashlib.blake2b(json.dumps(opening).encode(), digest_size=8).hexdigest()


def _opening(fields: dict[str, Any]) -> object:
    """Messages up to the user's first one, or the start of a plain prompt."""
    messages, prompt = fields.get("messages"), fields.get("prompt")
    if isinstance(messages, list):
        roles = [one.get("role") if isinstance(one, dict) else None for one in messages]
        return messages[: roles.index("user") + 1] if "user" in roles else messages
    return prompt[:OPENING_CHARACTERS] if isinstance(prompt, str) else None


def _needs_session(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] == "POST"
        and scope["path"] in CONVERSATIONS
        and all(name.replace(b"_", b"-") != SESSION_HEADER for name, _ in scope["headers"])
    )


async def _read(receive: Receive) -> tuple[list[Message], bytes | None]:
    """The messages of a body, and the body itself unless it is too long or broken off."""
    read: list[Message] = []
    parts: list[bytes] = []
    while sum(map(len, parts)) <= MAX_BODY_BYTES:
        message = await receive()
        read.append(message)
        if message["type"] != "http.request":
            return read, None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return read, b"".join(parts)
    return read, None


def _again(read: Sequence[Message], receive: Receive) -> Receive:
    waiting = iter(read)

    async def receive_again() -> Message:
        return next(waiting, None) or await receive()

    return receive_again


class ErrorsInShape:
    """Ends what Ray leaves open, and says what Ray says as OpenAI would."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAYS_OWN):
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        await self.app(scope, receive, answer.send)
        await answer.end()


class _Answer:
    """What was sent of one response."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._is_ours = self._is_stream = self._is_whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            self._start = message
            self._is_ours = REPLICA_HEADER in headers or message["status"] < 400
            self._is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        elif not message.get("more_body", False):
            self._is_whole = True
        if self._is_ours:
            await self._send(message)

    async def end(self) -> None:
        """Whatever is missing after the replica's part. A reply of another kind that broke off stays so."""
        if self._start is None:
            await self._refuse(503, [])
        elif not self._is_ours:
            await self._refuse(self._start["status"], self._start["headers"])
        elif self._is_stream and not self._is_whole:
            frames = b"data: " + json.dumps(error_of(503)).encode() + b"\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": frames, "more_body": False})

    async def _refuse(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        body = json.dumps(error_of(status)).encode()
        kept = [(name, value) for name, value in headers if name in (b"retry-after", b"x-request-id")]
        if status == 503 and all(name != b"retry-after" for name, _ in kept):
            kept.append((b"retry-after", b"1"))
        shown = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *kept]
        await self._send({"type": "http.response.start", "status": status, "headers": shown})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def error_of(status: int) -> dict[str, Any]:
    """OpenAI's error object for what Ray answers in a replica's place."""
    code, message = {
        404: ("not_deployed", "nothing is deployed here"),
        408: ("request_timeout", "the cluster's time for a request is over"),
        429: ("queue_full", "the cluster's queue is full"),
        503: ("replica_unavailable", "no replica could finish this request; it can be sent again"),
    }.get(status, ("internal_error", "the cluster could not answer"))
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
