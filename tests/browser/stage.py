"""A server whose page and API are real, and whose model, or whose whole next answer, says what a test writes.

`says` scripts the model, so that everything from the template to the frames is ours. `answers` replaces the
answer itself, bytes and all: a server in trouble, another program on its port, a proxy between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from tests.fakes import Gate, ScriptedModel, Step
from tests.server.wire import app_of, live

REPLIES = ("/v1/chat/completions", "/v1/completions")
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


class Pause(Gate):
    """Opens by itself."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def wait(self) -> None:
        await asyncio.sleep(self.seconds)


class Cut(Exception):
    """The connection breaks here."""


@dataclass
class Answer:
    """An answer as it is sent.

    Attributes:
        steps: bytes are sent, a Gate waits, an exception breaks the connection.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(EVENTS))
    steps: Sequence[bytes | Gate | Exception] = ()

    @staticmethod
    def error(status: int, message: str, code: str, **headers: str) -> Answer:
        """What our API says when it refuses."""
        body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}})
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Answer(status, {"content-type": "application/json", **named}, [body.encode()])

    @staticmethod
    def events(*steps: bytes | str | dict[str, object] | Gate | Exception) -> Answer:
        """A stream: a str is a piece of the reply, a dict one event's JSON, bytes are sent as they are."""
        return Answer(steps=[_event(step) if isinstance(step, str | dict) else step for step in steps])


def _event(step: str | dict[str, object]) -> bytes:
    if isinstance(step, str):
        choice = {"index": 0, "delta": {"content": step}, "text": step, "finish_reason": None}
        step = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(step).encode() + b"\n\n"


class Stage:
    """The app, and what it says next.

    Attributes:
        model: the one that is served.
        answer: of the next request for a reply; None asks the app.
    """

    def __init__(self, *, api_key: tuple[str, ...] = ()) -> None:
        self.model = ScriptedModel(name="scripted", max_model_len=8192)
        self.answer: Answer | None = None
        self.url = ""
        self._app: FastAPI = app_of(self.model, api_key=api_key)
        self.state = self._app.state

    def says(self, *script: Step) -> None:
        """Every reply of the model from now on."""
        self.answer, self.model.script = None, script

    def answers(self, answer: Answer) -> None:
        """The next answer to whoever asks for a reply."""
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in REPLIES and self.answer is not None:
            answer, self.answer = self.answer, None
            await _play(answer, receive, send)
        else:
            await self._app(scope, receive, send)


async def _play(answer: Answer, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body", False):
        pass
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    for step in answer.steps:
        if isinstance(step, Gate):
            await step.wait()
        elif isinstance(step, Exception):
            raise step
        else:
            await send({"type": "http.response.body", "body": step, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def staged(*, api_key: tuple[str, ...] = ()) -> Iterator[Stage]:
    """A stage on a port of its own."""
    stage = Stage(api_key=api_key)
    quick = {"log_level": "critical", "timeout_graceful_shutdown": 1}  # what a Cut raises is meant
    with live(stage, **quick) as url:  # type: ignore[arg-type]
        stage.url = url
        yield stage
