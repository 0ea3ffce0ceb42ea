"""Contestants, each a process that answers one JSON line with another, and rounds of the same work for all.

    >>> figures = contest([ours, theirs], [{"work": "prefill", "tokens": 512}], rounds=5)
    >>> ratio(figures[0], "int8", "Q8_0").median

Everybody does a piece of work in turn, each round starting with another, and a ratio is of one round's two
figures: a machine that slows down slows both. Refuses to know who the contestants are and what the work is,
but that milliseconds are better low and tokens/s high.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from llm.errors import CauserieError

Work = dict[str, Any]
Figures = dict[str, list[float]]
"""Of one piece of work: each contestant's figure in every round. Who could not do it is missing."""


class PeerError(CauserieError):
    """A contestant does not start, or ended. The message starts with its name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Who is to start.

    Attributes:
        name: unique, for people: "int8", "llama.cpp Q8_0".
        program: what it is a variant of: "causerie", "llama.cpp".
        command: starts its process.
        can: whether it takes part in a piece of work.
    """

    name: str
    program: str
    command: list[str]
    can: Callable[[Work], bool] = field(default=lambda work: True)


class Contestant:
    """A running process. `facts` is what it said of itself."""

    def __init__(self, entry: Entry, stack: ExitStack) -> None:
        """
        Raises:
            PeerError: it does not run, or says why it cannot.
        """
        self.entry = entry
        self.stderr = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        try:
            self.process = subprocess.Popen(
                entry.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True
            )
        except OSError as error:
            raise PeerError(f"{entry.name}: {entry.command[0]} does not run: {error.strerror}") from None
        stack.callback(self.close)
        self.facts = self._hear()
        if "error" in self.facts:
            raise PeerError(f"{entry.name}: {self.facts['error']}")

    def ask(self, work: Work) -> Work:
        """Its figures, or {"error": why it has none}.

        Raises:
            PeerError: the process ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(work) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # how it ended is said by the line that does not come
        return self._hear()

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.communicate()

    def _hear(self) -> Work:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        if line:
            raise PeerError(f"{self.entry.name}: says {line.strip()[:80]!r}, which is no JSON object")
        status = self.process.wait()
        self.stderr.seek(0)
        said = [text.strip() for text in self.stderr if text.strip()]
        raise PeerError(
            f"{self.entry.name}: ended with status {status}" + "".join(f": {s}" for s in said[-1:])
        )


@contextmanager
def started(entries: Sequence[Entry]) -> Iterator[list[Contestant]]:
    """All of them, loaded and idle; ended on the way out.

    Raises:
        PeerError: one cannot start.
    """
    with ExitStack() as stack:
        yield [Contestant(entry, stack) for entry in entries]


def contest(
    contestants: Sequence[Contestant], works: Sequence[Work], rounds: int, tell: Callable[[str], None]
) -> list[Figures]:
    """Rounds of all pieces of work, each by everybody who can, in turn.

    Args:
        tell: takes a line about each round, and about a contestant that failed at a piece of work and is not
            asked for it again, or that ended and is out.
    """
    figures: list[Figures] = [{} for _ in works]
    failed: set[tuple[int, str]] = set()
    present = list(contestants)
    for round_ in range(rounds):
        tell(f"round {round_ + 1} of {rounds}")
        for i, work in enumerate(works):
            for place in range(len(contestants)):
                contestant = contestants[(place + round_) % len(contestants)]
                name = contestant.entry.name
                if contestant not in present or (i, name) in failed or not contestant.entry.can(work):
                    continue
                try:
                    answer = contestant.ask(work)
                except PeerError as error:
                    tell(f"{error}; it is out")
                    present.remove(contestant)
                    continue
                if "error" in answer:
                    tell(f"{name}: left out of {work}: {answer['error']}")
                    failed.add((i, name))
                    continue
                figures[i].setdefault(name, []).append(answer[unit(work)])
    # Half of the rounds are no match for all of somebody else's.
    return [{name: f for name, f in of_work.items() if len(f) == rounds} for of_work in figures]


def unit(work: Work) -> str:
    """Of a piece of work's figure."""
    return "ms_per_step" if work["work"] == "decode" else "tokens_per_s"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast `ours` is as `theirs`: of each round, and from these the median and the ends."""

    ours: str
    theirs: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def as_json(self) -> dict[str, Any]:
        """Rounded."""
        ends = {"median": self.median, "min": min(self.rounds), "max": max(self.rounds)}
        return {"ours": self.ours, "theirs": self.theirs} | {key: round(x, 3) for key, x in ends.items()}


def ratio(work: Work, figures: Figures, ours: str, theirs: str) -> Ratio | None:
    """None when one of the two has no figures."""
    if ours not in figures or theirs not in figures:
        return None
    pairs = zip(figures[ours], figures[theirs], strict=True)
    low_is_good = unit(work) == "ms_per_step"
    return Ratio(ours, theirs, tuple(b / a if low_is_good else a / b for a, b in pairs))


def best(work: Work, figures: Figures, names: Sequence[str]) -> str | None:
    """Whose median is best; None when nobody of these has figures."""
    medians = {name: statistics.median(figures[name]) for name in names if name in figures}
    if not medians:
        return None
    return (min if unit(work) == "ms_per_step" else max)(medians, key=lambda name: medians[name])
