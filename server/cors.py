"""Web pages: which may use this server, and which may read what it answers. Refuses to know keys.

A browser lets any page send requests to every server it can reach, this machine's own included, and only
keeps it from reading the answers. So two things are decided here, by the `Origin` that browsers add to them:

- `CorsHeaders`: pages of the origins in --cors-origin may read answers, errors and streams too; no others.
- `BrowserGate`: without keys, pages of other origins may not even ask. With keys it only answers preflights:
  a page that has a key was given it by somebody.

The server's own page is welcome, unless it goes by a name of the public DNS: the owner of such a name can
point it here after the page has loaded (DNS rebinding). For the same reason a server without keys that
listens to its own machine only answers to no such name at all, but those in --cors-origin.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from dataclasses import dataclass
from typing import Self

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import is_open
from server.errors import ApiError, error_response
from server.settings import Settings, SettingsError

log = logging.getLogger("causerie.server")

ANY = "*"
METHODS = "GET, HEAD, POST, DELETE"
REQUEST_HEADERS = "authorization, content-type, x-api-key, x-request-id"
EXPOSED = (
    "x-request-id",
    "x-seed",
    "x-ignored-params",
    "x-truncated-messages",
    "x-should-retry",
    "retry-after",
)
"""What docs/api.md tells of answers; scripts see no header that is not named."""
MAX_AGE_SECONDS = 600
PORTS = {"http": 80, "https": 443}
LOCAL_DOMAINS = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Nobody can buy a name below these, nor one without a dot."""

_NAME = r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?)"
_PORT = r"(?::(?P<port>[0-9]{1,5}))?"
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://" + _NAME + _PORT)
_HOST = re.compile(_NAME + r"\.?" + _PORT)
_HEADER_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: *, *[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a page comes from. Without a port: 80 or 443 for the web, none for other schemes."""

    scheme: str
    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """`scheme://name[:port]` as browsers write it; None for anything else, `null` included."""
        match = _ORIGIN.fullmatch(text.lower())
        if match is None:
            return None
        return cls(match["scheme"], match["name"], _port(match, match["scheme"]))


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins whose pages are welcome.

    >>> Origins.of(load_settings(["--cors-origin", "http://localhost:3000"])).allow("http://localhost:3000")
    True
    """

    listed: frozenset[Origin] = frozenset()
    everyone: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of --cors-origin.

        Raises:
            SettingsError: one is no origin; in one line.
        """
        listed = frozenset(_read_origin(text) for text in settings.cors_origin if text != ANY)
        return cls(listed, ANY in settings.cors_origin)

    def __bool__(self) -> bool:
        return self.everyone or bool(self.listed)

    def allow(self, origin: str) -> bool:
        """Whether pages of this origin may use the server."""
        return self.everyone or Origin.parse(origin) in self.listed

    def allow_name(self, name: str) -> bool:
        """Whether the server may go by this name."""
        return self.everyone or any(origin.name == name for origin in self.listed)


class CorsHeaders:
    """Lets pages of listed origins read every answer. The outermost layer: errors of all others included."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.origins:
            await self.app(scope, receive, send)
            return
        origin = _only(Headers(scope=scope).getlist("origin"))

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if not self.origins.everyone:
                    headers.add_vary_header("Origin")  # or a cache gives one page another's answer
                if origin is not None and self.origins.allow(origin):
                    headers["access-control-allow-origin"] = ANY if self.origins.everyone else origin
                    headers["access-control-expose-headers"] = ", ".join(EXPOSED)
            await send(message)

        await self.app(scope, receive, send_readable)


class BrowserGate:
    """Answers preflights; refuses pages, and names, that a server without keys should not answer to.

    Args:
        origins: whose pages are welcome.
        needs_key: whether keys are set.
        loopback: whether the server listens to its own machine only.
    """

    def __init__(self, app: ASGIApp, origins: Origins, *, needs_key: bool, loopback: bool) -> None:
        self.app = app
        self.origins = origins
        self.needs_key = needs_key
        self.loopback = loopback
        if origins.everyone and not needs_key:
            log.warning(
                "--cors-origin * and no key: any page in any browser that gets here may use this server"
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        refusal: ApiError | None = None
        if preflight and "origin" in headers:
            refusal = None if self.origins.allow(headers["origin"]) else _stranger(headers["origin"])
        elif not self.needs_key and not is_open(scope):
            refusal = self._refusal(headers)
        if refusal is not None:
            log.info("request %s: %s", scope.get("state", {}).get("request_id", "-"), refusal)
            await error_response(refusal)(scope, receive, send)
        elif preflight and "origin" in headers:
            await _preflight_answer(headers)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        """Why a server without keys does not answer this; None when it does."""
        origins, hosts = headers.getlist("origin"), headers.getlist("host")
        for origin in origins:
            if len(origins) > 1 or not (self.origins.allow(origin) or _is_own(origin, _only(hosts))):
                return _stranger(origin)
        for host in hosts if self.loopback else ():
            if not self._answers_to(host):
                return _foreign_name(host)
        return None

    def _answers_to(self, host: str) -> bool:
        match = _HOST.fullmatch(host.lower())
        return match is not None and (is_local_name(match["name"]) or self.origins.allow_name(match["name"]))


def is_local_name(name: str) -> bool:
    """Whether no stranger can point this name here: an IP address, or a name outside of the public DNS."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return "." not in name or name.endswith(LOCAL_DOMAINS)
    return True


def _read_origin(text: str) -> Origin:
    origin = Origin.parse(text)
    if origin is not None:
        return origin
    reason = "expected * or scheme://name[:port] without a path, such as http://localhost:3000"
    if text == "null":
        reason = "any page can make itself one of no origin; * is as safe"
    raise SettingsError(f"--cors-origin (CAUSERIE_CORS_ORIGIN): {reason}, got {ascii(text)[:100]}")


def _port(match: re.Match[str], scheme: str) -> int | None:
    return PORTS.get(scheme) if match["port"] is None else int(match["port"])


def _is_own(origin: str, host: str | None) -> bool:
    """Whether a page comes from this very server, under a name that is surely its own."""
    page, match = Origin.parse(origin), _HOST.fullmatch((host or "").lower())
    if page is None or match is None or page.scheme not in PORTS:
        return False
    return (page.name, page.port) == (match["name"], _port(match, page.scheme)) and is_local_name(page.name)


def _only(values: list[str]) -> str | None:
    return values[0] if len(values) == 1 else None


def _stranger(origin: str) -> ApiError:
    shown = ascii(origin)[1:-1][:100]
    message = f"pages of {shown} may not use this server; "
    if Origin.parse(origin) is None:  # null, file://: the option names no such origin
        message += "only --cors-origin * lets them, and all others"
    else:
        message += f"with --cors-origin {shown} it lets them"
    return ApiError(403, message, code="origin_not_allowed")


def _foreign_name(host: str) -> ApiError:
    message = (
        f"{ascii(host)[1:-1][:100] or 'an empty Host'} is no name of this server, which listens to its own "
        "machine without a key: set one, or list the name as --cors-origin https://NAME"
    )
    return ApiError(403, message, code="host_not_allowed")


def _preflight_answer(headers: Headers) -> Response:
    """Which methods and headers a page may send; CorsHeaders adds its origin."""
    asked = ", ".join(headers.getlist("access-control-request-headers"))
    told = {
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": asked if _HEADER_NAMES.fullmatch(asked) else REQUEST_HEADERS,
        "access-control-max-age": str(MAX_AGE_SECONDS),
        "vary": "Access-Control-Request-Method, Access-Control-Request-Headers",
    }
    if headers.get("access-control-request-private-network") == "true":
        told["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=told)
