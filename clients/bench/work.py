"""What is sent when: lengths, texts and arrivals, all from one seed.

    >>> work = Work([Kind(Length(48), Length(64))], seed=0)
    >>> jobs = work.jobs(Level(num_requests=8, streams=1), round_number=0)

A level's lengths and arrivals are the same in every round, and its texts never: a server that keeps what it
computed would else be measured at remembering. What is to be remembered is asked for, as a common prefix.
All words have four letters and are one token of most vocabularies, so that lengths are met without a
tokenizer. Refuses to know servers and clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

WORDS = """
able army away baby back ball bank base bear best bird blue boat body bone book boys burn busy cake call
calm camp card care case cash cast city clay club coal coat code cold cook cool copy corn crew crop dark date
dawn deal deep desk door down draw drop drum dust each east easy edge face fact fair farm fast fear film fine
fire firm fish five flag flat flow food foot form four fuel full fund game gate gift girl glad goal gold golf
good gray half hall hand hard head heat help hero high hill hold hole home hope horn host hour huge idea inch
iron item join jump jury king kiss lady lake lamp land lane late lawn leaf left lens life lift line lion list
load loan lock long lord loud love luck main mark mass meal meat menu milk mind mood moon move name near neck
need nest news next nice nine noon nose note oath oven pack page pain pair palm park part past path peak pink
pipe plan play poem poet pond pool port post pure race rain rare rate rest rice rich ring rise risk road rock
role roof room root rope rose rule safe sail salt sand seat seed ship shoe shop side silk size skin slow snow
soap soft soil song soul soup star step suit tail talk tall task team tent test text time tiny tone tool town
tree trip tune turn type unit vast view vote wage walk wall warm wave week west wide wild wind wine wing wire
wise wish wolf wood yard year zone
""".split()

REQUEST = "Make long text with each word here".split()
"""The end of a prompt that has room for it, so that the reply is a text and not more words."""
ROOM = 2 * len(REQUEST)

QUESTIONS = (
    "what is a token?",
    "how does temperature change the answers?",
    "explain what a KV cache is and why it saves work",
    "what does top-p do?",
    "how do I stream a reply?",
    "what is continuous batching?",
    "why does the first token take longer than the others?",
    "what happens when a conversation outgrows the context?",
    "how is a language model trained?",
    "what is supervised fine-tuning?",
    "which sampling settings give the same answer every time?",
    "what does a stop string do?",
    "what is the difference between prefill and decode?",
    "how many tokens can the model see?",
    "what is an attention head?",
    "hello, what can you help me with?",
)
"""Sent as they are where no length is asked for."""


class Length(NamedTuple):
    """A number of tokens or words: one, or any from `least` to `most`, all as likely."""

    least: int
    most: int = 0

    def draw(self, random: Random) -> int:
        return random.randint(self.least, max(self.least, self.most))

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.most > self.least else str(self.least)


class Kind(NamedTuple):
    """Requests of one sort, and how often they come beside the others."""

    prompt: Length
    reply: Length
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Level:
    """How hard the server is driven: by streams that each send the next request when one ends, or at a rate.

    Attributes:
        streams: requests open at a time, or None.
        rate: requests per second, at random moments (Poisson), whatever the server does; or None.
    """

    num_requests: int
    streams: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """Its key in the JSON line."""
        return str(self.streams) if self.rate is None else f"{self.rate:g}"

    @property
    def title(self) -> str:
        """For people."""
        unit = "requests/s" if self.rate is not None else "stream" if self.streams == 1 else "streams"
        return f"{self.name} {unit}"


@dataclass(frozen=True, slots=True)
class Job:
    """One request; `due` is in seconds after the run's start."""

    prompt: str
    max_tokens: int
    seed: int
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Fit:
    """How a server counts: tokens = extra + per_word · words. The default is for one that does not say."""

    extra: float = 0.0
    per_word: float = 1.0

    def num_words(self, num_tokens: int) -> int:
        """Words of a prompt with at most about `num_tokens` tokens; 0 stays 0."""
        return max(1, int((num_tokens - self.extra) / self.per_word + 1e-6)) if num_tokens else 0


@dataclass(slots=True)
class Work:
    """
    Attributes:
        kinds: what is sent, drawn by weight.
        in_words: whether prompts are that long in words; else in tokens.
        prefix: tokens that all prompts of a run begin with.
        fit: how the first server counts tokens; its peer gets the same texts.
    """

    kinds: Sequence[Kind]
    seed: int = 0
    in_words: bool = False
    prefix: int = 0
    fit: Fit = field(default_factory=Fit)

    def jobs(self, level: Level, round_number: int) -> list[Job]:
        """A run's requests, in the order in which they are sent."""
        shape = Random(f"{self.seed} {level.name}")
        texts = Random(f"{self.seed} {level.name} {round_number}")
        prefix = self._prefix(texts)
        kinds = shape.choices(self.kinds, [kind.weight for kind in self.kinds], k=level.num_requests)
        jobs, due = [], 0.0
        for number, kind in enumerate(kinds):
            words = prefix + self._words(kind.prompt.draw(shape), number, texts)
            jobs.append(Job(" ".join(words), kind.reply.draw(shape), number, due))
            due += 0.0 if level.rate is None else shape.expovariate(level.rate)
        return jobs

    def first_of_prefix(self, level: Level, round_number: int) -> Job | None:
        """The request that finds a run's prefix unknown, sent alone before the others; None without one."""
        if not self.prefix:
            return None
        prefix = self._prefix(Random(f"{self.seed} {level.name} {round_number}"))
        words = self._words(self.kinds[0].prompt.least, 0, Random(f"{self.seed} {round_number} first"))
        return Job(" ".join(prefix + words), self.kinds[0].reply.least, 0)

    def _prefix(self, texts: Random) -> list[str]:
        return texts.choices(WORDS, k=max(1, round(self.prefix / self.fit.per_word))) if self.prefix else []

    def _words(self, length: int, number: int, texts: Random) -> list[str]:
        count = length if self.in_words else self.fit.num_words(length)
        if count == 0:
            return [QUESTIONS[number % len(QUESTIONS)]]
        if count < ROOM:
            return texts.choices(WORDS, k=count)
        return texts.choices(WORDS, k=count - len(REQUEST)) + REQUEST
