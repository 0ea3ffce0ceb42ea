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

from llm.chat.template import Message, Segment, refuse_options

START = "<|im_start|>"
END = "<|im_end|>"


class ChatMLTemplate:
    """One block per message; the model is taught a reply and its `<|im_end|>`.

    A marker that is a control token of the model becomes that token, and the same spelling in a message stays
    text. A marker that is not is ordinary text, and a message that spells it could end itself and speak as
    another role: there the spelling gets a space after the "<" ("< |im_end|>").

    Args:
        default_system: system message of a conversation that brings none.
        control: spellings of the model's control tokens.
    """

    name = "chatml"

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
        tools: Sequence[Mapping[str, object]] = (),
        options: Mapping[str, object] | None = None,
    ) -> list[Segment]:
        """Segments of a conversation, ending with `<|im_start|>assistant` and a line break when `generate`.

        Raises:
            RequestError: tools or options are given.
        """
        refuse_options(self.name, tools, options)
        if self.default_system is not None and not any(m.role == "system" for m in messages):
            messages = [Message("system", self.default_system), *messages]
        segments = [segment for message in messages for segment in self._block(message)]
        if generate:
            segments += [self._marker(START), Segment("assistant\n")]
        return _merged(segments)

    def text(self, messages: Sequence[Message], *, generate: bool = True) -> str:
        """The rendered conversation as one string, for people to read."""
        return "".join(segment.text for segment in self.render(messages, generate=generate))

    def _block(self, message: Message) -> Iterator[Segment]:
        content = message.content
        for marker in {START, END} - self._control:
            content = content.replace(marker, f"< {marker[1:]}")
        trained = message.role == "assistant"
        yield self._marker(START)
        yield Segment(f"{message.role}\n")
        yield Segment(content, trained)
        yield self._marker(END, trained)
        yield Segment("\n")

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
