"""Everything that can go wrong, as OpenAI's error object: {"error": {"message", "type", "param", "code"}}.

One table of statuses and one set of handlers. Never `detail`, never 422, never a 5xx for a client's fault
(SDKs send every 408, 409, 429 and 5xx again), never a path, an address or a prompt of ours in a message.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llm.errors import (
    CauserieError,
    DeadlinePassed,
    EngineError,
    OutOfMemory,
    QueueTimeout,
    ReaderTooSlow,
    RequestError,
    StepFailed,
)

log = logging.getLogger("causerie.server")

NO_RETRY = {"x-should-retry": "false"}
RETRY_SECONDS = 5
"""What a client is told to wait when nothing better is known: about one restart."""


class ApiError(Exception):
    """An answer that is not a reply. `code` is a stable string; docs/api.md lists them all."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed its connection before there was anything to answer."""


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 about one field."""
    return ApiError(400, message, code=code, param=param)


def to_api_error(error: Exception, request_id: str) -> ApiError:
    """The answer for an exception; what nobody foresaw is a 500 that says nothing but its request id."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return invalid(str(error), error.param, error.code)
    if isinstance(error, EngineError):
        return _engine_error(error, request_id)
    message = f"internal error; the server log has the reason (request {request_id})"
    return ApiError(500, message, code="internal_error", headers=NO_RETRY)


def _engine_error(error: EngineError, request_id: str) -> ApiError:
    """A request that was fine and that the engine could not finish."""
    later = {"retry-after": str(RETRY_SECONDS)}
    if isinstance(error, OutOfMemory):
        message = f"too little memory for this batch; the server log says more (request {request_id})"
        return ApiError(503, message, code="out_of_memory", headers=later)
    if isinstance(error, StepFailed):
        message = f"the model failed on this batch; the server log has the reason (request {request_id})"
        return ApiError(500, message, code="step_failed", headers=NO_RETRY)
    if isinstance(error, QueueTimeout):
        return ApiError(503, str(error), code="queue_timeout", headers=later)
    if isinstance(error, DeadlinePassed):
        return ApiError(504, str(error), code="deadline_exceeded", headers=NO_RETRY)
    if isinstance(error, ReaderTooSlow):
        return ApiError(408, str(error), code="reader_too_slow", headers=NO_RETRY)
    message = "the server is stopping or its engine is gone"
    return ApiError(503, message, code="engine_stopped", headers=later)


def log_error(error: Exception, request_id: str) -> None:
    """One line for what the client already knows, a traceback for what it does not. The message of an error
    about the request is left out: it may repeat what the client sent.
    """
    if isinstance(error, (ApiError, CauserieError)):
        answer = to_api_error(error, request_id)
        reason = f": {error}" if isinstance(error, EngineError) else ""
        log.info("request %s: %d %s%s", request_id, answer.status, answer.code, reason)
    else:
        log.error("request %s: internal error", request_id, exc_info=error)


def error_response(error: ApiError) -> JSONResponse:
    """The HTTP form of an error."""
    return JSONResponse(error.body, error.status, error.headers)


def field_error(error: ValidationError) -> ApiError:
    """The first thing wrong with a request, named by its JSON path."""
    first = error.errors(include_url=False)[0]
    path = json_path(first["loc"])
    kind, context = first["type"], first.get("ctx", {})
    if kind == "missing":
        return invalid(f"{path} is required", path, "missing_required_parameter")
    given = shown(first["input"])
    if kind == "literal_error":
        return invalid(f"{path} must be one of {context['expected']}, got {given}", path)
    reason = _REASONS.get(kind)
    if kind == "too_long":  # of an object pydantic does not say how long it is
        context = {
            "string_pattern_mismatch": "of the form {pattern}",
            **context,
            "actual_length": len(first["input"]),
        }
    if reason is not None:
        return invalid(f"{path} must be {reason.format(**context)}, got {given}", path, _code(kind))
    between = " " if first["msg"].startswith("must be ") else ": "
    return invalid(f"{path}{between}{first['msg']}, got {given}", path, _code(kind))


_REASONS = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "model_type": "an object",
    "dict_type": "an object",
    "too_long": "at most {max_length} long (it has {actual_length})",
    "too_short": "at least {min_length} long",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} character long",
    "string_pattern_mismatch": "of the form {pattern}",
    "finite_number": "a finite number",
    "stop_type": "a string or a list of strings",
    "content_type": "a string or a list of text parts",
}


def _code(kind: str) -> str:
    return "invalid_type" if kind.endswith("_type") or kind == "int_from_float" else "invalid_value"


def json_path(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") → "messages[0].content".

    A union's "<tags>" and the mark of a key are not part of the request; a name may be the client's own, so
    it is made fit for a line of the log.
    """
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<") and part != "[key]":
            name = "".join(char if char.isprintable() else "?" for char in part[:64])
            path += f".{name}" if path else name
    return path


def shown(value: object) -> str:
    """A value as the client wrote it, cut to what fits in a line."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value[:64] if isinstance(value, str) else value)
    return text if len(text) <= 64 else text[:61] + "..."


_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT}
_BODY = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": list(_ERROR), "properties": _ERROR}},
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _BODY}}}
    for status, text in (("4XX", "The request cannot be served as asked."), ("5XX", "The server failed."))
}
"""For the OpenAPI document of every route; without it FastAPI would promise 422s of another shape."""


def request_id_of(request: Request) -> str:
    """The id that `server.request_id` gave this request."""
    return str(request.scope.get("state", {}).get("request_id", "-"))


def install_handlers(app: FastAPI) -> None:
    """Every exception of a route goes through `to_api_error`; the unforeseen through `server.request_id`."""

    async def known(request: Request, error: Exception) -> Response:
        request_id = request_id_of(request)
        log_error(error, request_id)
        return error_response(to_api_error(error, request_id))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(_routing_error(request, error))

    async def validation(request: Request, error: Exception) -> Response:
        return error_response(invalid("the request's path or query is malformed", None))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; nginx's number for it, for the log

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(CauserieError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(ClientGone, gone)


def _routing_error(request: Request, error: HTTPException) -> ApiError:
    """No such route, or not with that method; a forgotten or needless /v1 is pointed out."""
    method, path = request.method, ascii(request.url.path[:100])
    headers = dict(error.headers or {})
    if error.status_code == 405:
        message = (
            f"{path} does not answer {method[:20]}; it answers {headers.get('Allow') or headers.get('allow')}"
        )
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    if error.status_code == 404:
        path_sent = request.url.path
        near = [f"/v1{path_sent}", path_sent.removeprefix("/v1"), path_sent.rstrip("/")]
        meant = next((path for path in near if path in request.app.openapi()["paths"]), None)
        hint = f"did you mean {meant}?" if meant else "GET /openapi.json lists the routes"
        return ApiError(404, f"there is no route {path}; {hint}", code="route_not_found", headers=headers)
    return ApiError(error.status_code, str(error.detail), code="http_error", headers=headers)
