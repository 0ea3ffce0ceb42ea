"""One streamed answer as it is read: its text, how it ended, what it cost and when its text came.

    >>> reply = Reply(sent=0.0)
    >>> reply.take(0.2, {"choices": [{"delta": {"content": "Hi"}}]})
    Piece(said='Hi', thought='')

Refuses to know sockets and screens. What a chunk says in another shape than the protocol's says nothing:
a strange field must not end a conversation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clients.wire import JSON

THOUGHTS = ("reasoning_content", "reasoning")
"""What some servers call text that is thought and not said."""


class Piece(NamedTuple):
    """Text of one chunk."""

    said: str = ""
    thought: str = ""


@dataclass
class Reply:
    """What has come of an answer; times in seconds of time.perf_counter.

    Attributes:
        sent: when the request was.
        first: when the first text came, said or thought.
        last: when the latest did.
        num_texts: chunks with text.
        finish: the server's reason for the end.
        prompt_tokens, cached_tokens, completion_tokens: by the server's usage; None where it sent none.
        seed: what the server says it drew with.
    """

    sent: float
    pieces: list[str] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    num_texts: int = 0
    finish: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    seed: str | None = None

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(self.pieces)

    @property
    def first_seconds(self) -> float | None:
        """Time to the first text."""
        return None if self.first is None else self.first - self.sent

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None where the server counts none or there was no time between."""
        if self.first is None or self.last is None or not self.completion_tokens:
            return None
        seconds = self.last - self.first
        return (self.completion_tokens - 1) / seconds if seconds > 0 and self.completion_tokens > 1 else None

    def take(self, when: float, chunk: JSON) -> Piece:
        """Note a chunk that came; its text."""
        self._take_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return Piece()
        finish = choice.get("finish_reason")
        self.finish = finish if isinstance(finish, str) and finish else self.finish
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return Piece()
        thoughts = map(_text, map(delta.get, THOUGHTS))
        piece = Piece(_text(delta.get("content")), next(filter(None, thoughts), ""))
        if any(piece):
            self.first = when if self.first is None else self.first
            self.last = when
            self.num_texts += 1
        self.pieces.append(piece.said)
        return piece

    def _take_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.prompt_tokens = whole_number(usage.get("prompt_tokens"))
            self.completion_tokens = whole_number(usage.get("completion_tokens"))
            details = usage.get("prompt_tokens_details")
            self.cached_tokens = (
                whole_number(details.get("cached_tokens")) if isinstance(details, dict) else None
            )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def whole_number(value: Any) -> int | None:
    """What a server sent, if it is a count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
