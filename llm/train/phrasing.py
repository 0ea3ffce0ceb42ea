"""The other ways a person may have asked: a question re-worded, or a handful of the words that belong to a
fact.

`vary` keeps a question's meaning: synonyms, lost words, other order, filler, punctuation, politeness, case,
typing errors. `WordBag` goes further and draws a few telling words from everything ever asked about a fact
and from its answer, so that a model from scratch learns which words carry a question, not only which
sentences. All of it is random by a seeded dice and nothing else. Refuses to know answers' wording, files and
tokenizers.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

PREFIXES = (
    "hey, ",
    "hi, ",
    "hello, ",
    "please, ",
    "please tell me ",
    "can you tell me ",
    "could you tell me ",
    "could you explain ",
    "can you explain ",
    "do you know ",
    "i was wondering, ",
    "i wonder ",
    "quick question: ",
    "one question: ",
    "sorry, but ",
    "ok so ",
    "so, ",
    "and ",
    "well, ",
    "i want to know ",
    "i'd like to know ",
    "tell me, ",
    "help me understand ",
    "in short, ",
    "briefly, ",
    "just curious, ",
    "excuse me, ",
    "remind me, ",
)
SUFFIXES = (
    " please",
    ", please",
    " thanks",
    ", thank you",
    " in short",
    " briefly",
    " exactly",
    " again",
    " for a beginner",
    " in simple words",
    ", i am new to this",
    " here",
)
STOP_WORDS = frozenset(
    "a an the is are do does did of to for in on at it this that so just really actually exactly please can "
    "could you me i my we be by with".split()
)
SYNONYMS = (
    ("explain", "describe", "clarify"),
    ("start", "launch", "run"),
    ("reply", "answer", "response"),
    ("speed", "performance"),
    ("fast", "quick"),
    ("slow", "sluggish"),
    ("stop", "end", "halt"),
    ("mean", "stand for"),
    ("meaning", "definition", "sense"),
    ("show", "display", "print"),
    ("use", "employ"),
    ("make", "create", "build"),
    ("big", "large"),
    ("small", "tiny", "little"),
    ("need", "require"),
    ("happens", "occurs"),
    ("purpose", "point", "goal"),
    ("choose", "pick", "select"),
    ("change", "alter", "modify"),
    ("set", "configure"),
    ("words", "terms"),
    ("text", "prose"),
    ("machine", "computer"),
    ("network", "net"),
    ("llm", "language model"),
    ("llms", "language models"),
    ("model", "network"),
    ("kind", "type", "sort"),
    ("why", "how come"),
    ("shut down", "turn off"),
    ("many", "several"),
    ("memory", "RAM"),
    ("send", "submit"),
    ("get", "obtain", "receive"),
    ("default", "standard"),
    ("limit", "maximum", "cap"),
    ("error", "failure"),
    ("parameter", "setting", "option"),
    ("difference", "distinction"),
    ("works", "functions"),
)
_SWAPS = {word: [other for other in group if other != word] for group in SYNONYMS for word in group}
OPENERS = (
    "what is",
    "what are",
    "what does",
    "how do i",
    "how does",
    "how",
    "why",
    "explain",
    "tell me about",
    "which",
    "can i",
    "is there",
    "when",
    "what about",
)
FILLERS = tuple(
    "the a of in is it when my one some thing really then if for with about there would should you we i me "
    "kind way use get know think see want need people time does how what which where why who new good first "
    "same any".split()
)


class WordBag:
    """Telling words of each fact: drawn often when they are frequent in it and rare in the others.

    Args:
        texts: everything that is said about each fact, its questions and its answer.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        counts = [Counter(word for text in of_fact for word in content_words(text)) for of_fact in texts]
        spread = Counter(word for of_fact in counts for word in of_fact)
        self._words = [sorted(of_fact) for of_fact in counts]
        self._weights = [
            [math.sqrt(of_fact[word]) * math.log(1 + len(counts) / spread[word]) ** 2 for word in words]
            for of_fact, words in zip(counts, self._words, strict=True)
        ]

    def draw(self, fact: int, dice: random.Random) -> str:
        """Two to six words of a fact in any order, often behind the beginning of a question."""
        words = dice.choices(self._words[fact], self._weights[fact], k=dice.randint(2, 6))
        words = list(dict.fromkeys(words))
        if dice.random() < 0.5:
            words.insert(0, dice.choice(OPENERS))
        return recase(" ".join(words) + ("?" if dice.random() < 0.5 else ""), dice)


def content_words(text: str) -> list[str]:
    """Lower-cased words that are not stop words; names such as top_p, --port and /v1/models stay whole."""
    words = (word.strip(".,;:!?()'\"") for word in text.lower().split())
    return [word for word in words if re.search(r"[a-z0-9]", word) and word not in STOP_WORDS]


def vary(question: str, dice: random.Random) -> str:
    """Another way a person may have typed the question."""
    words = question.split()
    if dice.random() < 0.4:
        words = [_synonym(word, dice) for word in words]
    roll = dice.random()
    if roll < 0.25:
        words = [word for word in words if word.lower() not in STOP_WORDS or dice.random() < 0.5] or words
    elif roll < 0.5:
        words = [word for word in words if dice.random() < 0.8] or words
    if dice.random() < 0.12:
        dice.shuffle(words)
    if dice.random() < 0.25:
        for _ in range(dice.randint(1, 3)):
            words.insert(dice.randint(0, len(words)), dice.choice(FILLERS))
    if dice.random() < 0.1:
        place = dice.randrange(len(words))
        words[place] = _mistype(words[place], dice)
    text = " ".join(words)
    if dice.random() < 0.5:
        text = (text.rstrip("?") or text) if text.endswith("?") else text.rstrip(".!") + "?"
    if dice.random() < 0.25:
        text = dice.choice(PREFIXES) + text[0].lower() + text[1:]
    if dice.random() < 0.12:
        mark = text[-1] if text[-1] in "?.!" else ""
        text = text.rstrip("?.!") + dice.choice(SUFFIXES) + mark
    return recase(text, dice)


def _synonym(word: str, dice: random.Random) -> str:
    core = word.rstrip("?,.!")
    others = _SWAPS.get(core.lower())
    return dice.choice(others) + word[len(core) :] if others and dice.random() < 0.4 else word


def _mistype(word: str, dice: random.Random) -> str:
    """Swap two neighbours, drop a letter or double one; short words stay."""
    if len(word) < 4:
        return word
    place = dice.randrange(1, len(word) - 1)
    kind = dice.randrange(3)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word[:place] + word[place] * (0 if kind == 1 else 2) + word[place + 1 :]


def recase(text: str, dice: random.Random) -> str:
    """Lower case, a capital first letter, all capitals once in a hundred, or as it was."""
    roll = dice.random()
    if roll < 0.35:
        return text.lower()
    if roll < 0.65:
        return text[0].upper() + text[1:]
    return text.upper() if roll < 0.66 else text
