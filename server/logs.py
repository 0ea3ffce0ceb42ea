"""What the log looks like: lines for people, or JSON objects. An entry is one line, whoever wrote it.

Text that came from a client may hold line breaks and terminal codes: whatever is not printable is escaped,
and a traceback is indented, so nobody can write an entry in another's name. Query strings are cut from
uvicorn's access lines, since keys end up in them, and sse-starlette, which would log replies, may not. What
the line of a request says is `server.answers`.

    >>> configure("info", "json")
    >>> logging.getLogger("causerie.server").info("up")   # {"ts": "2026-01-31T09:30:00.125Z", "level": ...
"""

from __future__ import annotations

import copy
import json
import logging
import logging.config
import textwrap
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import DefaultFormatter

from server.request_id import current_request_id

TRACE = 5
"""uvicorn's most talkative level, which has a number only."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def one_line(text: str) -> str:
    r"""The text with whatever is not printable written as \n, \x1b, \u2028..."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Text(DefaultFormatter):
    """uvicorn's lines, each of them one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        plain = copy.copy(record)
        plain.message = one_line(record.message.rstrip("\n"))
        return super().formatMessage(plain)

    def formatException(self, ei: ExcInfo) -> str:
        lines = super().formatException(ei).split("\n")
        return textwrap.indent("\n".join(map(one_line, lines)), "    ")


class Json(logging.Formatter):
    """One object a line, in ASCII: no reader and no locale can break it.

    `extra={"fields": {...}, "title": "..."}` of a log call: members of their own, and the message then.
    """

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "ts": stamp.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": getattr(record, "title", None) or record.getMessage().rstrip("\n"),
        }
        request_id = current_request_id.get()
        if request_id is not None:
            entry["request_id"] = request_id
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class Access(logging.Filter):
    """On uvicorn's access log: no query strings, nothing unprintable, and the parts as fields."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, target, version, status = record.args
            path = one_line(str(target).partition("?")[0])
            client, method, version = (one_line(str(part)) for part in (client, method, version))
            record.args = (client, method, path, version, status)
            record.fields = {"client": client, "method": method, "path": path, "status": status}
        return True


def log_config(level: str, form: str = "text") -> dict[str, Any]:
    """uvicorn's logging with our loggers and everybody else's on the same streams.

    Args:
        level: of uvicorn's own lines.
        form: text or json.
    """
    config = copy.deepcopy(LOGGING_CONFIG)
    formatters = config["formatters"]
    formatters["default"]["()"] = Text
    if form == "json":
        formatters["default"] = formatters["access"] = {"()": Json}
    config["filters"] = {"access": {"()": Access}}
    config["root"] = {"handlers": ["default"], "level": "WARNING"}
    ours = {"handlers": ["default"], "level": "INFO", "propagate": False}
    config["loggers"] |= {"causerie": ours, "llm": ours}
    config["loggers"]["sse_starlette"] = {"level": "INFO"}  # below it are the replies
    config["loggers"]["uvicorn.access"]["filters"] = ["access"]
    for name in ("uvicorn", "uvicorn.access"):
        config["loggers"][name]["level"] = level.upper() if level != "trace" else TRACE
    return config


def configure(level: str, form: str) -> None:
    """Make this process's log so. Python's warnings go into it."""
    logging.config.dictConfig(log_config(level, form))
    logging.captureWarnings(True)
