"""Bytes of a request → a JSON object we are willing to look at. Refuses to know what its fields mean.

Refused with a 400: what is not UTF-8 JSON, NaN and Infinity by name or by overflow (1e309), lone surrogates,
more than 64 levels, a key given twice, a number of thousands of digits. With a 413: more bytes than the cap.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from starlette.requests import Request

from server.errors import ApiError, ClientGone, invalid, json_path

MAX_DEPTH = 64
IN_THREAD_BYTES = 64 << 10
"""Longer bodies are parsed in a worker thread: a 2 MB body takes tens of milliseconds."""


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises:
        ApiError: 413 above max_bytes, 400 for anything but one sane JSON object.
        ClientGone: the client left before it had sent all of it.
    """
    body = await _read(request, max_bytes)
    if len(body) > IN_THREAD_BYTES:
        return await asyncio.to_thread(parse_object, body)
    return parse_object(body)


async def _read(request: Request, max_bytes: int) -> bytes:
    """Counts while reading: a length may be missing, or lie."""
    claimed = request.headers.get("content-length", "")
    if claimed.isascii() and claimed.isdigit() and int(claimed[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """One JSON object; see the module for what is refused."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except UnicodeDecodeError:
        raise _malformed("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise _malformed("the body holds a number of more digits than a number has") from None
    if not isinstance(value, dict):
        raise _malformed("the body must be one JSON object")
    _check(value, may_hold_surrogates="\\u" in text)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _malformed(f"{digits[:32]} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _malformed(f"the key {json.dumps(twice[:64])} is given twice")
    return value


def _check(root: dict[str, Any], *, may_hold_surrogates: bool) -> None:
    """Depth, and strings when an escape may have brought in half a pair: plain UTF-8 cannot."""
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _items(value) if isinstance(item, (dict, list))]
        if not level:
            break
    else:
        raise _too_deep()
    place = _surrogate_place(root) if may_hold_surrogates else None
    if place is not None:
        path = json_path(place)[:100]
        raise invalid(f"{path or 'a key'} holds half of a surrogate pair, which is not text", path or None)


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _surrogate_place(value: Any) -> tuple[int | str, ...] | None:
    """Keys and indices that lead to the first string that is not text, () when that is a key here, None when
    there is none.
    """
    if isinstance(value, str):
        return None if _encodes(value) else ()
    steps: Iterable[tuple[int | str, Any]]
    if isinstance(value, dict):
        if not all(map(_encodes, value)):
            return ()
        steps = value.items()
    elif isinstance(value, list):
        steps = enumerate(value)
    else:
        return None
    for step, item in steps:
        below = _surrogate_place(item)
        if below is not None:
            return (step, *below)
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _malformed(message: str) -> ApiError:
    return invalid(message, None, "invalid_json")


def _too_deep() -> ApiError:
    return _malformed(f"the body is nested deeper than {MAX_DEPTH} levels")


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes} bytes", code="request_too_large")
