"""Test questions with what an answer has to carry, and the share of answers that do.

A line is {"question": text} or {"messages": [...]}, with "expect": [["one of these", "or this"], ["and"]],
or with "fact": an id of the files of facts, or "unknown" for what lies outside. An answer is right when of
each group one string occurs in it, case aside. Refuses to know who answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.chat.template import Message
from llm.errors import DataError
from llm.train.data import read_jsonl, read_messages
from llm.train.facts import UNKNOWN, Fact, carries

Keys = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One test question.

    Attributes:
        messages: a conversation that ends with the user.
        keys: every group needs one of its strings in the lower-cased answer.
        expected: the same for people to read.
        fact: id of the fact it asks for, "" of a question that brings its own keys.
    """

    messages: tuple[Message, ...]
    keys: Keys
    expected: str
    fact: str = ""

    @property
    def question(self) -> str:
        """The last message."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Miss:
    """An answer that was not right."""

    case: Case
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """Which answers were right, and how many in the domain and outside: (right, asked)."""

    right: tuple[bool, ...]
    in_domain: tuple[int, int]
    unknown: tuple[int, int]
    misses: tuple[Miss, ...]

    @property
    def all(self) -> tuple[int, int]:
        """Right answers and answers."""
        return self.in_domain[0] + self.unknown[0], self.in_domain[1] + self.unknown[1]

    def shares(self) -> dict[str, float | None]:
        """Right / all of each part, None where there is no such question."""
        parts = {"all": self.all, "in_domain": self.in_domain, "unknown": self.unknown}
        return {name: round(right / count, 4) if count else None for name, (right, count) in parts.items()}


def names_facts(path: str | Path) -> bool:
    """Whether some line asks for a fact, so that the files of facts are needed."""
    return any("fact" in value for _, value in read_jsonl(path))


def read_cases(path: str | Path, facts: Mapping[str, Fact]) -> list[Case]:
    """The test set.

    Args:
        facts: by id; may be empty where no line names one.

    Raises:
        DataError: a line without a question, one whose last turn is not the user's, an unknown fact, or an
            expectation that none can meet.
    """
    cases = []
    for where, value in read_jsonl(path):
        if isinstance(value.get("question"), str):
            messages = read_messages(where, [{"role": "user", "content": value["question"]}])
        else:
            messages = read_messages(where, value.get("messages"))
        if messages[-1].role != "user":
            raise DataError(f"{where}: the last message must be the user's, it is the {messages[-1].role}'s")
        if "expect" in value:
            groups = _read_groups(where, value["expect"])
            expected = "; ".join(" or ".join(group) for group in groups)
            keys = tuple(tuple(key.lower() for key in group) for group in groups)
            cases.append(Case(tuple(messages), keys, expected))
            continue
        if value.get("fact") not in facts:
            raise DataError(f"{where}: fact is {value.get('fact')!r}, which no file of facts has")
        fact = facts[value["fact"]]
        cases.append(Case(tuple(messages), fact.keys, fact.answer, fact.id))
    if not cases:
        raise DataError(f"{path}: no test questions")
    return cases


def _read_groups(where: str, value: object) -> list[list[str]]:
    groups = value if isinstance(value, list) else []
    good = all(
        isinstance(group, list) and group and all(isinstance(key, str) and key.strip() for key in group)
        for group in groups
    )
    if not groups or not good:
        raise DataError(
            f'{where}: expect must be a list of lists of text: [["this", "or this"], ["and this"]]'
        )
    return groups


def grade(cases: Sequence[Case], answers: Sequence[str]) -> Score:
    """Look at an answer to each."""
    right, count = Counter[bool](), Counter[bool]()
    verdicts, misses = [], []
    for case, answer in zip(cases, answers, strict=True):
        good = carries(answer, case.keys)
        verdicts.append(good)
        count[case.fact == UNKNOWN] += 1
        right[case.fact == UNKNOWN] += good
        if not good:
            misses.append(Miss(case, answer))
    return Score(tuple(verdicts), (right[False], count[False]), (right[True], count[True]), tuple(misses))
