"""A reply's text, as it streams, to content and tool calls: what `tools.py` asks a model to write, read back.

Small machines with `feed` and `flush`, one for each reply. A call's arguments leave as they come; a piece of
text is held back only while it could still be part of a call, or is white space that may stand beside one.
Any split of a text gives the same total, in time that grows with its length alone. Refuses to know tools and
their schemas: a call is what has the form of one (`call_object.py`).

    >>> parser = HermesParser()
    >>> parser.feed('Wait. <tool_call>{"name": "f", "arguments": {"a":')
    [ContentDelta(text='Wait.'), ToolCallDelta(index=0, name='f', arguments='{"a":')]
    >>> parser.feed(" 1}}</tool_call>"), parser.num_complete
    ([ToolCallDelta(index=0, name=None, arguments=' 1}')], 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llm.chat.call_object import CallObject

CALL = "<tool_call>"
END_OF_CALL = "</tool_call>"
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of what the reply says."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of a call.

    Attributes:
        index: which call of the reply, from 0.
        name: the function's, in the first delta of a call; None in the others.
        arguments: the next part of the arguments' JSON text.
    """

    index: int
    name: str | None
    arguments: str


Delta = ContentDelta | ToolCallDelta


class ToolCallParser(Protocol):
    """One reply's text to deltas.

    Content is the reply with its calls cut out. White space that touches a call is left out where no content
    comes before it, or none after it.
    """

    @property
    def num_complete(self) -> int:
        """Calls whose name and arguments are wholly there."""

    @property
    def is_open(self) -> bool:
        """A call has begun and is not complete; after `flush`: one was cut while its arguments came."""

    def feed(self, text: str) -> list[Delta]:
        """What is certain by now."""

    def flush(self) -> list[Delta]:
        """The rest, when the text has ended. What began like a call and gave nothing away is content."""


class _Output:
    """Deltas on their way out, and white space held until it is known what follows."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._deltas: list[Delta] = []
        self._text: list[str] = []
        self._space: list[str] = []
        self._num_before = 0  # of these, the ones before the last call
        self._has_content = self._touches_call = False

    def say(self, text: str) -> None:
        """Content."""
        body, end = text.strip(), len(text.rstrip())
        if not body:
            self._space.append(text)
            return
        self._space.append(text[: end - len(body)])
        if self._has_content or not self._touches_call:
            self._text += self._space
        self._text.append(body)
        self._space = [text[end:]]
        self._has_content, self._touches_call = True, False

    def call(self, name: str | None, arguments: str) -> None:
        """A call begins, or more arguments of the last one."""
        if name is not None:
            self.num_calls += 1
            self._touches_call, self._num_before = True, len(self._space)
        self._settle()
        self._deltas.append(ToolCallDelta(self.num_calls - 1, name, arguments))

    def close_call(self) -> None:
        """The white space since the last call belongs to it."""
        del self._space[self._num_before :]

    def take(self, *, final: bool = False) -> list[Delta]:
        """What is new since the last time."""
        if final and not self._touches_call:
            self._text += self._space
            self._space = []
        self._settle()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _settle(self) -> None:
        text, self._text = "".join(self._text), []
        if text:
            self._deltas.append(ContentDelta(text))


class _Reader:
    """Runs a reply through markers and calls; the formats say what is where.

    Args:
        bare: a call may come without arguments.
    """

    def __init__(self, bare: bool) -> None:
        self._bare = bare
        self._output = _Output()
        self._markers: tuple[str, ...] = ()
        self._matched = ""  # the beginning of one of the markers, when that is what the text may be at
        self._lead: list[str] = []  # what was read since a marker, before the brace it announces
        self._call: CallObject | None = None
        self._num_complete = 0

    @property
    def num_complete(self) -> int:
        return self._num_complete + (self._call is not None and self._call.complete)

    @property
    def is_open(self) -> bool:
        return self._call is not None and not self._call.complete

    def feed(self, text: str) -> list[Delta]:
        at = 0
        while at < len(text):
            if self._call is not None:
                at = self._feed_call(self._call, text, at)
            elif self._matched:
                at = self._match(text, at)
            elif self._lead:
                at = self._read_lead(text, at)
            else:
                at = self._read(text, at)
        return self._output.take()

    def flush(self) -> list[Delta]:
        call = self._call
        if call is not None and (call.complete or not call.begun):
            self._end_call(call)
        self._output.say("".join(self._lead) + self._matched)
        self._lead, self._matched = [], ""
        return self._output.take(final=True)

    def _read(self, text: str, at: int) -> int:
        """One step outside of calls and markers; where the next begins."""
        raise NotImplementedError

    def _found(self, marker: str) -> None:
        """A marker is complete."""
        self._lead = [marker]

    def _missed(self) -> None:
        """What looked like a marker, or came after one, is content."""

    def _called(self, is_call: bool) -> None:
        """An object is over, and was a call or content."""

    def _begin_match(self, *markers: str) -> None:
        """The text is at the first character of these."""
        self._markers, self._matched = markers, markers[0][0]

    def _match(self, text: str, at: int) -> int:
        # A marker has its first character only once, so what matched in vain holds no other's beginning.
        matched = self._matched + text[at]
        self._markers = tuple(marker for marker in self._markers if marker.startswith(matched))
        if not self._markers:
            self._output.say(self._matched)
            self._matched = ""
            self._missed()
            return at
        self._matched = matched
        if matched in self._markers:
            self._matched = ""
            self._found(matched)
        return at + 1

    def _read_lead(self, text: str, at: int) -> int:
        """Between a marker and the brace of a call there is only white space."""
        if text[at] == "{":
            return self._begin_call(at)
        if text[at].isspace():
            self._lead.append(text[at])
            return at + 1
        self._output.say("".join(self._lead))
        self._lead = []
        self._missed()
        return at

    def _begin_call(self, at: int) -> int:
        self._call = CallObject(self._bare)
        return at

    def _feed_call(self, call: CallObject, text: str, at: int) -> int:
        at = call.feed(text, at)
        taken = call.take()
        if taken is not None:
            self._lead = []
            self._output.call(*taken)
        if call.done:
            self._end_call(call)
        return at

    def _end_call(self, call: CallObject) -> None:
        """Of a call, what came after its arguments and before no brace is content; of no call, everything."""
        self._call = None
        self._num_complete += call.begun
        self._output.say("".join([*self._lead, *call.raw]))
        self._lead = []
        self._called(call.begun)


class HermesParser(_Reader):
    """Calls between <tool_call> and </tool_call>, anywhere in a reply. The closing marker may be missing."""

    def __init__(self) -> None:
        super().__init__(bare=True)
        self._after_call = False  # nothing but white space since a call

    def flush(self) -> list[Delta]:
        if self._after_call and END_OF_CALL.startswith(self._matched):
            self._matched = ""  # the closing marker, cut
        return super().flush()

    def _read(self, text: str, at: int) -> int:
        if text[at] == "<":
            self._begin_match(CALL, *([END_OF_CALL] if self._after_call else []))
            return at + 1
        end = text.find("<", at)
        piece = text[at : end if end >= 0 else len(text)]
        self._after_call = self._after_call and piece.isspace()
        self._output.say(piece)
        return at + len(piece)

    def _found(self, marker: str) -> None:
        self._after_call = False
        if marker == CALL:
            self._lead = [CALL]
        else:
            self._output.close_call()

    def _missed(self) -> None:
        self._after_call = False

    def _called(self, is_call: bool) -> None:
        self._after_call = is_call


class Llama3Parser(_Reader):
    """The whole reply is calls with semicolons between them; what begins otherwise has none."""

    def __init__(self) -> None:
        super().__init__(bare=False)
        self._may_call = True  # nothing but calls so far

    def _read(self, text: str, at: int) -> int:
        char, has_calls = text[at], self._output.num_calls > 0
        if not self._may_call:
            self._output.say(text[at:])
            return len(text)
        if char == "{":
            return self._begin_call(at)
        if char == "<" and not has_calls:
            self._begin_match(PYTHON_TAG)
        elif char == ";" and has_calls:
            self._found(char)
        else:
            self._may_call = char.isspace()
            self._output.say(char)
        return at + 1

    def _missed(self) -> None:
        self._may_call = False

    def _called(self, is_call: bool) -> None:
        self._may_call = is_call
