"""Keys: with any set, every route needs one except /health and OPTIONS. Refuses to know who a key belongs to.

Keys are compared in constant time over bytes and appear in no log, error or response.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, error_response

OPEN_PATHS = frozenset({"/health"})


def bearer(header: bytes) -> bytes | None:
    """The token of an Authorization header, its scheme in any case; None when it is another scheme."""
    scheme, _, token = header.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


class BearerAuth:
    """Answers 401 unless a request brings one of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = not self.keys or scope["type"] != "http" or scope["path"] in OPEN_PATHS
        if is_open or scope["method"] == "OPTIONS" or self._knows(scope):
            await self.app(scope, receive, send)
            return
        sent = any(name == b"authorization" for name, _ in scope["headers"])
        message = (
            "this API key is not known" if sent else "an API key is needed: send 'Authorization: Bearer KEY'"
        )
        error = ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        await error_response(error)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        token = next((bearer(value) for name, value in scope["headers"] if name == b"authorization"), None)
        if token is None:
            return False
        return any([hmac.compare_digest(token, key) for key in self.keys])  # a list: every key is compared
