"""The chat template a checkpoint brings: messages to segments, markers to control tokens.

A template writes one text in which its own markers and what users wrote are both characters. Here the
sandbox keeps track of who wrote which (sandbox/marked.py), so a marker becomes a control token exactly when
the template wrote all of its characters: from its own text, from a role, from bos_token and eos_token, in one
piece or several ('<|' + role + '|>'). Whatever a message or a tool spells stays text, also when the spelling
only arises where two messages meet or where a piece between is cut out; and the template sees it as sent.
Refuses to know token ids and where the template came from.

    >>> source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    >>> template = JinjaTemplate(source, control=["<|user|>"])
    >>> for segment in template.render([Message("user", "<|user|>?")]):
    ...     print(segment.control, segment.text)
    True <|user|>
    False <|user|>?
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from llm.chat.habits import read_habits
from llm.chat.message import Message, Segment
from llm.chat.sandbox.marked import FINAL, TRAINED, USER, Marked, by_user, flags_of, plain, with_flag
from llm.chat.sandbox.meter import Meter, Overrun
from llm.chat.sandbox.program import Program
from llm.chat.sandbox.rewrite import TemplateFailure
from llm.chat.template import option_param
from llm.chat.tools import Tool, ToolFormat
from llm.chat.turns import (
    CONTINUE,
    check_calls,
    check_final,
    fields_of,
    instruct,
    named_results,
    one_call_each,
    results_as_user,
    spell_calls,
    with_system,
)
from llm.errors import CheckpointError, RequestError

ALLOWED_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "reasoning_effort": ("low", "medium", "high"),
}
"""What a request may tell a template (chat_template_kwargs), and the values of each."""
BASE_STEPS = 1_000_000
STEPS_PER_MESSAGE = 5_000
STEPS_PER_UNIT = 100
"""Steps for each unit (16 characters, or one element) of what the template is given."""
BASE_CHARS = 1 << 20
CHARS_PER_UNIT = 64
"""How much a template may write: 4 times what it is given, and a little more."""
_PROBE = "causerie probe"
_PROBES = (
    [Message("user", _PROBE)],
    [Message("system", _PROBE), Message("user", _PROBE)],
    [Message("user", _PROBE), Message("assistant", _PROBE), Message("user", _PROBE)],
)
_WRITTEN_HERE = re.compile(rb"[\x00\x02]+")
_SAME_TRAINING = re.compile(rb"[\x00\x01]+|[\x02\x03]+")
_IS_FINAL = re.compile(rb"[\x04-\x07]+")
_NOT_FINAL = bytes(byte & ~FINAL for byte in range(256))
assert (USER, TRAINED, FINAL) == (1, 2, 4)


class JinjaTemplate:
    """A template from the operator's files, ready to render.

    `Segment.trained` is what the template writes inside {% generation %} blocks; most have none, and then
    nothing is trained.

    Args:
        source: the template's text.
        control: spellings of control tokens.
        bos_token, eos_token: what the template finds under these names.
        default_system: system message of a conversation that brings none; None leaves that to the template.

    Attributes:
        source: as given.
        constants: bos_token and eos_token.

    Raises:
        CheckpointError: it is no template, includes files, does not end, or cannot write a user's message.
    """

    name = "jinja"

    def __init__(
        self,
        source: str,
        *,
        control: Collection[str] = (),
        bos_token: str = "",
        eos_token: str = "",
        default_system: str | None = None,
    ) -> None:
        self.default_system, self.source = default_system, source
        self.constants = {"bos_token": bos_token, "eos_token": eos_token}
        self._control = ControlTokens(control)
        try:
            self._program = Program(source)
            for probe in _PROBES:
                self._probe(probe)
        except TemplateFailure as error:
            raise CheckpointError(f"chat template: {error}") from None
        self._habits = read_habits(source, self._try)

    @property
    def tool_format(self) -> ToolFormat:
        """The form in which the template writes calls, or else the one it is given them in, as text."""
        return self._habits.tool_format

    @property
    def writes_tools(self) -> bool:
        """Whether it has words of its own for functions."""
        return self._habits.tools

    def _try(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str | None:
        try:
            return plain(self._write(messages, True, tools, {}))
        except TemplateFailure:
            return None

    def _probe(self, messages: Sequence[Message]) -> None:
        """A template may refuse a system message or an order of roles; it may not fail to end."""
        try:
            text = self._write(messages, True, (), {})
        except TemplateFailure as error:
            if error.overrun or len(messages) == 1:
                raise
            return
        if _PROBE not in text:
            raise TemplateFailure("it does not write the user's message")

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        tools: Sequence[Tool] = (),
        options: Mapping[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[Segment]:
        """Segments of a conversation; their texts, joined, are what the template writes, except that a
        bos_token written twice at the start is there once.

        Args:
            generate: end where the model's reply begins.
            tools: functions the model may call.
            options: of ALLOWED_OPTIONS.
            continue_final: end where the last message's text ends.

        Raises:
            RequestError: an option is not allowed, the template refuses the conversation, or it does not
                write the message that is to be continued as it is.
        """
        check_options(options or {}, self._program.names)
        check_calls(messages)
        final = messages[-1].content if continue_final and check_final(messages) else None
        if continue_final and final is None:
            messages, generate = messages[:-1], True
        messages, given = self._put(messages, tools)
        try:
            text = self._write(messages, generate and final is None, given, options or {}, final is not None)
        except TemplateFailure as error:
            verb = "refuses" if error.refusal else "fails on"
            raise RequestError(
                f"this model's chat template {verb} this conversation: {error}", param="messages"
            ) from None
        if final is not None:
            text = _cut(text, final)
        segments = list(self._segments(text))
        bos = Segment(self.constants["bos_token"], control=True)
        return segments[1:] if segments[:2] == [bos, bos] else segments

    def text(self, messages: Sequence[Message], *, generate: bool = True) -> str:
        """The rendered conversation as one string, for people to read."""
        return "".join(segment.text for segment in self.render(messages, generate=generate))

    def _put(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], Sequence[Tool]]:
        """The conversation as the template knows it, and the tools that are left to it."""
        habits = self._habits
        turns = with_system(messages, self.default_system)
        if tools and not habits.tools:
            turns, tools = instruct(turns, habits.tool_format, tools, system=habits.system), ()
        if not habits.calls:
            return results_as_user(spell_calls(turns, habits.tool_format), habits.tool_format), tools
        return named_results(turns if habits.several else one_call_each(turns)), tools

    def _write(
        self,
        messages: Sequence[Message],
        generate: bool,
        tools: Sequence[Tool],
        options: Mapping[str, object],
        mark_final: bool = False,
    ) -> str:
        """The template's text, marked with who wrote what."""
        turns = [_turn(message) for message in with_system(messages, self.default_system)]
        if mark_final:
            turns[-1]["content"] = with_flag(by_user(messages[-1].content), FINAL)
        values: dict[str, object] = {
            **self.constants,
            **options,
            "messages": turns,
            "tools": [_by_user(tool.spec) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": generate,
        }
        size = _size(values)
        steps = BASE_STEPS + STEPS_PER_MESSAGE * len(messages) + STEPS_PER_UNIT * size
        text = self._program.run(values, Meter(steps))
        if len(text) > (limit := BASE_CHARS + CHARS_PER_UNIT * size):
            raise TemplateFailure(f"it writes {len(text):,} characters, the limit is {limit:,}", overrun=True)
        return text

    def _segments(self, text: str) -> Iterator[Segment]:
        flags, bare = flags_of(text), plain(text)
        end = 0
        for start, stop in self._control.find(bare, flags):
            yield from _texts(bare, flags, end, start)
            yield Segment(bare[start:stop], trained=bool(flags[start] & TRAINED), control=True)
            end = stop
        yield from _texts(bare, flags, end, len(bare))


class ControlTokens:
    """The spellings of control tokens, to be found in a template's text: leftmost first, longest first."""

    def __init__(self, spellings: Collection[str]) -> None:
        self._spellings = frozenset(spellings) - {""}
        self._lengths: dict[str, list[int]] = {}
        for first, length in sorted({(s[0], len(s)) for s in self._spellings}, reverse=True):
            self._lengths.setdefault(first, []).append(length)
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    def find(self, text: str, flags: bytes) -> Iterator[tuple[int, int]]:
        """Start and end of each in the text, among characters without the flag USER."""
        for run in _WRITTEN_HERE.finditer(flags):
            position, end = run.span()
            while match := self._first.search(text, position, end):
                start = position = match.start()
                lengths = (n for n in self._lengths[match[0]] if start + n <= end)
                length = next((n for n in lengths if text[start : start + n] in self._spellings), None)
                if length is not None:
                    yield start, start + length
                position += length or 1


def check_options(options: Mapping[str, object], names: Collection[str]) -> None:
    """Refuse what is not in ALLOWED_OPTIONS, and what the template would not notice.

    Args:
        names: variables of the template.

    Raises:
        RequestError: names the option.
    """
    for name, value in options.items():
        param = option_param(name)
        if name not in ALLOWED_OPTIONS:
            known = ", ".join(ALLOWED_OPTIONS)
            raise RequestError(f"{param}: this option is not known, known: {known}", param=param)
        allowed = ALLOWED_OPTIONS[name]
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            choices = " or ".join(str(c).lower() if isinstance(c, bool) else repr(c) for c in allowed)
            raise RequestError(f"{param}: expected {choices}", param=param)
        if name not in names:
            raise RequestError(f"{param}: this model's chat template knows no such option", param=param)


def _texts(text: str, flags: bytes, start: int, end: int) -> Iterator[Segment]:
    for run in _SAME_TRAINING.finditer(flags, start, end):
        yield Segment(text[run.start() : run.end()], trained=bool(flags[run.start()] & TRAINED))


def _turn(message: Message) -> dict[str, object]:
    """A message for the template: what it says counts as the user's, and a role is a role."""
    turn = {key: _by_user(value) for key, value in fields_of(message).items()}
    return turn | {"role": message.role}


def _cut(text: str, final: str) -> str:
    """The text up to the end of the final message's.

    Raises:
        RequestError: the template leaves its end out, or changes it.
    """
    bare, flags = plain(text), flags_of(text)
    run = max(_IS_FINAL.finditer(flags), key=lambda run: run.end(), default=None)
    written = bare[run.start() : run.end()].rstrip() if run else ""
    if run is None or not written or not final.rstrip().endswith(written):
        raise RequestError(
            f"{CONTINUE}: this model's chat template does not write the last message as it is", param=CONTINUE
        )
    return Marked(bare[: run.end()], flags[: run.end()].translate(_NOT_FINAL))


def _by_user(value: object, depth: int = 1) -> object:
    """A copy of JSON data in which every text, keys included, counts as the user's."""
    if depth > 60:
        raise RequestError("tools: nested more than 60 deep", param="tools")
    if isinstance(value, str):
        return by_user(value)
    if isinstance(value, Mapping):
        return {by_user(str(key)): _by_user(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_by_user(inner, depth + 1) for inner in value]
    assert value is None or isinstance(value, bool | int | float), f"not JSON: {type(value)}"
    return value


def _size(value: object) -> int:
    """Units of everything inside."""
    meter = Meter(1 << 60)
    try:
        meter.measure(value)
    except Overrun as error:
        raise TemplateFailure(str(error)) from None
    return meter.spent
