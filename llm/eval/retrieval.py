"""The baseline: the answer to the nearest training question, what the same data gives without a network.

Refuses to know models.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from llm.chat.template import Message
from llm.train.facts import Fact


class Retrieval:
    """The baseline: the answer of the training question with the highest tf-idf cosine to the last message.

    A bag of lower-cased words; idf = log(N / number of questions with the word), so a word that all share
    counts nothing; the first of equals wins, and a question without a known word gets the answer for
    "unknown".
    """

    def __init__(self, facts: Sequence[Fact], fallback: str) -> None:
        pairs = [(Counter(words(question)), fact.answer) for fact in facts for question in fact.questions]
        self.answers = [answer for _, answer in pairs]
        self.fallback = fallback
        seen = Counter(word for bag, _ in pairs for word in bag)
        self.idf = {word: math.log(len(pairs) / count) for word, count in seen.items()}
        self.index: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, (bag, _) in enumerate(pairs):
            for word, weight in self._weights(bag).items():
                self.index[word].append((number, weight))

    def __call__(self, messages: Sequence[Message]) -> str:
        similarity: dict[int, float] = defaultdict(float)
        for word, weight in self._weights(Counter(words(messages[-1].content))).items():
            for number, other in self.index.get(word, ()):
                similarity[number] += weight * other
        if not similarity:
            return self.fallback
        return self.answers[max(similarity, key=lambda number: (similarity[number], -number))]

    def _weights(self, bag: Counter[str]) -> dict[str, float]:
        """tf × idf of the known words, of length 1."""
        raw = {word: count * self.idf[word] for word, count in bag.items() if self.idf.get(word)}
        norm = math.sqrt(sum(value * value for value in raw.values()))
        return {word: value / norm for word, value in raw.items()}


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores."""
    return re.findall(r"\w+", text.lower())
