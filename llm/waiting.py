"""Who is next: the sequences that wait for an engine, in the order in which they will start. No torch.

The lowest priority number goes first. Within a priority the clients take turns, and each client's own
sequences go first come first served: one who sends a thousand requests delays the others by one. What had
started before and was sent back (preemption) goes before all others of its priority. What a step asks costs
the same however many wait. Refuses to know blocks and batches.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from llm.sequence import Sequence

Line = OrderedDict[int, Sequence]
"""Sequences by id, in order: a queue from whose middle one can leave. (A dict would look for its first item
past all that have left.)"""


@dataclass(slots=True)
class _Priority:
    """One priority's lines: who was sent back, and a line per client, the client who is next in front."""

    returned: Line = field(default_factory=OrderedDict)
    clients: OrderedDict[str, Line] = field(default_factory=OrderedDict)


class WaitingLine:
    """A queue that is fair between clients. Called from one thread; `len` and iteration from any."""

    def __init__(self) -> None:
        self._priorities: dict[int, _Priority] = {}
        self._order: list[int] = []  # the priorities, ascending
        self._all: dict[int, Sequence] = {}

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
        lines.clients.setdefault(sequence.client, OrderedDict())[sequence.id] = sequence
        self._all[sequence.id] = sequence

    def put_back(self, sequence: Sequence) -> None:
        """Before everyone of its priority: it had started."""
        lines = self._lines(sequence)
        lines.returned[sequence.id] = sequence
        lines.returned.move_to_end(sequence.id, last=False)
        self._all[sequence.id] = sequence

    def first(self) -> Sequence:
        """Who is next; at least one waits."""
        lines = self._priorities[self._order[0]]
        line = lines.returned or next(iter(lines.clients.values()))
        return next(iter(line.values()))

    def pop(self) -> Sequence:
        """Take out who is next; the client's turn is over."""
        sequence = self.first()
        lines = self._priorities[sequence.priority]
        has_turn = sequence.id not in lines.returned
        self.remove(sequence)
        if has_turn and sequence.client in lines.clients:
            lines.clients.move_to_end(sequence.client)
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
            del self._order[bisect_left(self._order, sequence.priority)]
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
        if sequence.priority not in self._priorities:
            self._priorities[sequence.priority] = _Priority()
            insort(self._order, sequence.priority)
        return self._priorities[sequence.priority]


def _replaced(line: Line, old: Sequence, new: Sequence) -> Line:
    others = (new if sequence is old else sequence for sequence in line.values())
    return OrderedDict((sequence.id, sequence) for sequence in others)
