"""How a checkpoint of somebody else's holds a conversation: its chat template, and what ends a reply.

A reply ends at every id the checkpoint names as an end, at the tokenizer's end of text, and at whatever the
template itself writes after an assistant's message. Refuses to know formats: they find the template's source
and the ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from llm.chat.jinja import JinjaTemplate
from llm.chat.template import ChatTemplate, Message, PlainTemplate, begin_of
from llm.config import GenerationDefaults
from llm.errors import CheckpointError, RequestError
from llm.tokenizer import Tokenizer

_PROBE = "causerie probe"
MAX_STOP_CHARS = 64


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A template and its ends.

    Attributes:
        template: how conversations are written.
        stop: strings that end a reply.
        stop_token_ids: ids that end a reply.
        notes, warnings: what was found, and what a person should know; one line each.
    """

    template: ChatTemplate
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def over(self, defaults: GenerationDefaults) -> GenerationDefaults:
        """A sampling policy with this dialogue's stop strings before its own, and this dialogue's ids."""
        return replace(defaults, stop=self.stop + defaults.stop, stop_token_ids=self.stop_token_ids)


def read_dialogue(
    where: str,
    source: str | None,
    tokenizer: Tokenizer,
    *,
    bos_token: str = "",
    eos_token: str = "",
    end_ids: Iterable[int] = (),
    default_system: str | None = None,
) -> Dialogue:
    """The conversation format of a checkpoint.

    Args:
        where: path, for messages.
        source: the jinja template it carries, or None: then it gets the plain one, and a warning.
        bos_token, eos_token: spellings the template may use.
        end_ids: every id that the checkpoint's configuration names as an end; ids beyond the vocabulary are
            left out.
        default_system: system message of a conversation that brings none; None leaves it to the template.

    Raises:
        CheckpointError: the template cannot be used.
    """
    ends = {i for i in end_ids if 0 <= i < tokenizer.vocab_size}
    if tokenizer.end_of_text is not None:
        ends.add(tokenizer.end_of_text)
    if source is None:
        warning = (
            "no chat template: conversations are written as plain System:/User:/Assistant: lines; "
            "a base model's answers will not be assistant-shaped"
        )
        plain = PlainTemplate(begin=begin_of(tokenizer))
        return Dialogue(plain, plain.stops, frozenset(ends), ["template: plain"], [warning])
    try:
        template = JinjaTemplate(
            source,
            control=tuple(tokenizer.control),
            bos_token=bos_token,
            eos_token=eos_token,
            default_system=default_system,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    marker, is_control = _end_of_reply(template)
    if is_control:
        ends.add(tokenizer.control[marker])
    stop = (marker,) if marker and not is_control else ()
    notes = [
        f"template: the checkpoint's own, a reply ends with {marker!r}"
        if marker
        else "template: the checkpoint's own"
    ]
    return Dialogue(template, stop, frozenset(ends), notes)


def _end_of_reply(template: ChatTemplate) -> tuple[str, bool]:
    """What the template writes right after an assistant's message, and whether it is a control token.

    ("", False) when that is nothing but white space, or the template refuses the probe.
    """
    try:
        segments = template.render([Message("user", "?"), Message("assistant", _PROBE)], generate=False)
    except RequestError:
        return "", False
    for index, segment in enumerate(segments):
        before, found, after = segment.text.partition(_PROBE)
        if not found:
            continue
        if after.strip():
            return after.strip()[:MAX_STOP_CHARS], False
        following = segments[index + 1] if index + 1 < len(segments) else None
        if following is not None and following.control:
            return following.text, True
        return "", False
    return "", False
