"""What is said over the wire: requests built, answers and event streams read. No socket, no event loop.

    ClientError
    ├── Unreachable    no answer: nobody listens there, or the connection broke
    ├── BadAnswer      an answer that is not the protocol: not JSON, or a stream that ends without [DONE]
    └── ApiError       the server's own error object, from an HTTP status or from a frame of a begun stream

Both clients in `client.py` are this plus the calls that move bytes.

    >>> SSEReader().feed(b'data: {"n": 1}\n\ndata: [DO')
    ['{"n": 1}']
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import httpx

KEY_VARIABLE = "CAUSERIE_API_KEY"
CONNECT_SECONDS = 5.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")

JSON = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]

_LINE_END = re.compile(rb"\r\n|\r|\n")


class ClientError(Exception):
    """Root of the tree above; its text is one line a user can act on."""


class Unreachable(ClientError):
    """No server answered at the URL, or it went away in the middle of its answer."""


class BadAnswer(ClientError):
    """The other end does not speak this protocol, or stopped speaking before the end."""


class ApiError(ClientError):
    """The server refused or failed. `status` is 200 when the error came as a frame of a begun stream.

    `retry_after` is the header of that name as it came: seconds, or a date.
    """

    retry_after: str | None = None

    def __init__(self, status: int, code: str | None, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class SSEReader:
    """Bytes of an event stream → the data of each whole event. Chunks may be cut anywhere.

    Lines end with CRLF, LF or CR. Comments and the fields `event`, `id` and `retry` are skipped; several data
    lines are joined by a newline; an event without data is none.
    """

    def __init__(self) -> None:
        self._line = bytearray()  # the line not ended yet
        self._data: list[bytes] = []  # data lines of the event not ended yet
        self._after_cr = False  # the last byte ended a line; an LF right after it belongs to that ending

    def feed(self, chunk: bytes) -> list[str]:
        """Data of the events that end in this chunk."""
        if not chunk:
            return []
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r"
        *lines, rest = _LINE_END.split(chunk)
        events = []
        for line in lines:
            self._line += line
            events += self._end_line()
        self._line += rest
        return events

    def flush(self) -> list[str]:
        """Data of an event that the end of the stream left without its blank line."""
        return self._end_line() + self._end_line()

    def _end_line(self) -> list[str]:
        line, self._line = bytes(self._line), bytearray()
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return []
        data, self._data = self._data, []
        return [b"\n".join(data).decode("utf-8", errors="replace")] if data else []


class ChunkReader:
    """Bytes of a streamed reply → its chunks, up to [DONE].

    `feed` is lazy on purpose: chunks before an error frame in the same bytes are seen before it raises.
    """

    def __init__(self) -> None:
        self._events = SSEReader()
        self.done = False

    def feed(self, data: bytes) -> Iterator[JSON]:
        """Chunks that end in these bytes.

        Raises:
            ApiError: an error frame.
            BadAnswer: a frame that is not a JSON object.
        """
        return self._chunks(self._events.feed(data))

    def flush(self) -> Iterator[JSON]:
        """Chunks the end of the stream brings; raises BadAnswer when it came before [DONE]."""
        yield from self._chunks(self._events.flush())
        if not self.done:
            raise BadAnswer("the stream ended without [DONE]: the reply is not complete")

    def _chunks(self, events: list[str]) -> Iterator[JSON]:
        for event in events:
            if self.done:
                return
            if event == "[DONE]":
                self.done = True
                return
            chunk = _parse(event, "a frame of the stream")
            if chunk.get("error") is not None:
                raise _api_error(200, chunk)
            yield chunk


class Request(TypedDict, total=False):
    """Keywords of httpx's `request` and `stream`."""

    method: str
    url: str
    json: JSON


class HttpSettings(TypedDict):
    """Keywords of httpx's two clients."""

    base_url: str
    headers: dict[bytes, bytes]
    timeout: httpx.Timeout
    limits: httpx.Limits
    trust_env: bool


def root_url(url: str) -> str:
    """The server's address without a trailing /v1, which the OpenAI SDKs want and we add ourselves."""
    return url.rstrip("/").removesuffix("/v1")


def key_from_environment() -> str | None:
    """The key of the server's own variable, the first one where it lists several."""
    return os.environ.get(KEY_VARIABLE, "").split(",")[0] or None


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine."""
    try:
        return httpx.URL(url).host in LOOPBACK
    except httpx.InvalidURL as error:
        raise Unreachable(f"{url!r} is not a URL: {error}") from None


def http_settings(url: str, api_key: str | None, timeout: float) -> HttpSettings:
    """How both clients set up httpx; `timeout` is seconds without a byte."""
    headers = {b"accept-encoding": b"identity"}  # compressed frames would wait for each other
    if api_key is not None:
        headers[b"authorization"] = f"Bearer {api_key}".encode()  # bytes: a key may hold any character
    return HttpSettings(
        base_url=url,
        headers=headers,
        timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
        limits=httpx.Limits(),  # no cap: a load test decides itself how many streams are open
        trust_env=not is_loopback(url),  # a proxy named in the environment is not asked about this machine
    )


def get_request(path: str) -> Request:
    """Ask for what lies at `path`."""
    return Request(method="GET", url=path)


def chat_request(messages: Messages, params: Mapping[str, Any], stream: bool = False) -> Request:
    """Ask for a reply to `messages`; a parameter that is None is not sent, so the server's default holds."""
    body = _body(messages, params)
    if stream:
        body["stream"] = True
    return Request(method="POST", url="/v1/chat/completions", json=body)


def tokenize_request(messages: Messages, params: Mapping[str, Any]) -> Request:
    """Ask what tokens a model would read for `messages`."""
    return Request(method="POST", url="/tokenize", json=_body(messages, params))


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """httpx's transport errors as ours."""
    try:
        yield
    except httpx.ConnectError:
        raise Unreachable(f"no server answers at {url}") from None
    except httpx.TransportError as error:
        raise Unreachable(f"{url}: {str(error) or type(error).__name__}") from error


def read_body(response: httpx.Response) -> JSON:
    """The JSON object of a whole answer, or its error raised."""
    check(response)
    return _parse(response.text, "the answer")


def read_models(answer: JSON) -> list[JSON]:
    """The list inside the answer to GET /v1/models."""
    models = answer.get("data")
    if not isinstance(models, list):
        raise BadAnswer("the answer to GET /v1/models has no list `data`")
    return models


def check(response: httpx.Response) -> None:
    """Raise the error of a response that is one. Its body has been read."""
    if response.is_error:
        error = read_error(response.status_code, response.text)
        error.retry_after = response.headers.get("retry-after")
        raise error


def read_error(status: int, body: str) -> ApiError:
    """The error of an answer whose status says that it is one."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    return _api_error(status, answer if isinstance(answer, dict) else {"error": body[:200]})


def _body(messages: Messages, params: Mapping[str, Any]) -> JSON:
    return {
        **{name: value for name, value in params.items() if value is not None},
        "messages": list(messages),
    }


def _parse(text: str, what: str) -> JSON:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadAnswer(f"{what} is not a JSON object: {text[:200]!r}")
    return value


def _api_error(status: int, answer: JSON) -> ApiError:
    error = answer.get("error", answer)
    if not isinstance(error, dict):
        return ApiError(status, None, str(error) or f"HTTP {status} without a message")
    code, param = error.get("code"), error.get("param")
    said = error.get("message") or error.get("detail")  # FastAPI's own shape, where a server left it
    return ApiError(
        status,
        str(code) if code is not None else None,
        str(said or f"HTTP {status} without a message"),
        str(param) if param is not None else None,
    )
