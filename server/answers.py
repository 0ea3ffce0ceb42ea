"""The layer around all others: counts every response by its route and, if asked to, writes a line about each.

A route is its template, never the path that was asked: who tries a million paths makes no new series. Lines
have the key's name and never the key; prompts and replies are in them only with --log-prompts. Health checks
and scrapes have none. Refuses to know what routes do: of a request's work it reads the ticket.

    >>> Middleware(Answers, metrics=metrics, paths=paths, log_requests=True)
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.keys import key_of
from server.logs import one_line
from server.metrics import Metrics
from server.ticket import Ticket

log = logging.getLogger("causerie.request")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"
OTHER = "other"
"""Labels of a path and of a method that nothing here answers to."""
WITHOUT_LINE = frozenset({"/live", "/ready", "/health", "/metrics"})
MAX_TEXT = 2000
"""Characters of a prompt and of a reply that --log-prompts shows."""

_WORD = re.compile(r"[^\s\"'=]+")


@dataclass(frozen=True, slots=True)
class RequestLine:
    """What the log says of a request. None is what it did not come to; times are since its arrival."""

    request_id: str
    key: str | None
    method: str
    route: str
    status: int
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    finish: str | None = None
    prompts: tuple[str, ...] | None = None
    replies: tuple[str, ...] | None = None

    def fields(self) -> dict[str, Any]:
        """What there is to say, in order; texts cut to what fits in a line."""
        known = {name: getattr(self, name) for name in self.__slots__}
        for name in ("prompts", "replies"):
            known[name] = None if known[name] is None else [cut(text) for text in known[name]]
        return {name: value for name, value in known.items() if value is not None}


def cut(text: str) -> str:
    """The beginning, and a sign that there was more."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def log_request(line: RequestLine) -> None:
    """Write it: `request request_id=... status=200 ...`, or the same as members of a JSON object."""
    fields = line.fields()
    words = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
    log.info("request %s", words, extra={"fields": fields, "title": "request"})


def _word(value: Any) -> str:
    """A value that ends where it seems to: JSON when it is a list, or could be taken for two."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    text = one_line(str(value))
    return text if _WORD.fullmatch(text) else json.dumps(str(value), ensure_ascii=False)


class Answers:
    """Around everything, so that no answer escapes it.

    Args:
        metrics: counts.
        paths: templates of the routes there are, for requests that are refused before they reach one.
        log_requests: whether every request has its line.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        paths: Iterable[str],
        log_requests: bool = False,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.log_requests = log_requests
        self._templates = [(_pattern(path), _name(path)) for path in paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})  # the layers below fill this dict, not one of their own
        arrived_at = time.monotonic()
        status = 0

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.metrics.answered(_method(scope), self._route(scope), status)  # before anyone can see it
            await send(message)

        try:
            await self.app(scope, receive, count)
        finally:
            route = self._route(scope)
            if self.log_requests and route not in WITHOUT_LINE:
                log_request(self._line(scope, route, status, time.monotonic() - arrived_at))

    def _line(self, scope: Scope, route: str, status: int, seconds: float) -> RequestLine:
        state = scope["state"]
        key, ticket = key_of(scope), state.get("ticket")
        common = {
            "request_id": state.get("request_id", "-"),
            "key": None if key is None else key.name,
            "method": _method(scope),
            "route": route,
            "status": status,
            "total_ms": _ms(seconds),
        }
        if not isinstance(ticket, Ticket):
            return RequestLine(**common)
        said = ticket.said
        return RequestLine(
            **common,
            model=ticket.model,
            prompt_tokens=ticket.num_prompt_tokens or None,
            completion_tokens=ticket.num_tokens if ticket.num_prompt_tokens else None,
            queue_ms=_ms(ticket.queue_seconds),
            ttft_ms=_ms(ticket.first_token_seconds),
            finish=",".join(ticket.finishes) or None,
            prompts=tuple(ticket.decode(prompt[: MAX_TEXT + 1]) for prompt, _ in said) or None,
            replies=tuple(text for _, texts in said for _, text in sorted(texts.items())) or None,
        )

    def _route(self, scope: Scope) -> str:
        """The template that the router chose, or would have, had the request come so far."""
        path = getattr(scope.get("route"), "path", None)
        if path is not None:
            return _name(path)
        return next(
            (name for pattern, name in self._templates if pattern.fullmatch(scope["path"])), UNMATCHED
        )


def _name(path: str) -> str:
    """/v1/models/{model_id:path} as the documents write it, /v1/models/{model_id}."""
    return re.sub(r":\w+\}", "}", path)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(r"\{[^}]*\}", path))), re.DOTALL)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else OTHER


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
