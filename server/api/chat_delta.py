"""Text of a reply → content and tool calls: what both a stream and a whole reply are made of.

Refuses to know JSON and frames.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from llm.chat.tool_calls import ContentDelta, Delta
from llm.chat.tools import ToolFormat
from llm.choice import TextDelta
from llm.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class CallPart:
    """More of a tool call: id and name with its first part only, arguments that go on from the last.

    Attributes:
        index: which call of the choice, from 0.
    """

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class ChatDelta:
    """What a choice gained: the text's delta, and what its text says. Like a TextDelta not frozen.

    Attributes:
        finish: OpenAI's finish_reason, on the choice's last delta.
    """

    source: TextDelta
    content: str
    calls: tuple[CallPart, ...] = ()
    finish: str | None = None


class ChatReader:
    """Reads the deltas of a request's choices.

    Args:
        n: choices.
        form: of calls, for requests with tools; without one, text is content.
        only_calls: the reply has to call, so text outside of calls is the beginning of one that was cut.
    """

    def __init__(self, n: int, form: ToolFormat | None, *, only_calls: bool = False) -> None:
        self._readers = None if form is None else [_CallReader(form, only_calls) for _ in range(n)]

    def read(self, delta: TextDelta) -> ChatDelta:
        """The same delta, its text read."""
        if self._readers is not None:
            return self._readers[delta.choice].read(delta)
        return ChatDelta(delta, delta.text, (), None if delta.finish is None else delta.finish.value)


class _CallReader:
    """One choice's parser."""

    def __init__(self, form: ToolFormat, only_calls: bool) -> None:
        self._parser = form.parser()
        self._opening = form.opening
        self._only_calls = only_calls

    def read(self, delta: TextDelta) -> ChatDelta:
        parts = self._parser.feed(delta.text)
        if delta.finish is not None:
            rest = self._parser.flush()
            parts += self._uncut(rest) if delta.finish is FinishReason.LENGTH else rest
        texts = (part.text for part in parts if isinstance(part, ContentDelta))
        content = "" if self._only_calls else "".join(texts)
        calls = tuple(call for part in parts if (call := _call(part)) is not None)
        return ChatDelta(delta, content, calls, self._finish(delta.finish))

    def _uncut(self, rest: list[Delta]) -> list[Delta]:
        """The end of a reply that was cut, without a call that had begun: that is no content, since the
        grammar lets nothing begin like a call that is none.
        """
        return [
            ContentDelta(part.text.partition(self._opening)[0].rstrip())
            if isinstance(part, ContentDelta) and self._opening in part.text
            else part
            for part in rest
        ]

    def _finish(self, reason: FinishReason | None) -> str | None:
        """tool_calls only when every call of the reply is complete, whatever ended it."""
        if reason is None:
            return None
        is_called = self._parser.num_complete > 0 and not self._parser.is_open
        return "tool_calls" if is_called and reason is FinishReason.STOP else reason.value


def _call(part: Delta) -> CallPart | None:
    if isinstance(part, ContentDelta):
        return None
    if part.name is None:
        return CallPart(part.index, part.arguments)
    return CallPart(part.index, part.arguments, f"call_{uuid.uuid4().hex[:24]}", part.name)
