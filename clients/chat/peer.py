"""The server at the other end: what is asked of it, and which of our fields it does not take.

Beside what the user sets, two fields are sent of our own accord: `truncation`, so that a conversation longer
than the model's positions goes on, and `stream_options`, for the token counts. Another server may refuse one;
when its refusal names it, it is left off from then on, which is said once. What the user set is never left
off: that the server refuses it is an answer. Refuses to know conversations and screens.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from clients.chat.conversation import Message
from clients.chat.reply import Piece, Reply, whole_number
from clients.chat.safe_text import sendable
from clients.client import Client
from clients.client import Reply as Stream
from clients.wire import JSON, ApiError, BadAnswer

REFUSED = (400, 422)
ABSENT = (404, 405, 501)
OURS: JSON = {"truncation": "drop_oldest", "stream_options": {"include_usage": True}}


class Count(NamedTuple):
    """Tokens of a conversation, and how many the model reads; None where the server does not tell."""

    num_tokens: int
    limit: int | None


class Answer:
    """A reply being streamed: pieces to be iterated once, headers, and the figures in `reply`."""

    def __init__(self, stream: Stream[Iterator[JSON]], reply: Reply) -> None:
        self.reply = reply
        self.num_dropped = stream.headers.get("x-truncated-messages")
        self.ignored = stream.headers.get("x-ignored-params")
        self.reply.seed = stream.headers.get("x-seed")
        self._chunks = stream.chunks

    def pieces(self) -> Iterator[Piece]:
        """Text as it comes. Raises as `Client.stream` does."""
        for chunk in self._chunks:
            yield self.reply.take(time.perf_counter(), chunk)


class Peer:
    """One server, asked with the same parameters until they are changed.

    Args:
        client: how it is reached.
        params: fields the user set; None is not sent.
        note: told when a field is left off.
    """

    def __init__(self, client: Client, params: JSON, note: Callable[[str], None]) -> None:
        self.params = dict(params)
        self.models: list[JSON] = []
        self._client = client
        self._ours = dict(OURS)
        self._limit_name = "max_tokens"
        self._note = note

    @property
    def url(self) -> str:
        """Where it is."""
        return self._client.url

    @property
    def model_ids(self) -> list[str]:
        """What it serves, its default first; empty where it does not say."""
        return [str(model.get("id")) for model in self.models if isinstance(model, dict) and model.get("id")]

    @property
    def model(self) -> str | None:
        """What is asked: the user's choice, else the server's first."""
        chosen = self.params.get("model")
        chosen = chosen if chosen is not None else next(iter(self.model_ids), None)
        return None if chosen is None else sendable(chosen)

    def greet(self) -> None:
        """Ask what it serves; a server may have no such list.

        Raises:
            ClientError: it is not there, or the key is wrong.
        """
        try:
            self.models = self._client.models()
        except BadAnswer:
            pass
        except ApiError as error:
            if error.status not in ABSENT:
                raise

    @contextmanager
    def ask(self, messages: Sequence[Message]) -> Iterator[Answer]:
        """A reply to these messages; leaving the block early hangs up, which ends it.

        Raises:
            ClientError: as `Client.open_stream`.
        """
        reply = Reply(time.perf_counter())
        with ExitStack() as stack:
            yield Answer(self._open(stack, messages), reply)

    def count(self, messages: Sequence[Message]) -> Count | None:
        """Tokens of these messages, rendered; None where the server has no /tokenize for them.

        Raises:
            ClientError: the server is away, full, or wants a key.
        """
        try:
            answer = self._client.tokenize(messages, model=self.model)
        except BadAnswer:
            return None
        except ApiError as error:
            if error.status in (*ABSENT, *REFUSED):
                return None
            raise
        count = whole_number(answer.get("count"))
        return None if count is None else Count(count, _limit(answer) or self._limit())

    def _open(self, stack: ExitStack, messages: Sequence[Message]) -> Stream[Iterator[JSON]]:
        while True:
            try:
                return stack.enter_context(self._client.open_stream(messages, **self._fields()))
            except ApiError as error:
                if error.status not in REFUSED or not self._leave_off(error):
                    raise

    def _fields(self) -> dict[str, Any]:
        fields = {**self.params, **self._ours, "model": self.model}
        fields[self._limit_name] = fields.pop("max_tokens", None)
        return fields

    def _leave_off(self, error: ApiError) -> bool:
        """Stop sending what the refusal names; False when it names nothing that can be left off."""
        if error.code == "context_length_exceeded":
            return False  # it may advise `truncation`, and refuses the conversation's length
        said = f"{error.param} {error.message}"
        if "max_completion_tokens" in said and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"  # OpenAI's newer name, the only one of some models
            return True
        name = next((name for name in self._ours if re.search(rf"\b{name}\b", said)), None)
        if name is None:
            return False
        del self._ours[name]
        self._note(f"(the server refuses the field {name}: left off from now on)")
        return True

    def _limit(self) -> int | None:
        chosen = [model for model in self.models if isinstance(model, dict) and model.get("id") == self.model]
        return _limit(chosen[0]) if chosen else None


def _limit(answer: JSON) -> int | None:
    return whole_number(answer.get("max_model_len")) or None
