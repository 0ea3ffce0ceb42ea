"""What is sent with every turn, and what becomes of it: answered, failed, asked again.

Refuses to know servers and screens. Nothing is kept of a turn until its reply is there, so whatever ends a
reply halfway leaves the conversation as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Message = dict[str, str]


@dataclass
class Conversation:
    """The system message, the turns, and those that wait for a reply since the last attempt failed."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    failed: list[Message] | None = None

    @property
    def messages(self) -> list[Message]:
        """What was said so far."""
        return self.sent(self.turns)

    def sent(self, turns: Sequence[Message]) -> list[Message]:
        """These turns as a server gets them: behind the system message, when there is one."""
        return [*([{"role": "system", "content": self.system}] if self.system is not None else []), *turns]

    def asking(self, text: str) -> list[Message]:
        """The turns with a new question at their end."""
        return [*self.turns, {"role": "user", "content": text}]

    def asking_again(self) -> list[Message] | None:
        """The turns whose reply failed, else those up to the last question; None before the first."""
        if self.failed is not None:
            return self.failed
        questions = [place for place, turn in enumerate(self.turns) if turn["role"] == "user"]
        return self.turns[: questions[-1] + 1] if questions else None

    def answer(self, turns: list[Message], reply: str) -> None:
        """Keep these turns and their reply."""
        self.turns = [*turns, {"role": "assistant", "content": reply}]
        self.failed = None

    def fail(self, turns: list[Message]) -> None:
        """Remember what is to be asked again; it stays out of later prompts."""
        self.failed = turns

    def load(self, messages: list[Message]) -> None:
        """Go on from what another conversation said."""
        begins = messages[:1] if messages[0]["role"] == "system" else []
        self.system = begins[0]["content"] if begins else None
        self.turns = messages[len(begins) :]
        self.failed = None

    def reset(self) -> None:
        """Forget the turns, keep the system message."""
        self.turns, self.failed = [], None
