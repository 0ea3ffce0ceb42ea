"""Keys at the door: with any set, nothing answers without one but the health checks. Refuses to know which
routes there are, and what a key may do once inside.

What is open is listed, all else is closed: a new route, a mistyped path, one spelled with `//` or %2f alike.
The answer comes before any of the body is read and repeats no key. Whose it was, `server.keys.key_of` tells.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, error_response
from server.keys import Key, Keyring

OPEN_PATHS = frozenset({"/live", "/ready", "/health"})
OPEN_METHODS = frozenset({"GET", "HEAD"})
POLICY_VIOLATION = 1008


def is_open(scope: Scope) -> bool:
    """Whether anyone may ask this: how the server is. The router goes by the same decoded path."""
    return scope["path"] in OPEN_PATHS and scope["method"] in OPEN_METHODS


def bearer(header: bytes) -> bytes | None:
    """The token of an Authorization header, its scheme in any case; None when it is another scheme."""
    scheme, _, token = header.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


class KeyAuth:
    """Answers 401 unless a request brings a key of the ring, and notes whose it is."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self.app = app
        self.keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.keyring or scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
        elif (key := self._identify(scope)) is not None:
            scope.setdefault("state", {})["key"] = key
            await self.app(scope, receive, send)
        elif is_open(scope):
            await self.app(scope, receive, send)
        else:
            await error_response(_refusal(scope))(scope, receive, send)

    def _identify(self, scope: Scope) -> Key | None:
        """The key in `Authorization: Bearer` or `x-api-key`; of both, only if they are the same."""
        bearers = [bearer(value) for name, value in scope["headers"] if name == b"authorization"]
        plain = [value.strip() for name, value in scope["headers"] if name == b"x-api-key"]
        if len(bearers) > 1 or len(plain) > 1:
            return None  # which one a proxy in front has looked at is anyone's guess
        keys = {None if token is None else self.keyring.find(token) for token in (*bearers, *plain)}
        return keys.pop() if len(keys) == 1 else None


def _refusal(scope: Scope) -> ApiError:
    sent = sum(name in (b"authorization", b"x-api-key") for name, _ in scope["headers"])
    if sent == 0:
        message = "an API key is needed: send 'Authorization: Bearer KEY'"
    elif sent == 1:
        message = "this API key is not known"
    else:
        message = "several API keys were sent: send one"
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
