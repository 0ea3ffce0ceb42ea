"""What a chat template knows of tools, found out by trying: it is shown a function, calls and results.

A template that writes calls in a form of `tools.py` is trusted with all of it. One whose form is another, or
that writes none, has functions, calls and results put before it as text. Where a template describes functions
but writes no calls, the words in its source say which form it teaches. Refuses to know how a template is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm.chat.message import Message, ToolCall
from llm.chat.tool_calls import CALL, PYTHON_TAG, Delta, ToolCallDelta
from llm.chat.tools import HERMES, LLAMA3, Tool, ToolFormat

Write = Callable[[Sequence[Message], Sequence[Tool]], str | None]
"""Messages and tools to the template's text up to the next reply; None where it fails or refuses."""

_TOOL = Tool("probe_tool", "probes", {"type": "object", "properties": {"probe": {"type": "string"}}})
_ASK = Message("user", "probe question")
_SYSTEM = Message("system", "probe system")
_VALUE = "probe value"
_ANSWER = "probe answer"
_WORDS = ((HERMES, (CALL,)), (LLAMA3, (PYTHON_TAG, '"parameters"', "ipython")))


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template writes itself.

    Attributes:
        tool_format: the form of its calls; HERMES when it has none of ours.
        tools: it describes functions.
        calls: it writes calls, and results as turns of their own.
        several: more than one call in a turn.
        system: it writes system messages.
    """

    tool_format: ToolFormat
    tools: bool
    calls: bool
    several: bool
    system: bool


def read_habits(source: str, write: Write) -> Habits:
    """Try a template out.

    Args:
        source: its text.
    """
    asked = write([_ASK], ())
    called = write([_ASK, *_turn(1)], ())
    system = _SYSTEM.content in (write([_SYSTEM, _ASK], ()) or "")
    calls = called is not None and all(text in called for text in (_name(0), f"{_VALUE} 0", f"{_ANSWER} 0"))
    found = _form_of(asked or "", called) if calls and called is not None else _form_in(source)
    if found is None:
        return Habits(HERMES, False, False, False, system)
    twice = write([_ASK, *_turn(2)], ()) or ""
    return Habits(
        found,
        tools=_TOOL.name in (write([_ASK], [_TOOL]) or ""),
        calls=calls,
        several=all(f"{_VALUE} {i}" in twice and f"{_ANSWER} {i}" in twice for i in range(2)),
        system=system,
    )


def _name(number: int) -> str:
    return f"probe_call_{number}"


def _turn(num_calls: int) -> list[Message]:
    """An assistant's calls and their results. Ids are nine letters and digits: some templates insist."""
    calls = [ToolCall(f"probe000{i}", _name(i), f'{{"probe": "{_VALUE} {i}"}}') for i in range(num_calls)]
    results = [Message("tool", f"{_ANSWER} {i}", (), call.id, call.name) for i, call in enumerate(calls)]
    return [Message("assistant", "", tuple(calls)), *results]


def _form_of(asked: str, called: str) -> ToolFormat | None:
    """The form in which a call was written, read back as a reply would be."""
    if _is_probe(HERMES.parser().feed(called)):
        return HERMES
    reply = called[len(asked) :] if called.startswith(asked) else ""
    if '"parameters"' in reply and _is_probe(LLAMA3.parser().feed(reply)):
        return LLAMA3
    return None


def _is_probe(deltas: list[Delta]) -> bool:
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    return bool(calls) and calls[0].name == _name(0) and _VALUE in "".join(d.arguments for d in calls)


def _form_in(source: str) -> ToolFormat | None:
    """The form a template teaches, by its words."""
    return next((form for form, words in _WORDS if any(word in source for word in words)), None)
