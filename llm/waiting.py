"""Who is next: the sequences that wait for an engine, in the order in which they will start. No torch.

The lowest priority number goes first. Within a priority the clients take turns, and each client's own
sequences go first come first served: one who sends a thousand requests delays the others by one. What had
started before and was sent back (preemption) goes before all others of its priority. Refuses to know blocks
and batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llm.sequence import Sequence

Line = dict[int, Sequence]
"""Sequences by id, in order: a queue from whose middle one can leave."""


@dataclass(slots=True)
class _Priority:
    """One priority's lines: who was sent back, and a line per client, the client who is next in front."""

    returned: Line = field(default_factory=dict)
    clients: dict[str, Line] = field(default_factory=dict)


class WaitingLine:
    """A queue that is fair between clients. Called from one thread; `len` and iteration from any."""

    def __init__(self) -> None:
        self._priorities: dict[int, _Priority] = {}
        self._all: Line = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.id in self._all

    def __iter__(self) -> Iterator[Sequence]:
        """Everyone, in no order that means something."""
        return iter(list(self._all.values()))

    def add(self, sequence: Sequence) -> None:
        """Behind its client's others."""
        lines = self._lines(sequence)
        lines.clients.setdefault(sequence.client, {})[sequence.id] = sequence
        self._all[sequence.id] = sequence

    def put_back(self, sequence: Sequence) -> None:
        """Before everyone of its priority: it had started."""
        lines = self._lines(sequence)
        lines.returned = {sequence.id: sequence, **lines.returned}
        self._all[sequence.id] = sequence

    def first(self) -> Sequence:
        """Who is next; at least one waits."""
        lines = self._priorities[min(self._priorities)]
        line = lines.returned or next(iter(lines.clients.values()))
        return next(iter(line.values()))

    def pop(self) -> Sequence:
        """Take out who is next; the client's turn is over."""
        sequence = self.first()
        lines = self._priorities[sequence.priority]
        has_turn = sequence.id not in lines.returned
        self.remove(sequence)
        if has_turn and sequence.client in lines.clients:
            lines.clients[sequence.client] = lines.clients.pop(sequence.client)  # to the end of the dict
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Take out one from anywhere."""
        lines = self._priorities[sequence.priority]
        if sequence.id in lines.returned:
            del lines.returned[sequence.id]
        else:
            line = lines.clients[sequence.client]
            del line[sequence.id]
            if not line:
                del lines.clients[sequence.client]
        if not lines.returned and not lines.clients:
            del self._priorities[sequence.priority]
        del self._all[sequence.id]

    def replace(self, sequence: Sequence, other: Sequence) -> None:
        """Give one's place to another of the same client and priority."""
        assert (sequence.client, sequence.priority) == (other.client, other.priority)
        lines = self._priorities[sequence.priority]
        if sequence.id in lines.returned:
            lines.returned = _replaced(lines.returned, sequence, other)
        else:
            lines.clients[sequence.client] = _replaced(lines.clients[sequence.client], sequence, other)
        del self._all[sequence.id]
        self._all[other.id] = other

    def _lines(self, sequence: Sequence) -> _Priority:
        return self._priorities.setdefault(sequence.priority, _Priority())


def _replaced(line: Line, old: Sequence, new: Sequence) -> Line:
    others = (new if sequence is old else sequence for sequence in line.values())
    return {sequence.id: sequence for sequence in others}
