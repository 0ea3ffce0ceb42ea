"""What a noted answer says: when its text came, how many tokens it was, what went wrong.

    >>> read(await pool.exchange(request)).texts

Called once the run is over, since decoding JSON costs several times what noting the bytes does. Refuses to
know sockets and what is made of the times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from clients.bench.pool import Note
from clients.wire import JSON, ChunkReader, ClientError, read_error

TEXT_FIELDS = ("content", "reasoning_content", "reasoning")
"""Of a delta; the last two are what some servers call text that is thought and not said."""

FIRST_ERROR_STATUS = 400


@dataclass
class Answer:
    """One request's outcome; times in seconds of time.perf_counter.

    Attributes:
        sent: when the request was due.
        texts: when each chunk with text came.
        completion_tokens: by the server's usage, else one for each chunk with text.
        is_counted: whether the server sent a usage.
        ignored: the server's x-ignored-params.
        error: why there is no whole answer; its figures then count nowhere.
    """

    sent: float
    texts: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    is_counted: bool = False
    ignored: str = ""
    error: str | None = None

    def take(self, when: float, chunk: JSON) -> None:
        """Note a chunk of the stream."""
        if _has_text(chunk):
            self.texts.append(when)
        if isinstance(usage := chunk.get("usage"), dict):
            self.is_counted = True
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.completion_tokens = _count(usage.get("completion_tokens"))
            details = usage.get("prompt_tokens_details")
            self.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0


def read(note: Note) -> Answer:
    """The answer in what was noted."""
    answer = Answer(note.sent, ignored=note.response.headers.get("x-ignored-params", ""))
    try:
        for when, chunk in chunks(note):
            answer.take(when, chunk)
    except ClientError as error:
        answer.error = str(error)
    if not answer.is_counted:
        answer.completion_tokens = len(answer.texts)
    return answer


def chunks(note: Note) -> Iterator[tuple[float, JSON]]:
    """The stream's chunks, each with the time of its last byte, as `AsyncClient.stream` gives them.

    Raises:
        ClientError: an error status, an error frame, or no whole answer; the chunks before it were given.
    """
    if note.response.status >= FIRST_ERROR_STATUS and note.error is None:
        raise read_error(note.response.status, b"".join(note.pieces).decode("utf-8", errors="replace"))
    reader = ChunkReader()
    for when, piece in zip(note.times, note.pieces, strict=False):
        for chunk in reader.feed(piece):
            yield when, chunk
    if reader.done:
        return
    if note.error is not None:
        raise note.error
    for chunk in reader.flush():
        yield note.times[-1], chunk


def _has_text(chunk: JSON) -> bool:
    choices = chunk.get("choices")
    deltas = [choice.get("delta") for choice in choices or [] if isinstance(choice, dict)]
    return any(delta.get(name) for delta in deltas if isinstance(delta, dict) for name in TEXT_FIELDS)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
