"""ChatML, the format of many fine-tuned models: `<|im_start|>role`, the message, `<|im_end|>`.

Refuses to know token ids: which of the two markers are control tokens it is told.

    >>> template = ChatMLTemplate("Be brief.", control=["<|im_start|>", "<|im_end|>"])
    >>> print(template.text([Message("user", "hello")]))
    <|im_start|>system
    Be brief.<|im_end|>
    <|im_start|>user
    hello<|im_end|>
    <|im_start|>assistant
    <BLANKLINE>
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from llm.chat.message import Message, Segment
from llm.chat.template import refuse_options
from llm.chat.tools import HERMES, Tool
from llm.chat.turns import check_calls, check_final, instruct, results_as_user, spell_calls, with_system

START = "<|im_start|>"
END = "<|im_end|>"


class ChatMLTemplate:
    """One block per message; the model is taught a reply and its `<|im_end|>`.

    A marker that is a control token of the model becomes that token, and the same spelling in a message stays
    text. A marker that is not is ordinary text, and a message that spells it could end itself and speak as
    another role: there the spelling gets a space after the "<" ("< |im_end|>").

    Tools are described in the system message, and calls and results written as Hermes and Qwen have them.

    Args:
        default_system: system message of a conversation that brings none.
        control: spellings of the model's control tokens.
    """

    name = "chatml"
    tool_format = HERMES
    writes_tools = False

    def __init__(self, default_system: str | None = None, control: Collection[str] = ()) -> None:
        self.default_system = default_system
        self._control = {START, END} & set(control)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings that end a reply: none when `<|im_end|>` is a control token, whose id ends it."""
        return () if END in self._control else (END,)

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        tools: Sequence[Tool] = (),
        options: Mapping[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[Segment]:
        """Segments of a conversation, ending with `<|im_start|>assistant` and a line break when `generate`.

        Raises:
            RequestError: options are given, or the last message cannot be continued.
        """
        refuse_options(self.name, options)
        check_calls(messages)
        final = messages[-1] if continue_final and check_final(messages) else None
        messages = with_system(messages[:-1] if continue_final else messages, self.default_system)
        if tools:
            messages = instruct(messages, HERMES, tools)
        messages = results_as_user(spell_calls(messages, HERMES), HERMES)
        segments = [segment for message in messages for segment in self._block(message)]
        if generate or continue_final:
            segments += [self._marker(START), Segment("assistant\n")]
        if final is not None:
            segments.append(Segment(self._harmless(final.content), trained=True))
        return _merged(segments)

    def text(self, messages: Sequence[Message], *, generate: bool = True) -> str:
        """The rendered conversation as one string, for people to read."""
        return "".join(segment.text for segment in self.render(messages, generate=generate))

    def _block(self, message: Message) -> Iterator[Segment]:
        trained = message.role == "assistant"
        yield self._marker(START)
        yield Segment(f"{message.role}\n")
        yield Segment(self._harmless(message.content), trained)
        yield self._marker(END, trained)
        yield Segment("\n")

    def _harmless(self, content: str) -> str:
        for marker in {START, END} - self._control:
            content = content.replace(marker, f"< {marker[1:]}")
        return content

    def _marker(self, marker: str, trained: bool = False) -> Segment:
        return Segment(marker, trained, control=marker in self._control)


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbouring texts of the same kind as one, so that they are encoded together; no empty ones."""
    merged: list[Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if last and not last.control and not segment.control and last.trained == segment.trained:
            merged[-1] = Segment(last.text + segment.text, segment.trained)
        elif segment.text:
            merged.append(segment)
    return merged
